"""How batches reach the workers: planned by seed, filled by Ray Data, handed out by its split.

All steps are known before the first one. A block of Ray Data holds some steps of one worker, and
blocks lie in turns: worker 0, worker 1, worker 0, … . `streaming_split(equal=True)` gives a block
to whoever has fewest rows, the first of them where they have equally many (Ray 2.60,
`OutputSplitter`), and under `preserve_order` it sees them as planned: everyone gets what is theirs,
in order, whoever computed it. A run that resumes plans from the step of its newest checkpoint.
"""

from __future__ import annotations

import queue
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.errors import StageError
from distill.train.batches import Step, families, plan_epoch
from distill.train.config import TrainConfig
from distill.train.encode import Encoded, Item
from distill.train.snapshot import newest_step

TRAINING = "training"
"""Name of the data set that the workers ask Ray Train for."""
STEPS_TOGETHER = 8
"""Steps of one worker in a block; more where there would be more than `MOST_BLOCKS`."""
MOST_BLOCKS = 2_000
CLOSE_S = 10.0
"""How long the end of a training waits for Ray Data to stop."""
WORKERS_FED = 4
"""Workers for whom one process fills blocks; that takes it milliseconds a step."""
PLANNED = pa.schema(
    [
        ("step", pa.int64()),
        ("worker", pa.int64()),
        ("micro_batches", pa.list_(pa.list_(pa.int64()))),
    ]
)
"""One worker's part of one step: numbers of the items of each micro-batch."""


@dataclass(frozen=True)
class Outline:
    """What of the training items decides which of them meet in which step."""

    lengths: list[int]
    """Tokens of each item."""
    related: list[int] | None = None
    """Family of each item, where `train.prefix_group` asks for it."""

    @classmethod
    def of(cls, items: Sequence[Item], train: TrainConfig) -> Outline:
        """Outline `items`."""
        related = families(items) if train.prefix_group > 1 else None
        return cls([item.num_tokens for item in items], related)

    def epoch(self, train: TrainConfig, *, epoch: int, workers: int) -> list[Step]:
        """Return the steps of an epoch, from 0."""
        return plan_epoch(
            self.lengths,
            seed=train.seed,
            epoch=epoch,
            batch_size=train.batch_size,
            workers=workers,
            micro_batch_size=train.micro_batch_size,
            related=self.related,
            prefix_group=train.prefix_group,
        )


