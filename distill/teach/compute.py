"""Answers that cost nothing: a program's, or recorded ones. Rows stream from file to file.

The driver sees counts and no rows, so a million prompts take it no more memory than a thousand.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.storage import Store
from distill.batches import ParquetFiles, Progress, map_to_parquet
from distill.records import COMPLETION
from distill.tasks.task import Task, load_task
from distill.teach.config import ProgramTeacher, ReplayTeacher
from distill.teach.identity import request_key
from distill.teach.teacher import build_teacher

FEW_ROWS, FEW_BATCH, BATCH = 10_000, 256, 4096
"""A batch is a file: a small run shows its progress, a large one has no thousands of them. Few
rows pass through the driver."""
ROWS_PER_ACTOR = 250_000
"""A process answers some thousand rows a second and takes seconds to start."""
COMPLETIONS = "completions"
KEY_DIGITS = 16
"""Hex digits of a request's key that tell answered ones apart: 64 bits."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Computed:
    """What came of the prompts."""

    answered: int
    cost_usd: float
    errors: Counter[str]
    """What stands in place of the other answers."""


def compute(
    task: Task,
    config: ProgramTeacher | ReplayTeacher,
    *,
    prompts: Sequence[str],
    store: Store,
    on_progress: Progress | None = None,
) -> Computed:
    """Answer the rows of `prompts` (Parquet files of the store) into `completions/`.

    Those that have an answer there are left alone.
    """
    import ray

    total = sum(store.num_rows(path) for path in prompts)
    few = total <= FEW_ROWS
    map_to_parquet(
        # Tasks that read files take 15 s to start on two cores: only many rows are worth it.
        [row for path in prompts for row in store.read_rows(path)]
        if few
        else ParquetFiles(tuple(store.path(path) for path in prompts), store.fs, total),
        make_worker=_worker(str(task.folder), config, known=_known(store)),
        store=store / COMPLETIONS,
        schema=COMPLETION,
        batch_size=FEW_BATCH if few else BATCH,
        actors=max(1, min(int(ray.cluster_resources().get("CPU", 1)) - 1, total // ROWS_PER_ACTOR)),
        on_progress=on_progress,
    )
    return _counted(store)


def _known(store: Store) -> np.ndarray:
    """Keys of the requests that have an answer, uint64, sorted."""
    keys = [
        np.array(_numbers(batch.column("request_key").to_pylist()), np.uint64)[
            np.array([not error for error in batch.column("error").to_pylist()], bool)
        ]
        for batch in store.iter_batches(COMPLETIONS, columns=["request_key", "error"])
    ]
    return np.unique(np.concatenate(keys)) if keys else np.empty(0, np.uint64)


def _counted(store: Store) -> Computed:
    answered = _known(store)
    cost_usd = 0.0
    errors: Counter[str] = Counter()
    for batch in store.iter_batches(COMPLETIONS, columns=["request_key", "error", "cost_usd"]):
        cost_usd += sum(batch.column("cost_usd").to_pylist())
        columns = (batch.column(name).to_pylist() for name in ("request_key", "error"))
        # An error that a later run has mended is none.
        for key, error in zip(*columns, strict=True):
            if error and not _is_in(_number(key), answered):
                errors[error] += 1
    return Computed(len(answered), cost_usd, errors)


def _is_in(number: int, known: np.ndarray) -> bool:
    place = int(np.searchsorted(known, np.uint64(number)))
    return place < len(known) and int(known[place]) == number


def _number(key: str) -> int:
    return int(key[:KEY_DIGITS], 16)


def _numbers(keys: Sequence[str]) -> list[int]:
    return [_number(key) for key in keys]


def _worker(
    folder: str, config: ProgramTeacher | ReplayTeacher, *, known: np.ndarray
) -> Callable[[], Callable[[list[Row]], list[Row]]]:
    def make() -> Callable[[list[Row]], list[Row]]:
        task = load_task(Path(folder))
        teacher = build_teacher(config, task)

        def answer(rows: list[Row]) -> list[Row]:
            keyed = [{**row, "request_key": request_key(row, config)} for row in rows]
            asked = [row for row in keyed if not _is_in(_number(row["request_key"]), known)]
            return [
                {**row, **asdict(found), "teacher": teacher.name}
                for row, found in zip(asked, teacher.answer(asked), strict=True)
            ]

        return answer

    return make
