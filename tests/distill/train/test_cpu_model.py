"""The hand-written training step against transformers and PEFT on the same weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training import distance, items, loss_and_gradients, student, training

pytestmark = pytest.mark.model


@pytest.mark.parametrize("openings", [(0,), (70,), (70, 0, 40)])
def test_fused_step_equals_the_plain_one(tiny_model: Path, openings: tuple[int, ...]) -> None:
    from distill.train.cpu_model import why_not

    reason = why_not(student(tiny_model, "bf16"), zero_stage=2)
    if "compiler" in reason:
        pytest.skip(reason)
    assert reason == ""
    of = items(openings=openings)
    exact_loss, exact = loss_and_gradients(training(student(tiny_model)), of)
    plain_loss, plain = loss_and_gradients(training(student(tiny_model, "bf16")), of)
    fast_loss, fast = loss_and_gradients(training(student(tiny_model, "bf16"), fast=True), of)
    # bfloat16 has 8 bits: each of the three differs by rounding. The fused step must not be
    # further from float32 than the plain one is, up to the luck of rounding.
    assert fast_loss == pytest.approx(exact_loss, rel=2e-3)
    assert abs(fast_loss - exact_loss) < 2 * abs(plain_loss - exact_loss) + 1e-3
    far, reference = distance(fast, exact), distance(plain, exact)
    assert max(far.values()) < 0.05
    for name in far:
        assert far[name] < 2 * reference[name] + 0.005, name


@pytest.mark.parametrize("openings", [(0,), (70, 0, 40)])
def test_in_float32_the_fused_step_is_the_plain_one(
    tiny_model: Path, openings: tuple[int, ...]
) -> None:
    from distill.train.cpu_model import why_not

    reason = why_not(student(tiny_model), zero_stage=2)
    if "compiler" in reason:
        pytest.skip(reason)
    assert reason == ""
    of = items(openings=openings)
    plain_loss, plain = loss_and_gradients(training(student(tiny_model)), of)
    fast_loss, fast = loss_and_gradients(training(student(tiny_model), fast=True), of)
    # Sums in another order, and gcc's exponentials of 4 units in the last place.
    assert fast_loss == pytest.approx(plain_loss, rel=1e-6)
    assert max(distance(fast, plain).values()) < 1e-5


def test_a_shared_opening_is_computed_once_and_nothing_is_padding() -> None:
    import torch

    from distill.train.packed import PackedBatch

    of = [item.sequences[0] for item in items(openings=(70, 0))]
    batch = PackedBatch(of, pad_token=0, device=torch.device("cpu"))
    lengths = sum(len(record.tokens) for record in of)
    assert len(batch.tokens) == lengths - 2 * 70
    assert len(batch.targets) == sum(record.num_completion for record in of)
    expected = [token for record in of for token in record.tokens[record.num_prompt :]]
    assert batch.targets.tolist() == expected
    # The row before each target's own holds the token that comes before it in the record.
    before = [token for record in of for token in record.tokens[record.num_prompt - 1 : -1]]
    assert batch.tokens[batch.positions].tolist() == before


def test_a_batch_without_records_has_no_loss(tiny_model: Path) -> None:
    from distill.train.cpu_model import why_not

    model = student(tiny_model, "bf16")
    if why_not(model, zero_stage=2):
        pytest.skip("no C++ compiler")
    loss, gradients = loss_and_gradients(training(model, fast=True), [])
    assert loss == 0
    assert all(float(gradient.norm()) == 0 for gradient in gradients.values())


def test_a_loss_that_is_not_a_number_stays_one(tiny_model: Path) -> None:
    import torch

    from distill.train import cpu_kernels

    if cpu_kernels.load(torch.bfloat16) is None:
        pytest.skip("no C++ compiler")
    logits = torch.randn(2, 512).bfloat16()
    logits[1, 7] = float("nan")
    losses = cpu_kernels.cross_entropy(logits, torch.tensor([1, 2]), with_gradient=False)
    assert bool(torch.isfinite(losses[0]))
    assert bool(torch.isnan(losses[1]))


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"zero_stage": 3}, "ZeRO 3"), ({"dropout": 0.1}, "dropout")],
)
def test_what_the_fused_step_cannot_do_is_left_to_the_plain_one(
    tiny_model: Path, change: dict[str, Any], reason: str
) -> None:
    from distill.train.cpu_model import why_not

    model = student(tiny_model, "bf16", dropout=change.get("dropout", 0.0))
    assert reason in why_not(model, zero_stage=change.get("zero_stage", 2))
