"""The prompts of a run: read or generated, rendered, split, proved apart, written."""

from __future__ import annotations

from cluster.errors import StageError
from cluster.storage import Store, rows_table
from distill.config import PromptsConfig
from distill.prompts.source import read_prompts
from distill.prompts.split import Split, build_rows, contamination, split_rows
from distill.records import PROMPT
from distill.tasks.task import Task


def make_prompts(task: Task, config: PromptsConfig, *, store: Store) -> Split:
    """Write `prompts/<split>.parquet` and `prompts/contamination.json`; return the rows by split.

    Raises StageError if two splits share a prompt or a combination that the task keeps apart.
    """
    sizes = {"train": config.train, "validation": config.validation, "test": config.test}
    prompts = read_prompts(task, sizes=sizes, seed=config.seed, skip_bad=config.skip_bad)
    rows = build_rows(task, prompts)
    disjoint = task.spec.prompts.disjoint
    split = split_rows(rows, sizes=sizes, disjoint=disjoint, seed=config.seed)
    split.duplicates = len(prompts) - len(rows)
    report = contamination(split.rows, disjoint=disjoint)
    store.write_json("prompts/contamination.json", report)
    if not report["clean"]:
        raise StageError(
            f"splits share prompts: {report['shared']}; see prompts/contamination.json"
        )
    for name, members in split.rows.items():
        store.write_table(f"prompts/{name}.parquet", rows_table(members, PROMPT))
    return split
