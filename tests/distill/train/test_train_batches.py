from __future__ import annotations

import random
from collections import Counter

import pytest
from training import items

from distill.train.batches import Step, deal, deal_families, families, plan_epoch

LENGTHS = [random.Random(i).randint(100, 1000) for i in range(103)]


def plan(workers: int, epoch: int = 0, seed: int = 1) -> list[Step]:
    return plan_epoch(
        LENGTHS, seed=seed, epoch=epoch, batch_size=16, workers=workers, micro_batch_size=4
    )


def members(step: Step) -> list[int]:
    return sorted(i for worker in step for micro in worker for i in micro)


def test_every_record_comes_once_an_epoch() -> None:
    assert sorted(i for step in plan(2) for i in members(step)) == list(range(len(LENGTHS)))


def test_the_steps_do_not_depend_on_the_number_of_workers() -> None:
    assert [members(s) for s in plan(1)] == [members(s) for s in plan(2)]
    assert [members(s) for s in plan(1)] == [members(s) for s in plan(4)]


def test_the_order_depends_on_seed_and_epoch_and_nothing_else() -> None:
    assert plan(2) == plan(2)
    assert plan(2) != plan(2, epoch=1)
    assert plan(2) != plan(2, seed=2)


def test_all_workers_have_equally_many_micro_batches() -> None:
    for step in plan(4):  # one step has 7 records for 4 workers
        assert len({len(worker) for worker in step}) == 1


def test_more_records_than_asked_for_are_short_ones() -> None:
    """A micro-batch of four takes memory by its tokens: five or six have no more than four had."""
    lengths = [836, 533, 522, 459, 177, 175, 162, 153]
    first, second = ([lengths[i] for i in micro] for (micro,) in deal(range(8), lengths, 2, 4))
    assert {len(first), len(second)} == {3, 5}
    assert max(sum(first), sum(second)) < 836 + 459 + 162 + 153  # the best of four and four
    (one,), (other,) = deal(range(2), [1000, 10], 2, 1)
    assert (one, other) == ([0], [1])


def test_a_micro_batch_takes_at_most_a_quarter_more() -> None:
    """Of a model whose records are padded it takes that much more memory at most."""
    for size in (1, 2, 3, 4, 8):
        steps = plan_epoch(
            LENGTHS, seed=1, epoch=0, batch_size=16, workers=2, micro_batch_size=size
        )
        most = max(len(micro) for step in steps for worker in step for micro in worker)
        assert most <= size + size // 4


def test_like_lengths_of_a_step_are_padded_together() -> None:
    micros = [micro for step in plan(2) for worker in step for micro in worker]
    padded = sum(len(micro) * max((LENGTHS[i] for i in micro), default=0) for micro in micros)
    # Four records of 100 to 1,000 tokens taken at random would be padded to 1.5 of their length.
    assert padded < 1.4 * sum(LENGTHS)


def test_a_step_mixes_lengths_because_length_goes_with_the_class() -> None:
    """Short and long records are different classes in many tasks: a step must see both."""
    lengths = [100] * 64 + [200] * 64
    steps = plan_epoch(lengths, seed=3, epoch=0, batch_size=16, workers=2, micro_batch_size=4)
    short = [sum(lengths[i] == 100 for i in members(step)) for step in steps]
    assert all(2 <= count <= 14 for count in short), short


def test_the_slowest_of_two_workers_has_hardly_more_than_half() -> None:
    steps = [step for step in plan(2) if len(members(step)) == 16]
    for micro in range(2):  # each waits for the slowest
        of = [[sum(LENGTHS[i] for i in worker[micro]) for worker in step] for step in steps]
        assert sum(max(tokens) / sum(tokens) for tokens in of) / len(of) < 0.51


def test_workers_get_like_amounts() -> None:
    tokens = [
        sum(LENGTHS[i] for micro in worker for i in micro)
        for worker in deal(range(64), LENGTHS, 2, 8)
    ]
    assert abs(tokens[0] - tokens[1]) < 0.03 * sum(tokens)