def num_steps(num_items: int, train: TrainConfig) -> tuple[int, int]:
    """Return the optimiser steps of an epoch and of the whole run."""
    per_epoch = -(-num_items // train.batch_size)
    total = train.epochs * per_epoch
    return per_epoch, total if train.max_steps is None else min(total, train.max_steps)


def planned_blocks(
    outline: Outline, train: TrainConfig, *, workers: int, first_step: int
) -> Iterator[pa.Table]:
    """Yield the blocks of all steps from `first_step` on, in the order that the split takes."""
    per_epoch, total = num_steps(len(outline.lengths), train)
    together = max(STEPS_TOGETHER, -(-(total - first_step) * workers // MOST_BLOCKS))
    steps = (
        (epoch * per_epoch + place, step)
        for epoch in range(first_step // per_epoch, train.epochs)
        for place, step in enumerate(outline.epoch(train, epoch=epoch, workers=workers))
    )
    wanted = ((number, step) for number, step in steps if first_step <= number < total)
    while window := list(islice(wanted, together)):
        for worker in range(workers):
            rows = [
                {"step": number, "worker": worker, "micro_batches": step[worker]}
                for number, step in window
            ]
            yield pa.Table.from_pylist(rows, schema=PLANNED)


def fill(planned: pa.Table, *, encoded: pa.Table) -> pa.Table:
    """Put the items' sequences into planned rows.

    `encoded` is a table of `encoded.SEQUENCE`, by item. The result has `step`, `worker`,
    `num_micro_batches` and `sequences`, a list of structs: those of `encoded` and the number of
    the `micro_batch`.
    """
    of_item = encoded["item"].to_numpy()
    bounds = [0, *(of_item[1:] != of_item[:-1]).nonzero()[0] + 1, len(of_item)]
    rows_of = list(pairwise(map(int, bounds)))
    taken: list[int] = []
    micro: list[int] = []
    ends = [0]
    batches = planned["micro_batches"].to_pylist()
    for batch in batches:
        for number, items in enumerate(batch):
            for item in items:
                first, end = rows_of[item]
                taken += range(first, end)
                micro += [number] * (end - first)
        ends.append(len(taken))
    found = encoded.take(pa.array(taken, pa.int64())).combine_chunks()
    names = ["micro_batch", *found.column_names]
    columns = [pa.array(micro, pa.int64()), *(_whole(column) for column in found.columns)]
    sequences = pa.ListArray.from_arrays(
        pa.array(ends, pa.int32()), pa.StructArray.from_arrays(columns, names)
    )
    return pa.table(
        {
            "step": planned["step"],
            "worker": planned["worker"],
            "num_micro_batches": pa.array([len(batch) for batch in batches], pa.int64()),
            "sequences": sequences,
        }
    )


def _whole(column: pa.ChunkedArray) -> pa.Array:
    # A table without rows has no chunk to combine into one.
    return column.chunk(0) if column.num_chunks else pa.array([], column.type)


def _fill_from(planned: pa.Table, *, encoded: list[Any]) -> pa.Table:
    import ray

    return fill(planned, encoded=ray.get(encoded[0]))


@dataclass
class Feed:
    """Makes the data set of what is still to be trained on; Ray Train calls it at every start."""

    train: TrainConfig
    checkpoints: Path
    """Ray Train's folder, which knows the newest checkpoint's step."""
    outline: list[Any]
    """One object reference to the `Outline`."""
    encoded: list[Any]
    """One object reference to the encoded items' table."""

    def __call__(self) -> Any:
        """Return the planned blocks, to be filled while the workers train."""
        import ray

        first_step = newest_step(self.checkpoints)
        told: dict[str, Any] = {"workers": self.train.workers, "first_step": first_step}
        blocks = list(planned_blocks(ray.get(self.outline[0]), self.train, **told))
        # `from_blocks` keeps a table a block and asks no task for anything; `from_arrow` would
        # wait for a CPU, and the workers may have them all. That is why filling takes none either.
        filled = ray.data.from_blocks(blocks or [PLANNED.empty_table()]).map_batches(
            _fill_from,
            fn_kwargs={"encoded": self.encoded},
            batch_size=None,
            batch_format="pyarrow",
            num_cpus=0,
            # Tasks that take no CPU are not held back by any: each would start a process.
            concurrency=-(-self.train.workers // WORKERS_FED),
        )
        filled.context.execution_options.preserve_order = True
        return filled


@dataclass(frozen=True)
class WorkerStep:
    """One worker's part of a step: its items by number, and who is in which micro-batch."""

    step: int
    micro_batches: list[list[int]]
    items: dict[int, Item]

    @classmethod
    def of(cls, row: dict[str, Any]) -> WorkerStep:
        """Read a row that `fill` made."""
        micro_batches: list[list[int]] = [[] for _ in range(row["num_micro_batches"])]
        sequences: dict[int, list[Encoded]] = {}
        for told in row["sequences"]:
            micro_batch, item = told.pop("micro_batch"), told.pop("item")
            if item not in sequences:
                micro_batches[micro_batch].append(item)
            sequences.setdefault(item, []).append(Encoded(**told))
        items = {i: Item(found[0].example_id, tuple(found)) for i, found in sequences.items()}
        return cls(row["step"], micro_batches, items)


class Steps:
    """A worker's steps in order, read ahead of the training by a thread."""

    def __init__(self, shard: Any, *, worker: int):
        """Begin to read `shard`, what Ray Train gave this worker of the training data."""
        self._worker = worker
        self._read: queue.Queue[Any] = queue.Queue(maxsize=2)
        self._ahead: deque[WorkerStep] = deque()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._follow, args=(shard,), daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Read no further: Ray Data still at work would go down with Ray, and the process too."""
        self._closed.set()
        deadline = time.monotonic() + CLOSE_S
        while self._thread.is_alive() and time.monotonic() < deadline:
            with suppress(queue.Empty):  # it may be waiting for room
                self._read.get(timeout=0.1)

    def _follow(self, shard: Any) -> None:
        try:
            batches = iter(shard.iter_batches(batch_size=1, batch_format="pyarrow"))
            for table in batches:
                if self._closed.is_set():
                    break
                self._read.put(table.to_pylist()[0])
            del batches  # ends what still fills blocks
            self._read.put(None)
        except Exception as error:  # raised where the step is asked for
            self._read.put(error)

    def take(self, step: int) -> WorkerStep:
        """Return the part of `step`, which must be the next one."""
        if not self.peek(1, first=step):
            raise StageError(f"the training data ended before step {step}")
        return self._ahead.popleft()

    def peek(self, count: int, *, first: int) -> list[WorkerStep]:
        """Return up to `count` steps from `first` on without taking them; fewer at the end."""
        while len(self._ahead) < count:
            row = self._read.get()
            if isinstance(row, Exception):
                raise row
            if row is None:
                self._read.put(None)
                break
            if (row["step"], row["worker"]) != (first + len(self._ahead), self._worker):
                raise StageError(
                    f"Ray Data handed step {row['step']} of worker {row['worker']} to worker "
                    f"{self._worker} at step {first + len(self._ahead)}; the installed Ray splits "
                    "in another way than the one this was written for (constraints.txt)"
                )
            self._ahead.append(WorkerStep.of(row))
        return list(islice(self._ahead, count))
