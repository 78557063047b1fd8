"""The micro-batch that a plan times, in place of all that a run computes."""

from __future__ import annotations

import random

import pytest

from distill.train.config import TrainConfig
from distill.train.plan.workload import (
    Workload,
    known_lengths,
    mean_micro_batch,
    micro_batch_of,
    micro_batches_per_step,
    typical_lengths,
)

TRAIN = TrainConfig(workers=2, batch_size=16, micro_batch_size=4)
DRAW = random.Random(0)
MIXED = known_lengths(
    [DRAW.randint(100, 1000) for _ in range(320)], completion_share=0.4, source="a test"
)
UNKNOWN = Workload(320, 100, 100, 0.4, "a test")


def test_the_timed_micro_batch_is_near_the_mean_of_all() -> None:
    lengths = typical_lengths(MIXED, TRAIN)
    mean = mean_micro_batch(MIXED, TRAIN)
    assert len(lengths) == mean.sequences == 4
    assert sum(lengths) == pytest.approx(mean.tokens, rel=0.1)
    # A step deals long records with long ones, so that no micro-batch is the mean in everything.
    squares = sum(n * n for n in MIXED.lengths) / len(MIXED.lengths)
    assert sum(n * n for n in lengths) / 4 == pytest.approx(squares, rel=0.25)


def test_where_no_length_is_known_they_differ_all_the_same() -> None:
    lengths = typical_lengths(UNKNOWN, TRAIN)
    assert sum(lengths) == 400
    assert len(set(lengths)) > 1


def test_a_micro_batch_is_described_by_its_lengths() -> None:
    batch = micro_batch_of([100, 300], completion_share=0.25)
    assert (batch.sequences, batch.width, batch.tokens, batch.completion_rows) == (2, 300, 400, 100)


@pytest.mark.parametrize("workload", [MIXED, UNKNOWN])
def test_the_optimisers_step_is_shared_out_among_a_workers_micro_batches(
    workload: Workload,
) -> None:
    assert micro_batches_per_step(workload, TRAIN) == pytest.approx(2)
    all_at_once = TRAIN.model_copy(update={"micro_batch_size": 8})
    assert micro_batches_per_step(workload, all_at_once) == pytest.approx(1)
