"""Best-of-n: of several answers to one prompt the jury keeps the best."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from cluster.storage import Store
from distill.batches import Progress
from distill.config import JuryConfig
from distill.judge.stage import overall_scores, score
from distill.records import COMPLETION, answer_id
from distill.tasks.task import Task

CANDIDATE = pa.schema(
    [
        *COMPLETION,
        ("score", pa.float64()),  # the jury's; null where it was not asked or could not say
        ("chosen", pa.bool_()),
    ]
)

Row = dict[str, Any]


def choose(
    task: Task,
    config: JuryConfig,
    *,
    candidates: Sequence[Row],
    store: Store,
    on_progress: Progress | None = None,
) -> list[Row]:
    """Return the candidates with `score` and `chosen`, one chosen for each prompt.

    An answer that can be read beats one that cannot; the jury is asked only where several
    different ones remain. The first of equal ones stays. Verdicts are kept beside those of the
    curation, so the answers chosen here are not judged again there.
    """
    by_prompt: dict[str, list[Row]] = defaultdict(list)
    for row in candidates:
        by_prompt[row["example_id"]].append(row)
    contested: dict[str, list[Row]] = {}
    for prompt, rows in by_prompt.items():
        readable = [row for row in rows if not task.parse(row["completion"]).problem]
        contested[prompt] = _different(readable or rows)
    judged = [row for rows in contested.values() if len(rows) > 1 for row in rows]
    scores: dict[str, float] = {}
    if judged:
        scores = overall_scores(
            score(task, config, records=judged, store=store, on_progress=on_progress)
        )
    best = {
        # max keeps the first of equal ones.
        answer_id(max(rows, key=lambda row: scores.get(answer_id(row), -1.0)))
        for rows in contested.values()
    }
    return [
        {**row, "score": scores.get(answer_id(row)), "chosen": answer_id(row) in best}
        for row in candidates
    ]


def _different(rows: Sequence[Row]) -> list[Row]:
    first: dict[str, Row] = {}
    for row in rows:
        first.setdefault(" ".join(row["completion"].split()), row)
    return list(first.values())
