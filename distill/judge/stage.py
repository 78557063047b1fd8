"""The jury's verdicts on the curated records, and which records they keep."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cluster.errors import StageError
from cluster.storage import Store, digest_of
from distill.batches import Progress, map_to_parquet
from distill.config import JudgeLiteLLM, JuryConfig
from distill.judge.agreement import agreement
from distill.judge.judges import AnyJudge, build_judge, judge_name
from distill.records import VERDICT, answer_id
from distill.tasks.task import Task, load_task
from distill.teach.bill import keep_bill

AGREEMENT_FILE = "agreement.json"
# What changes no score.
NEUTRAL = {"concurrency", "api_key_env", "timeout_s", "max_retries", "price"}


def overall_scores(verdicts: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Score by `answer_id`: mean over judges per dimension, then the plain mean over dimensions.

    A judge's failure does not count; an answer that no judge could score is not in the result.
    """
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in verdicts:
        if row["score"] is not None:
            scores[answer_id(row)][row["dimension"]].append(row["score"])
    return {
        answer: fmean(fmean(values) for values in dimensions.values())
        for answer, dimensions in scores.items()
    }


def judge(
    task: Task,
    config: JuryConfig,
    *,
    records: Sequence[dict[str, Any]],
    store: Store,
    on_progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Write `verdicts/*.parquet` and `agreement.json`; return what reaches `min_score`."""
    verdicts = score(task, config, records=records, store=store, on_progress=on_progress)
    store.write_json(AGREEMENT_FILE, agreement(verdicts))
    kept = _accepted(records, verdicts, config)
    if not kept:
        raise StageError(
            f"no record of {len(records)} reaches jury.min_score {config.min_score}; see verdicts/."
        )
    return kept


def score(
    task: Task,
    config: JuryConfig,
    *,
    records: Sequence[dict[str, Any]],
    store: Store,
    on_progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Write `verdicts/*.parquet`; return the verdicts on these records.

    Answers that already have a verdict of a judge are not judged by it again. A judge that could
    score nothing at all is a StageError with its commonest error, not a jury of one fewer.
    """
    for member in config.judges:
        folder = verdict_folder(member)
        known = _scored(store, folder)
        missing = [row for row in records if answer_id(row) not in known]
        map_to_parquet(
            missing,
            make_worker=_worker(str(task.folder), member),
            store=store / folder,
            schema=VERDICT,
            batch_size=4 * member.concurrency if isinstance(member, JudgeLiteLLM) else 256,
            on_progress=on_progress,
        )
        _require_scores(store, folder, judge=judge_name(member))
    keep_bill(store, "jury", _bill(config, store=store))
    return _verdicts(records, config, store=store)


def _bill(config: JuryConfig, *, store: Store) -> dict[str, Any]:
    """What the judges' verdicts cost, those on answers that were not chosen among them."""
    models: dict[str, Any] = {}
    for member in config.judges:
        rows = store.read_rows(verdict_folder(member))
        costs = [row["cost_usd"] for row in rows]
        models[judge_name(member)] = {
            "verdicts": len(rows),
            "failed": sum(row["score"] is None for row in rows),
            # A judge whose price nobody knows is not free.
            "usd": None if None in costs else round(sum(costs), 6),
        }
    known = [entry["usd"] for entry in models.values()]
    return {"models": models, "usd": None if None in known else round(sum(known), 6)}


def accepted(
    records: Sequence[dict[str, Any]], config: JuryConfig, *, store: Store
) -> list[dict[str, Any]]:
    """Return the records whose verdicts on disk reach `min_score`."""
    return _accepted(records, _verdicts(records, config, store=store), config)


def verdict_folder(member: AnyJudge) -> str:
    """Folder of a judge's verdicts in the run: one for everything that can change its scores."""
    return f"verdicts/{digest_of(member.model_dump(exclude=NEUTRAL))[:12]}"


def _accepted(
    records: Sequence[dict[str, Any]], verdicts: Sequence[dict[str, Any]], config: JuryConfig
) -> list[dict[str, Any]]:
    scores = overall_scores(verdicts)
    return [row for row in records if scores.get(answer_id(row), -1.0) >= config.min_score]


def _verdicts(
    records: Sequence[dict[str, Any]], config: JuryConfig, *, store: Store
) -> list[dict[str, Any]]:
    ids = {answer_id(row) for row in records}
    return [
        row
        for member in config.judges
        for row in store.read_rows(verdict_folder(member))
        if answer_id(row) in ids
    ]


def _require_scores(store: Store, folder: str, *, judge: str) -> None:
    rows = store.read_rows(folder)
    if rows and all(row["score"] is None for row in rows):
        error, count = Counter(row["error"] for row in rows).most_common(1)[0]
        raise StageError(
            f"jury: {judge} gave no verdict on any record; the commonest error, {count} times: "
            f"{error}. Mend it and run again, or take the judge out of jury.judges."
        )


def _scored(store: Store, folder: str) -> set[str]:
    if not store.names(folder):
        return set()
    return {answer_id(row) for row in store.read_rows(folder) if row["score"] is not None}


def _worker(
    folder: str, config: AnyJudge
) -> Callable[[], Callable[[list[dict[str, Any]]], list[dict[str, Any]]]]:
    def make() -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
        return build_judge(config, load_task(Path(folder))).judge

    return make
