"""The CPU LoRA operators against each adapter on its own in float64, shapes and mixtures drawn.

Tolerances: float32 sums of up to 256 products; bfloat16 rounds the shrunk rows and the result to
8 bits each, float16 to 11.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2e-2, torch.float16: 3e-3}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    """On a busy machine threads that wait for each other would take most of the test's time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def mapping_of(slots: list[int]):
    from vllm.lora.layers import LoRAMapping

    # vLLM numbers adapters from 1, and 0 is the base model; slot s holds adapter s + 1 here.
    ids = tuple(slot + 1 for slot in slots)
    return LoRAMapping(ids, ids, is_prefill=True)


def make_wrapper(slots: list[int], num_slots: int, *, compiled: bool = True):
    from serve.cpu_lora.punica import DensePunicaWrapper

    wrapper = DensePunicaWrapper(4096, max_batches=256, device="cpu")
    assert wrapper._kernel is not None, "the machine that tests has a C++ compiler"
    if not compiled:
        wrapper._kernel = None
    wrapper.update_metadata(mapping_of(slots), list(range(1, num_slots + 1)), num_slots + 1, 100)
    return wrapper


def stacked(
    ranks: list[int], *, max_rank: int, num_in: int, widths: tuple[int, ...], dtype: torch.dtype
) -> tuple[tuple[torch.Tensor, ...], tuple[torch.Tensor, ...]]:
    """Adapters as vLLM stacks them: zero beyond each adapter's rank."""
    a, b = [], []
    for width in widths:
        a_i = torch.zeros(len(ranks), 1, max_rank, num_in, dtype=dtype)
        b_i = torch.zeros(len(ranks), 1, width, max_rank, dtype=dtype)
        for slot, rank in enumerate(ranks):
            a_i[slot, 0, :rank] = torch.randn(rank, num_in) / num_in**0.5
            b_i[slot, 0, :, :rank] = torch.randn(width, rank)
        a.append(a_i)
        b.append(b_i)
    return tuple(a), tuple(b)


def one_by_one(y, x, a, b, slots, widths, scale=1.0) -> torch.Tensor:
    """Each adapter's rows on their own, in float64."""
    y = y.double().clone()
    for slot in set(slots) - {-1}:
        rows = [row for row, of_row in enumerate(slots) if of_row == slot]
        offset = 0
        for a_i, b_i, width in zip(a, b, widths, strict=True):
            h = x[rows].double() @ a_i[slot, 0].double().T
            y[rows, offset : offset + width] += scale * (h @ b_i[slot, 0].double().T)
            offset += width
    return y


def assert_near(y: torch.Tensor, want: torch.Tensor, dtype: torch.dtype) -> None:
    assert y.isfinite().all()
    assert float((y.double() - want).abs().max()) <= TOLERANCE[dtype] * float(want.abs().max() + 1)


@st.composite
def batches(draw):
    num_slots = draw(st.integers(1, 5))
    runs = draw(
        st.lists(
            st.tuples(st.integers(-1, num_slots - 1), st.sampled_from([1, 1, 1, 2, 5, 130])),
            min_size=1,
            max_size=8,
        )
    )
    return {
        "slots": [slot for slot, length in runs for _ in range(length)],
        "ranks": draw(st.lists(st.integers(0, 8), min_size=num_slots, max_size=num_slots)),
        "num_in": draw(st.sampled_from([8, 32, 40, 256])),
        "widths": tuple(draw(st.lists(st.sampled_from([8, 16, 24, 64]), min_size=1, max_size=3))),
        "dtype": draw(st.sampled_from(list(TOLERANCE))),
        "padding": draw(st.sampled_from([0, 0, 3])),
    }


@settings(max_examples=12, deadline=None)
@given(batches(), st.sampled_from([1.0, 0.5]), st.booleans())
def test_any_mixture_equals_one_by_one(batch, scale, compiled):
    dtype, widths, slots = batch["dtype"], batch["widths"], batch["slots"]
    a, b = stacked(batch["ranks"], max_rank=8, num_in=batch["num_in"], widths=widths, dtype=dtype)
    rows = len(slots) + batch["padding"]
    x, y = torch.randn(rows, batch["num_in"], dtype=dtype), torch.randn(rows, sum(widths)).to(dtype)
    want = one_by_one(y, x, a, b, slots, widths, scale)
    untouched = [row for row in range(rows) if row >= len(slots) or slots[row] < 0]
    before = y[untouched].clone()

    wrapper = make_wrapper(slots, len(batch["ranks"]), compiled=compiled)
    wrapper.add_lora_linear(y, x, a, b, scale, widths)

    assert_near(y, want, dtype)
    assert torch.equal(y[untouched], before), "base-only rows must keep every bit"


