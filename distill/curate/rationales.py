"""Which reasoning is kept: only that whose answer turns out right. Pure.

Training on a chain of thought that ends in a wrong answer teaches the wrong step with it, so a
trace stands or falls with its answer (Zelikman et al. 2022, STaR).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from typing import Any

from distill.config import JudgeVerify
from distill.judge.judges import build_judge
from distill.tasks.task import Task

Row = dict[str, Any]


def check_rationales(rows: Sequence[Row], *, task: Task) -> tuple[list[Row], dict[str, Any] | None]:
    """Return the rows with the rationales that hold, and what became of the others.

    An answer holds if it agrees with the prompt's `reference` where there is one, and if the
    task's `verify` gives it 1.0 where there is one; with neither nothing can be verified. The
    answer of a row stays in any case: other steps decide about it. The report, `None` when no row
    has a rationale, is `{"given", "kept", "dropped": {reason: count}}`.
    """
    reasoned = [row for row in rows if row.get("rationale")]
    if not reasoned:
        return list(rows), None
    verified: dict[str, float | None] = {}
    if task.spec.verify:
        verdicts = build_judge(JudgeVerify(), task).judge(reasoned)
        verified = {
            row["request_key"]: verdict["score"]
            for row, verdict in zip(reasoned, verdicts, strict=True)
        }
    dropped: Counter[str] = Counter()
    checked = []
    for row in rows:
        problem = _problem(row, verified, task=task) if row.get("rationale") else ""
        dropped[problem] += bool(problem)
        checked.append({**row, "rationale": ""} if problem else row)
    counts = {reason: count for reason, count in dropped.most_common() if count}
    kept = len(reasoned) - sum(counts.values())
    return checked, {"given": len(reasoned), "kept": kept, "dropped": counts}


def _problem(row: Row, verified: dict[str, float | None], *, task: Task) -> str:
    has_reference = bool(row["reference"]) and bool(task.spec.score.fields)
    if not has_reference and not task.spec.verify:
        return "cannot be verified"
    if has_reference and not task.score(row["completion"], json.loads(row["reference"])).correct:
        return "another answer than the reference"
    if task.spec.verify and verified[row["request_key"]] != 1.0:
        return "not verified"
    return ""
