"""What asking cost: requests, retries by reason, tokens and dollars, by stage and model."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from typing import Any, Literal

from cluster.storage import Store

FILE = "bill.json"
Stage = Literal["prompts", "answers", "jury"]
"""What was asked for: prompts that a model wrote, answers of the teacher, verdicts."""


def keep_bill(store: Store, stage: Stage, entry: dict[str, Any]) -> None:
    """Write a stage's part of the run's `bill.json`: `{"stages": {stage: entry}, "usd"}`.

    An entry has `usd`, or `None` there where a price is not known; the sum then lacks it.
    """
    stages = store.read_json(FILE)["stages"] if store.exists(FILE) else {}
    stages[stage] = entry
    usd = round(sum(part["usd"] or 0.0 for part in stages.values()), 6)
    store.write_json(FILE, {"stages": stages, "usd": usd})


def paid_for(
    rows: Iterable[dict[str, Any]], *, requests: Collection[str], payer: str
) -> dict[str, float]:
    """Dollars that a run's requests cost by the journal; 0 for one that is not in it.

    Of several lines of a request the dearest counts: earlier ones were booked before.
    """
    paid = dict.fromkeys(requests, 0.0)
    for row in rows:
        if row["payer"] == payer and row["request_key"] in paid:
            paid[row["request_key"]] = max(paid[row["request_key"]], row["cost_usd"])
    return paid


def bill(
    rows: Iterable[dict[str, Any]], *, keys: set[str], payer: str, stage: Stage = "answers"
) -> dict[str, Any]:
    """Add up a journal: what this run paid in a stage, and what it found paid for by others.

    `keys` are the run's requests. Returns `{"models": {teacher: {...}}, "usd": paid by this run,
    "from_cache": answers that other runs had paid for}`; a model's entry has `answered`, `failed`
    and `retried` (each by reason), `requests`, `prompt_tokens`, `cached_tokens`,
    `completion_tokens` and `usd`. Requests in flight when a process was killed are not in it: the
    provider may have charged for them.
    """
    models: dict[str, dict[str, Any]] = {}
    from_cache: set[str] = set()
    paid: set[str] = set()
    for row in rows:
        if row.get("stage", "answers") != stage:
            continue
        if row["payer"] != payer:
            if row["request_key"] in keys and not row["error"]:
                from_cache.add(row["request_key"])
            continue
        entry = models.setdefault(
            row["teacher"],
            {
                "answered": 0, "failed": Counter(), "retried": Counter(), "requests": 0,
                "prompt_tokens": 0, "cached_tokens": 0, "completion_tokens": 0, "usd": 0.0,
            },
        )  # fmt: skip
        entry["requests"] += row["requests"] + len(row["retried"])
        entry["retried"].update(row["retried"])
        for name in ("prompt_tokens", "cached_tokens", "completion_tokens"):
            entry[name] += row[name]
        entry["usd"] += row["cost_usd"]
        if row["error"]:
            entry["failed"][row["failure"]] += 1
        else:
            entry["answered"] += 1
            paid.add(row["request_key"])
    for entry in models.values():
        entry["usd"] = round(entry["usd"], 6)
    return {
        "models": models,
        "usd": round(sum(entry["usd"] for entry in models.values()), 6),
        "from_cache": len(from_cache - paid),
    }
