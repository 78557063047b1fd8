"""Curate the answers: run the checks in order, drop exact duplicates, write both sides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import StageError
from cluster.storage import Store, digest_of, rows_table
from distill.config import CurateConfig
from distill.curate.checks import checks
from distill.records import COMPLETION, REJECTED
from distill.tasks.task import Task


@dataclass
class Curated:
    """What was kept, what was rejected and why, and the yield of each step."""

    kept: list[dict[str, Any]] = field(default_factory=list)
    rejected: list[dict[str, Any]] = field(default_factory=list)
    steps: list[dict[str, Any]] = field(default_factory=list)


def curate_rows(rows: Sequence[dict[str, Any]], config: CurateConfig, *, task: Task) -> Curated:
    """Run every check over all rows that passed the ones before; the first failure is the reason.

    Each step is `{"check", "rows_in", "rows_out", "share"}`; share is rows_out ÷ rows_in.
    """
    result = Curated()
    current = list(rows)
    for reason, check in checks(config, task):
        passed = []
        for row in current:
            detail = check(row)
            if detail is None:
                passed.append(row)
            else:
                result.rejected.append({**row, "reason": reason, "detail": detail})
        result.steps.append(_step(reason, len(current), len(passed)))
        current = passed
    first: dict[str, str] = {}
    for row in current:
        # The same prompt and answer but for case and white space teaches nothing twice.
        key = digest_of([[m["content"] for m in row["messages"]], _plain(row["completion"])])
        original = first.setdefault(key, row["example_id"])
        if original == row["example_id"]:
            result.kept.append(row)
        else:
            detail = f"same as {original}"
            result.rejected.append({**row, "reason": "duplicate", "detail": detail})
    result.steps.append(_step("duplicate", len(current), len(result.kept)))
    return result


def curate(
    answers: Sequence[dict[str, Any]], config: CurateConfig, *, task: Task, store: Store
) -> Curated:
    """Write `curated/<split>.parquet`, `rejected/<split>.parquet` and `yield.json`.

    Raises StageError, with the yield, when a split ends empty.
    """
    result = Curated()
    report: dict[str, Any] = {}
    for split in ("train", "validation"):
        part = curate_rows([r for r in answers if r["split"] == split], config, task=task)
        reasons = Counter(row["reason"] for row in part.rejected)
        report[split] = {
            "rows_in": len(part.kept) + len(part.rejected),
            "rows_out": len(part.kept),
            "rejected": dict(reasons.most_common()),
            "steps": part.steps,
        }
        store.write_table(f"curated/{split}.parquet", rows_table(part.kept, COMPLETION))
        store.write_table(f"rejected/{split}.parquet", rows_table(part.rejected, REJECTED))
        result.kept += part.kept
        result.rejected += part.rejected
        result.steps += [{"split": split, **step} for step in part.steps]
    store.write_json("yield.json", report)
    empty = [split for split, part in report.items() if not part["rows_out"]]
    if empty:
        raise StageError(
            f"nothing of {' and '.join(empty)} passed the checks: "
            f"{ {split: report[split]['rejected'] for split in empty} }; rejected/ has every row."
        )
    return result


def _step(check: str, rows_in: int, rows_out: int) -> dict[str, Any]:
    share = round(rows_out / rows_in, 4) if rows_in else None
    return {"check": check, "rows_in": rows_in, "rows_out": rows_out, "share": share}


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