def test_workers_wait_little_for_each_other() -> None:
    """Eight records a step, four a worker: the one with more tokens decides how long it takes."""
    steps = plan_epoch(LENGTHS[:96], seed=1, epoch=0, batch_size=8, workers=2, micro_batch_size=4)
    tokens = [[sum(LENGTHS[i] for i in micro) for (micro,) in step] for step in steps]
    waits = sum(max(step) for step in tokens) / sum(sum(step) / 2 for step in tokens)
    assert waits < 1.01


RELATED = [i % 13 for i in range(len(LENGTHS))]
"""Thirteen families: twelve of eight records, and the first has seven."""


def plan_related(workers: int, **changes: int) -> list[Step]:
    told = {"seed": 1, "epoch": 0, "batch_size": 16, "micro_batch_size": 4, "prefix_group": 4}
    return plan_epoch(LENGTHS, workers=workers, related=RELATED, **{**told, **changes})


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("prefix_group", [2, 3, 4, 100])
def test_grouped_records_come_once_an_epoch_in_equally_many_micro_batches(
    workers: int, prefix_group: int
) -> None:
    steps = plan_related(workers, prefix_group=prefix_group)
    assert sorted(i for step in steps for i in members(step)) == list(range(len(LENGTHS)))
    for step in steps:
        assert len({len(worker) for worker in step}) == 1
        assert all(len(micro) <= 4 for worker in step for micro in worker)


@pytest.mark.parametrize("workers", [1, 2])
def test_a_family_meets_in_micro_batches_as_far_as_asked(workers: int) -> None:
    related = [i % 12 for i in range(96)]  # twelve families of eight
    for group in (2, 4):
        steps = plan_epoch(
            LENGTHS[:96], seed=1, epoch=0, batch_size=16, workers=workers, micro_batch_size=4,
            related=related, prefix_group=group,
        )  # fmt: skip
        for step in steps:
            for micro in (micro for worker in step for micro in worker):
                met = Counter(related[i] for i in micro)
                assert all(count % group == 0 for count in met.values()), met
        # A group is drawn together, not the whole family: one step does not see all of it.
        assert sum(any(related[i] == 0 for i in members(step)) for step in steps) > 1


def test_the_groups_do_not_depend_on_the_number_of_workers_but_on_seed_and_epoch() -> None:
    assert [members(s) for s in plan_related(1)] == [members(s) for s in plan_related(2)]
    assert plan_related(2) == plan_related(2)
    assert plan_related(2) != plan_related(2, epoch=1)
    assert plan_related(2) != plan_related(2, seed=2)


def test_a_group_of_one_is_no_grouping() -> None:
    assert plan_related(2, prefix_group=1) == plan(2)


def test_whole_families_go_to_whoever_has_least() -> None:
    related = [0, 0, 0, 1, 1, 2, 2, 2, 3, 3]
    lengths = [90, 90, 90, 50, 50, 80, 80, 80, 40, 40]
    step = deal_families(range(10), lengths, 2, 5, related)
    # The longest to the first worker, the next to the second, and so on: 350 and 340 tokens.
    assert step == [[[0, 1, 2, 8, 9]], [[5, 6, 7, 3, 4]]]


def test_a_family_larger_than_a_share_is_cut() -> None:
    related = [0] * 7 + [1]
    step = deal_families(range(8), [100] * 8, 2, 2, related)
    assert step == [[[0, 1], [2, 3]], [[4, 5], [6, 7]]]


def test_items_that_begin_alike_are_a_family() -> None:
    of = items(openings=(40, 70, 0))
    opening = [item.example_id.split("/")[0] for item in of]  # "0" of those that share nothing
    numbers = families(of)
    assert len(numbers) == len(of)
    for name in ("40", "70"):
        assert len({n for n, its in zip(numbers, opening, strict=True) if its == name}) == 1
    assert len(set(numbers)) == 2 + opening.count("0")