@pytest.mark.parametrize("rows", [32, 400])
def test_bfloat16_is_rounded_no_more_than_by_vllms_own_operators(rows):
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    torch.manual_seed(rows)
    widths, ranks = (256, 64, 64), [8, 16, 64]
    a, b = stacked(ranks, max_rank=64, num_in=256, widths=widths, dtype=torch.bfloat16)
    slots = [row * len(ranks) // rows if rows > 32 else row % len(ranks) for row in range(rows)]
    x, y = torch.randn(rows, 256).bfloat16(), torch.zeros(rows, sum(widths)).bfloat16()
    want = one_by_one(y, x, a, b, slots, widths)
    stock = PunicaWrapperCPU(4096, max_batches=256, device="cpu")
    stock.update_metadata(mapping_of(slots), [1, 2, 3], 4, 100)
    error = {}
    for name, wrapper in (("ours", make_wrapper(slots, len(ranks))), ("stock", stock)):
        got = y.clone()
        wrapper.add_lora_linear(got, x, a, b, 1.0, widths)
        error[name] = float((got.double() - want).square().sum())
    # Long runs are rounded like vLLM's own, in another order.
    assert 0 < error["ours"] <= 1.005 * error["stock"]


@settings(max_examples=10, deadline=None)
@given(batches())
def test_shrink_and_expand_apart_as_tensor_parallel_layers_call_them(batch):
    dtype, widths, slots = batch["dtype"], batch["widths"], batch["slots"]
    a, b = stacked(batch["ranks"], max_rank=8, num_in=batch["num_in"], widths=widths, dtype=dtype)
    x = torch.randn(len(slots), batch["num_in"], dtype=dtype)
    # Row-parallel layers write their shard of the output at an offset.
    offset, total = 8, sum(widths) + 16
    y = torch.randn(len(slots), total).to(dtype)
    inner = y[:, offset : offset + sum(widths)]
    want = torch.cat(
        [y[:, :offset], one_by_one(inner, x, a, b, slots, widths), y[:, offset + sum(widths) :]], 1
    )
    wrapper = make_wrapper(slots, len(batch["ranks"]))
    buffers = torch.zeros(len(widths), len(slots), 8)
    wrapper.add_shrink(buffers, x, a, 1.0)
    wrapper.add_expand(y, buffers, b, widths, offset_start=offset, add_input=True)
    assert_near(y, want, dtype)


@settings(max_examples=10, deadline=None)
@given(batches())
def test_embedding_and_logits(batch):
    dtype, width, slots = batch["dtype"], batch["widths"][0], batch["slots"]
    a, b = stacked(batch["ranks"], max_rank=8, num_in=batch["num_in"], widths=(width,), dtype=dtype)
    x, y = torch.randn(len(slots), batch["num_in"], dtype=dtype), torch.randn(len(slots), width)
    wrapper = make_wrapper(slots, len(batch["ranks"]))
    # With a float32 head the logits are float32 though the adapters are not.
    logits = y.clone()
    wrapper.add_lora_logits(logits, x, a[0], b[0], 1.0)
    assert_near(logits, one_by_one(y, x, a, b, slots, (width,)), dtype)

    looked_up = torch.randn(len(slots), 8, dtype=dtype)
    out = y.to(dtype)
    identity = torch.eye(8).expand(len(batch["ranks"]), 1, 8, 8)
    want = one_by_one(out, looked_up, (identity,), b, slots, (width,))
    wrapper.add_lora_embedding(out, looked_up, b[0], add_input=True)
    assert_near(out, want, dtype)


@pytest.mark.parametrize("compiled", [True, False])
def test_a_slot_that_is_written_again_answers_with_its_new_adapter(compiled: bool):
    a, b = stacked([4, 4], max_rank=4, num_in=16, widths=(8,), dtype=torch.float32)
    slots = [0, 1, -1, 0]
    wrapper = make_wrapper(slots, 2, compiled=compiled)
    x = torch.randn(4, 16)
    wrapper.add_lora_linear(torch.zeros(4, 8), x, a, b, 1.0, (8,))
    # What vLLM does when another adapter takes the slot: zero it, then copy into a view.
    a[0][1] = 0
    b[0][1] = 0
    a[0][1, 0, :2, :].copy_(torch.randn(2, 16))
    b[0][1, 0, :, :2].copy_(torch.randn(8, 2))
    y = torch.zeros(4, 8)
    wrapper.add_lora_linear(y, x, a, b, 1.0, (8,))
    assert_near(y, one_by_one(torch.zeros(4, 8), x, a, b, slots, (8,)), torch.float32)


@pytest.mark.parametrize("compiled", [True, False])
@pytest.mark.parametrize("broken", [float("nan"), float("inf")])
def test_a_broken_adapter_spoils_only_its_own_rows(broken: float, compiled: bool):
    a, b = stacked([4, 4], max_rank=4, num_in=16, widths=(8,), dtype=torch.float32)
    a[0][0, 0, 1, 3] = broken
    b[0][0, 0, 1, 3] = broken
    slots = [1, 0, -1, 1]
    x, y = torch.randn(4, 16), torch.zeros(4, 8)
    make_wrapper(slots, 2, compiled=compiled).add_lora_linear(y, x, a, b, 1.0, (8,))
    want = one_by_one(torch.zeros(4, 8), x, a, b, slots, (8,))
    others = [0, 2, 3]
    assert not y[1].isfinite().all()
    assert_near(y[others], want[others], torch.float32)
