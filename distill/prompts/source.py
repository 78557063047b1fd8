"""Read or generate a task's prompts as plain dictionaries."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cluster.errors import DataError
from distill.tasks.task import Task

BATCH_ROWS = 2048


def read_prompts(
    task: Task, *, sizes: dict[str, int], seed: int, skip_bad: bool
) -> Iterator[dict[str, Any]]:
    """Yield the prompts of the task's file, or as many generated or combined as the splits need.

    Each split is generated from a seed of its own, so that the test prompts stay the same ones
    when the training set grows; a grid keeps them as well. A line of a file that cannot be read is
    a DataError with its number and text, for every such line at once; with `skip_bad` the other
    lines are kept.
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
        # Imported late, because it reads its JSONL files with this module.
        from distill.prompts.grid import grid_prompts

        yield from grid_prompts(task, sizes=sizes, seed=seed)
        return
    path = task.folder / source.file
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; [prompts] file in {task.folder}/task.toml names it."
        )
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(BATCH_ROWS):
                yield from batch.to_pylist()
        return
    yield from iter_jsonl(path, skip_bad=skip_bad)


def read_jsonl(path: Path, *, skip_bad: bool = False) -> list[dict[str, Any]]:
    """Read a JSONL file of objects; blank lines do not count."""
    return list(iter_jsonl(path, skip_bad=skip_bad))


def iter_jsonl(path: Path, *, skip_bad: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file; at its end DataError for all lines that are none."""
    found = 0
    problems: list[str] = []
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            try:
                row = json.loads(raw.decode("utf-8"))
                if not isinstance(row, dict):
                    raise ValueError(f"a {type(row).__name__}, not an object")
            except ValueError as error:
                text = raw[:120].decode("utf-8", "replace").rstrip()
                problems.append(f"line {number}: {error}: {text}")
                continue
            found += 1
            yield row
    if problems and not skip_bad:
        shown = "\n  ".join(problems[:20])
        raise DataError(
            f"{path}: {len(problems)} line(s) cannot be read:\n  {shown}\n"
            "Mend them, or keep the other lines with --skip-bad."
        )
    if not found:
        raise DataError(f"{path} holds no prompt; put one JSON object on each line.")
