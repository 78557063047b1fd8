"""The hand-written training step against transformers and PEFT on the same weights."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.model


def student(folder: Path, precision: str) -> Any:
    import torch

    from distill.train.model import load_student

    model = load_student(
        model=str(folder),
        rank=8,
        alpha=16,
        dropout=0.0,
        target_modules="all-linear",
        precision=precision,
        gradient_checkpointing=False,
        seed=1,
    )
    torch.manual_seed(2)
    for name, weight in model.named_parameters():
        if "lora_B" in name:  # zero at the start, which would hide half of the gradients
            weight.data.normal_(0, 0.02)
    return model


def records(*, openings: tuple[int, ...]) -> list[Any]:
    """Three records of random tokens an opening, which they share; 0 stands for no opening."""
    from distill.train.encode import Encoded

    draw = random.Random(3)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(5, 500) for _ in range(count)]

    made = []
    for width in openings:
        opening = tokens(width)
        made += [Encoded(f"{width}/{n}", opening + tokens(n), width + n // 2) for n in (90, 64, 33)]
    draw.shuffle(made)
    return made


def loss_and_gradients(module: Any, of: list[Any]) -> tuple[float, dict[str, Any]]:
    import torch

    batch = module.batch(of, pad_token=0, device=torch.device("cpu"))
    loss = module(batch) / len(batch.targets)
    loss.backward()
    grads = {n: p.grad.double() for n, p in module.named_parameters() if p.grad is not None}
    return loss.item(), grads


def distance(grads: dict[str, Any], exact: dict[str, Any]) -> dict[str, float]:
    assert grads.keys() == exact.keys()
    return {n: float((grads[n] - exact[n]).norm() / exact[n].norm()) for n in exact}


@pytest.mark.parametrize("openings", [(0,), (70,), (70, 0, 40)])
def test_fused_step_equals_the_plain_one(tiny_model: Path, openings: tuple[int, ...]) -> None:
    from distill.train.cpu_model import FastCompletionLoss, why_not
    from distill.train.model import CompletionLoss

    reason = why_not(student(tiny_model, "bf16"), zero_stage=2)
    if "compiler" in reason:
        pytest.skip(reason)
    assert reason == ""
    of = records(openings=openings)
    exact_loss, exact = loss_and_gradients(CompletionLoss(student(tiny_model, "fp32")), of)
    plain_loss, plain = loss_and_gradients(CompletionLoss(student(tiny_model, "bf16")), of)
    fast_loss, fast = loss_and_gradients(FastCompletionLoss(student(tiny_model, "bf16")), of)
    # bfloat16 has 8 bits: each of the three differs by rounding. The fused step must not be
    # further from float32 than the plain one is, up to the luck of rounding.
    assert fast_loss == pytest.approx(exact_loss, rel=2e-3)
    assert abs(fast_loss - exact_loss) < 2 * abs(plain_loss - exact_loss) + 1e-3
    far, reference = distance(fast, exact), distance(plain, exact)
    assert max(far.values()) < 0.05
    for name in far:
        assert far[name] < 2 * reference[name] + 0.005, name


def test_a_shared_opening_is_computed_once_and_nothing_is_padding() -> None:
    import torch

    from distill.train.cpu_model import PackedBatch

    of = records(openings=(70, 0))
    batch = PackedBatch(of, pad_token=0, device=torch.device("cpu"))
    lengths = sum(len(record.tokens) for record in of)
    assert len(batch.tokens) == lengths - 2 * 70
    assert len(batch.targets) == sum(record.num_completion for record in of)
    expected = [token for record in of for token in record.tokens[record.num_prompt :]]
    assert sorted(batch.targets.tolist()) == sorted(expected)


def test_a_batch_without_records_has_no_loss(tiny_model: Path) -> None:
    from distill.train.cpu_model import FastCompletionLoss, why_not

    model = student(tiny_model, "bf16")
    if why_not(model, zero_stage=2):
        pytest.skip("no C++ compiler")
    import torch

    module = FastCompletionLoss(model)
    loss = module(module.batch([], pad_token=0, device=torch.device("cpu")))
    loss.backward()
    assert loss.item() == 0


def test_logits_only_where_there_is_loss_equal_full_logits(tiny_model: Path) -> None:
    import torch

    from distill.train.encode import Encoded
    from distill.train.model import CompletionLoss

    module = CompletionLoss(student(tiny_model, "fp32"))
    two = [Encoded("a", list(range(5, 45)), 30), Encoded("b", list(range(60, 85)), 7)]
    got = module(module.batch(two, pad_token=0, device=torch.device("cpu")))
    expected = torch.zeros(())
    for record in two:  # one by one: no padding at all
        tokens = torch.tensor([record.tokens])
        log_p = module.model(input_ids=tokens).logits[0, :-1].log_softmax(-1)
        nll = -log_p[torch.arange(len(record.tokens) - 1), tokens[0, 1:]]
        expected = expected + nll[record.num_prompt - 1 :].sum()
    torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-4)


def test_a_loss_that_is_not_a_number_stays_one(tiny_model: Path) -> None:
    import torch

    from distill.train import cpu_kernels

    if cpu_kernels.load() is None:
        pytest.skip("no C++ compiler")
    logits = torch.randn(2, 512).bfloat16()
    logits[1, 7] = float("nan")
    losses = cpu_kernels.cross_entropy(logits, torch.tensor([1, 2]), with_gradient=False)
    assert bool(torch.isfinite(losses[0]))
    assert bool(torch.isnan(losses[1]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"zero_stage": 3}, "ZeRO 3"), ({"precision": "fp32"}, "precision")],
)
def test_what_the_fused_step_cannot_do_is_left_to_the_plain_one(
    tiny_model: Path, change: dict[str, Any], reason: str
) -> None:
    from distill.train.cpu_model import why_not

    model = student(tiny_model, change.get("precision", "bf16"))
    assert reason in why_not(model, zero_stage=change.get("zero_stage", 2))
