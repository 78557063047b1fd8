"""The jury's verdicts on the curated records, and which records they keep."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from cluster.errors import StageError
from cluster.storage import Store, digest_of
from distill.batches import Progress, map_to_parquet
from distill.config import JuryConfig
from distill.judge.judges import AnyJudge, build_judge
from distill.records import VERDICT
from distill.tasks.task import Task, load_task


def overall_scores(verdicts: Sequence[dict[str, Any]]) -> dict[str, float]:
    """Score of each example: mean over judges per dimension, then the plain mean over dimensions.

    A judge's failure does not count; an example that no judge could score is not in the result.
    """
    scores: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in verdicts:
        if row["score"] is not None:
            scores[row["example_id"]][row["dimension"]].append(row["score"])
    return {
        example: fmean(fmean(values) for values in dimensions.values())
        for example, dimensions in scores.items()
    }


def judge(
    task: Task,
    config: JuryConfig,
    *,
    records: Sequence[dict[str, Any]],
    store: Store,
    on_progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Write `verdicts/*.parquet` and return the records that reach `min_score`.

    Records that already have a verdict of a judge are not judged by it again.
    """
    for member in config.judges:
        folder = f"verdicts/{_key(member)}"
        known = _scored(store, folder)
        missing = [row for row in records if row["example_id"] not in known]
        map_to_parquet(
            missing,
            make_worker=_worker(str(task.folder), member),
            store=store / folder,
            schema=VERDICT,
            batch_size=256 if member.kind == "verify" else 4 * member.concurrency,
            on_progress=on_progress,
        )
    kept = accepted(records, config, store=store)
    if not kept:
        raise StageError(
            f"no record of {len(records)} reaches jury.min_score {config.min_score}; see verdicts/."
        )
    return kept


def accepted(
    records: Sequence[dict[str, Any]], config: JuryConfig, *, store: Store
) -> list[dict[str, Any]]:
    """Return the records whose verdicts on disk reach `min_score`."""
    folders = [f"verdicts/{_key(member)}" for member in config.judges]
    scores = overall_scores([row for folder in folders for row in store.read_rows(folder)])
    return [row for row in records if scores.get(row["example_id"], -1.0) >= config.min_score]


def _key(member: AnyJudge) -> str:
    return digest_of(member.model_dump(exclude={"concurrency", "api_key_env"}))[:12]


def _scored(store: Store, folder: str) -> set[str]:
    if not store.names(folder):
        return set()
    return {row["example_id"] for row in store.read_rows(folder) if row["score"] is not None}


def _worker(
    folder: str, config: AnyJudge
) -> Callable[[], Callable[[list[dict[str, Any]]], list[dict[str, Any]]]]:
    def make() -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
        return build_judge(config, load_task(Path(folder))).judge

    return make
