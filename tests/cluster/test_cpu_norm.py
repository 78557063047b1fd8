"""The RMSNorm that engines on CPU use, against its formula in float64."""

from __future__ import annotations

from typing import Any

import pytest

from cluster import cpu_engine, cpu_norm

pytestmark = pytest.mark.slow  # imports vLLM

EPSILON = 1e-5


@pytest.fixture(scope="module")
def ops() -> Any:
    """VLLM's operators with ours chosen, as a worker of an engine chooses them."""
    from vllm import ir

    cpu_norm.register()
    cpu_norm.register()  # vLLM calls it twice in a process that has the engine within
    with (
        ir.ops.rms_norm.set_priority(cpu_norm.PRIORITY["rms_norm"]),
        ir.ops.fused_add_rms_norm.set_priority(cpu_norm.PRIORITY["fused_add_rms_norm"]),
    ):
        yield ir.ops


def normed(x: Any, weight: Any) -> Any:
    x = x.double()
    return x / (x.pow(2).mean(-1, keepdim=True) + EPSILON).sqrt() * weight.double()


@pytest.mark.parametrize("rows", [1, 8, 700])
@pytest.mark.parametrize(("dtype", "error"), [("float32", 2e-6), ("bfloat16", 2**-8)])
def test_it_is_the_formula_rounded_once(ops: Any, rows: int, dtype: str, error: float) -> None:
    import torch

    torch.manual_seed(rows)
    x, residual = (torch.randn(rows, 576, dtype=getattr(torch, dtype)) for _ in range(2))
    weight = torch.rand(576).to(x.dtype) + 0.5
    assert ops.rms_norm.dispatch(x, weight, EPSILON).provider == cpu_norm.PROVIDER
    expected = normed(x, weight)
    assert torch.allclose(ops.rms_norm(x, weight, EPSILON).double(), expected, rtol=error)

    before = x.clone(), residual.clone()
    total = (x.double() + residual.double()).to(x.dtype)
    given, summed = ops.fused_add_rms_norm(x, residual, weight, EPSILON)
    assert torch.equal(x, before[0])
    assert torch.equal(residual, before[1])
    assert torch.equal(summed, total)
    # The sum is normed before it is rounded or after; both are one rounding of the type away.
    assert torch.allclose(given.double(), normed(total, weight), rtol=2 * error, atol=error)


def test_what_the_kernel_cannot_read_is_vllms_own(ops: Any) -> None:
    import torch

    x, weight = torch.randn(4, 64), torch.ones(32)
    for rows, scale, size in [
        (x[:, :32], weight, None),  # a view: queries beside keys
        (x[:, :32].contiguous(), weight.bfloat16(), None),
        (x[:, :32].contiguous(), None, None),
        (x[:, :32].contiguous(), weight, 16),
    ]:
        assert ops.rms_norm.dispatch(rows, scale, EPSILON, size).provider == "native"


def test_an_engine_told_to_leave_the_plugin_out_is_not_asked_for_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("VLLM_PLUGINS", raising=False)
    assert cpu_engine.engine_arguments(kv_cache_gb=1)["ir_op_priority"] == cpu_norm.PRIORITY
    monkeypatch.setenv("VLLM_PLUGINS", "distillery_cpu_amx")
    assert "ir_op_priority" not in cpu_engine.engine_arguments(kv_cache_gb=1)
