"""Read or generate a task's prompts as plain dictionaries."""

from __future__ import annotations

from collections.abc import Iterator
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
    for _, row in numbered_jsonl(path, skip_bad=skip_bad, advice=SKIP_BAD):
        yield row
