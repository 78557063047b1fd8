"""What each worker is handed: planned, filled, and in the order of the steps."""

from __future__ import annotations

import random
from typing import Any

import pyarrow as pa
import pytest

from cluster.errors import StageError
from distill.train.config import TrainConfig
from distill.train.encode import Encoded, Item
from distill.train.encoded import table_of
from distill.train.feed import Outline, Steps, WorkerStep, fill, num_steps, planned_blocks


def items(count: int) -> list[Item]:
    draw = random.Random(4)
    made = []
    for i in range(count):
        parts = tuple(
            Encoded(f"e{i}", [draw.randrange(99) for _ in range(draw.randint(9, 40))], 3, kind)
            for kind in ("answer", "label")[: draw.randint(1, 2)]
        )
        made.append(Item(f"e{i}", parts))
    return made


ITEMS = items(45)


def settings(**changes: Any) -> TrainConfig:
    told = {"batch_size": 8, "micro_batch_size": 2, "epochs": 3, "seed": 5, **changes}
    return TrainConfig(**told)


def split(blocks: list[pa.Table], *, workers: int) -> list[list[pa.Table]]:
    """Ray Data's rule: a block goes to whoever has fewest rows, the first of them if equal."""
    given: list[list[pa.Table]] = [[] for _ in range(workers)]
    for block in blocks:
        min(given, key=lambda mine: sum(map(len, mine))).append(block)
    return given


def steps_of(train: TrainConfig, *, workers: int, first_step: int = 0) -> list[list[WorkerStep]]:
    """Every worker's steps as it would read them."""
    blocks = list(
        planned_blocks(Outline.of(ITEMS, train), train, workers=workers, first_step=first_step)
    )
    encoded = table_of(ITEMS)
    return [
        [WorkerStep.of(row) for block in mine for row in fill(block, encoded=encoded).to_pylist()]
        for mine in split(blocks, workers=workers)
    ]


def test_each_worker_gets_its_steps_in_order_and_whole_items() -> None:
    train = settings()
    per_epoch, total = num_steps(len(ITEMS), train)
    assert (per_epoch, total) == (6, 18)
    workers = steps_of(train, workers=2)
    for mine in workers:
        assert [step.step for step in mine] == list(range(total))
    for parts in zip(*workers, strict=True):
        assert len({len(part.micro_batches) for part in parts}) == 1
        for part in parts:
            assert sorted(part.items) == sorted(i for micro in part.micro_batches for i in micro)
            assert all(part.items[i] == ITEMS[i] for i in part.items)
    first_epoch = [i for mine in workers for step in mine[:per_epoch] for i in step.items]
    assert sorted(first_epoch) == list(range(len(ITEMS)))


@pytest.mark.parametrize("first_step", [1, 7, 17])
def test_what_is_left_after_a_step_is_the_rest_of_the_plan(first_step: int) -> None:
    whole, rest = (
        steps_of(settings(), workers=2),
        steps_of(settings(), workers=2, first_step=first_step),
    )
    assert rest == [mine[first_step:] for mine in whole]


def test_another_number_of_workers_meets_the_same_items_in_each_step() -> None:
    train = settings(max_steps=11)
    met = [
        [sorted(i for part in parts for i in part.items) for parts in zip(*given, strict=True)]
        for given in (steps_of(train, workers=n) for n in (1, 2, 4))
    ]
    assert len(met[0]) == 11
    assert met[0] == met[1] == met[2]


def test_a_long_plan_has_blocks_of_more_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distill.train.feed.MOST_BLOCKS", 4)
    train = settings()
    blocks = list(planned_blocks(Outline.of(ITEMS, train), train, workers=2, first_step=0))
    assert [len(block) for block in blocks] == [9, 9, 9, 9]
    assert [block["worker"][0].as_py() for block in blocks] == [0, 1, 0, 1]


class Shard:
    """A Ray Data iterator that gives these rows."""

    def __init__(self, rows: list[dict[str, Any]]):
        self.rows = rows

    def iter_batches(self, **_: Any) -> Any:
        return (pa.Table.from_pylist([row]) for row in self.rows)


def test_steps_can_be_looked_at_before_they_are_taken_and_never_come_out_of_order() -> None:
    rows = [
        {"step": step, "worker": 1, "num_micro_batches": 1, "sequences": []} for step in range(4, 7)
    ]
    steps = Steps(Shard(rows), worker=1)
    assert [ahead.step for ahead in steps.peek(5, first=4)] == [4, 5, 6]
    assert steps.take(4).step == 4
    assert steps.peek(0, first=5) == []
    assert [steps.take(step).step for step in (5, 6)] == [5, 6]
    with pytest.raises(StageError, match="ended before step 7"):
        steps.take(7)
    with pytest.raises(StageError, match="step 4 of worker 1 to worker 1 at step 5"):
        Steps(Shard(rows), worker=1).take(5)
