"""Read or generate a task's prompts as plain dictionaries."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from cluster.errors import DataError
from distill.tasks.task import Task


def read_prompts(task: Task, *, sizes: dict[str, int], seed: int, skip_bad: bool) -> list[Any]:
    """Return the prompts of the task's file, or as many generated or combined as the splits need.

    Each split is generated from a seed of its own, so that the test prompts stay the same ones
    when the training set grows; a grid keeps them as well. A line of a file that cannot be read is
    a DataError with its number and text, for every such line at once; with `skip_bad` the other
    lines are kept.
    """
    source = task.spec.prompts
    if source.generator:
        generate = task.function(source.generator)
        return [
            {**prompt, "split": split}
            for number, (split, size) in enumerate(sorted(sizes.items()))
            # Some to spare: a few fall out because another split has their combination.
            for prompt in generate(size + size // 10 + 10, 3 * seed + number)
        ]
    if source.grid is not None:
        # Imported late, because it reads its JSONL files with this module.
        from distill.prompts.grid import grid_prompts

        return grid_prompts(task, sizes=sizes, seed=seed)
    path = task.folder / source.file
    if not path.is_file():
        raise DataError(
            f"{path}: no such file; [prompts] file in {task.folder}/task.toml names it."
        )
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return list(pq.read_table(path).to_pylist())
    return read_jsonl(path, skip_bad=skip_bad)


def read_jsonl(path: Path, *, skip_bad: bool = False) -> list[dict[str, Any]]:
    """Read a JSONL file of objects; blank lines do not count."""
    rows: list[dict[str, Any]] = []
    problems: list[str] = []
    for number, raw in enumerate(path.read_bytes().split(b"\n"), start=1):
        if not raw.strip():
            continue
        try:
            row = json.loads(raw.decode("utf-8"))
            if not isinstance(row, dict):
                raise ValueError(f"a {type(row).__name__}, not an object")
        except ValueError as error:
            problems.append(f"line {number}: {error}: {raw[:120].decode('utf-8', 'replace')}")
            continue
        rows.append(row)
    if problems and not skip_bad:
        shown = "\n  ".join(problems[:20])
        raise DataError(
            f"{path}: {len(problems)} line(s) cannot be read:\n  {shown}\n"
            "Mend them, or keep the other lines with --skip-bad."
        )
    if not rows:
        raise DataError(f"{path} holds no prompt; put one JSON object on each line.")
    return rows
