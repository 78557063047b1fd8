"""Read or generate a task's prompts as plain dictionaries."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cluster.errors import DataError
from distill.jsonl import numbered_jsonl
from distill.prompts.grid import grid_prompts
from distill.tasks.task import Task

BATCH_ROWS = 2048
SKIP_BAD = (
    "Mend or remove them, or keep the other lines: `distillery run` with --skip-bad, or "
    "skip_bad = true under [prompts] of the run."
)


class Record(dict[str, Any]):
    """A prompt that knows where it stands, for errors that only show when it is filled in."""

    __slots__ = ("place",)

    def __init__(self, fields: Mapping[str, Any], place: str):
        """`place`: file, and line or number of the record."""
        super().__init__(fields)
        self.place = place


def place_of(prompt: Mapping[str, Any], number: int) -> str:
    """Where a prompt stands: in its file, or else its `number` among those that were made."""
    return prompt.place if isinstance(prompt, Record) else f"prompt {number}"


def read_prompts(
    task: Task, *, sizes: dict[str, int], seed: int, skip_bad: bool
) -> Iterator[dict[str, Any]]:
    """Yield the prompts of the task's file, or as many generated or combined as the splits need.

    Each split is generated from a seed of its own, so that the test prompts stay the same ones
    when the training set grows; a grid keeps them as well. A line of a file that cannot be read is
    a DataError with its number and text, for every such line at once; with `skip_bad` the other
    lines are kept. NaN and infinity are no values of a prompt.
    """
    source = task.spec.prompts
    if source.generator:
        generate = task.function(source.generator)
        for number, (split, size) in enumerate(sorted(sizes.items())):
            # Some to spare: a few fall out because another split has their combination.
            for prompt in generate(size + size // 10 + 10, 3 * seed + number):
                yield {**prompt, "split": split}
        return
    if source.grid is not None:
        yield from grid_prompts(task, sizes=sizes, seed=seed)
        return
    path = task.folder / source.file
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; [prompts] file in {task.folder}/task.toml names it."
        )
    if path.suffix == ".parquet":
        yield from _from_parquet(path)
        return
    for number, row in numbered_jsonl(path, skip_bad=skip_bad, advice=SKIP_BAD):
        yield Record(row, f"{path}, line {number}")


def _from_parquet(path: Path) -> Iterator[Record]:
    import pyarrow.parquet as pq

    with pq.ParquetFile(path) as file:
        number = 0
        for batch in file.iter_batches(BATCH_ROWS):
            for row in batch.to_pylist():
                number += 1
                record = Record(row, f"{path}, record {number}")
                problem = _not_finite(row)
                if problem:
                    raise DataError(
                        f"{record.place}: {problem}; a prompt would read so: give a number or text."
                    )
                yield record


def _not_finite(value: Any, path: str = "") -> str:
    """Say which field is NaN or infinite; empty when none is."""
    if isinstance(value, float):
        return "" if math.isfinite(value) else f"{path} is {value}"
    if isinstance(value, dict):
        entries = list(value.items())
    elif isinstance(value, list):
        entries = list(enumerate(value))
    else:
        return ""
    found = (_not_finite(entry, f"{path}.{name}" if path else str(name)) for name, entry in entries)
    return next(filter(None, found), "")
