"""Pick what the student should learn next: its failures, its doubts, and what it never saw."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np

from distill.config import JudgeVerify
from distill.curate.text import prompt_text
from distill.judge.judges import build_judge
from distill.relabel.config import RelabelConfig
from distill.tasks.task import Task

Row = dict[str, Any]
REASONS = ("parser", "verifier", "quality", "routed", "low_confidence", "uncovered")
"""Why a request is picked, in this order: the answer cannot be read, execution says it is wrong,
the gateway's checks refused it, it was predicted to be too hard and went elsewhere, the student was
unsure, no training prompt is like it."""
PASSED = "passed"
ROWS_PER_CLUSTER = 10


@dataclass(frozen=True)
class Pick:
    """One request that the teacher should answer."""

    row: Row
    reason: str
    detail: str


def pick(
    task: Task,
    config: RelabelConfig,
    rows: Sequence[Row],
    *,
    training: Sequence[Row],
    embed: Callable[[Sequence[str]], np.ndarray],
    min_score: float,
) -> list[Pick]:
    """Return the picks in the order of `REASONS`, at most `max_rows`.

    `rows` are `Candidates.rows`, `training` the prompts that the student learned from, `min_score`
    the verifier's score from which an answer is right.
    """
    elsewhere = [row for row in rows if row.get("routed_to")]
    own = [row for row in rows if not row.get("routed_to")]
    found = [Pick(row, "routed", f"to {row['routed_to']}") for row in elsewhere]
    found += [*_failures(task, own, min_score=min_score), *_doubts(task, own, config)]
    found += _uncovered(rows, training, config, embed)
    first: dict[str, Pick] = {}
    for one in sorted(found, key=lambda one: REASONS.index(one.reason)):
        first.setdefault(one.row["example_id"], one)
    return list(first.values())[: config.max_rows]


def least_training(config: RelabelConfig) -> int:
    """Return how many training prompts it takes to say that one is unlike all of them.

    Half of them set the limit: of n, a share of n / (n + 1) is the most that can be told.
    """
    return 2 * ceil(config.coverage / (1 - config.coverage) - 1e-9)


def _failures(task: Task, rows: Sequence[Row], *, min_score: float) -> Iterator[Pick]:
    readable = []
    for row in rows:
        problem = task.parse(row["student"]).problem
        if problem:
            yield Pick(row, "parser", problem)
        else:
            readable.append(row)
        if row["quality"] not in (None, "", PASSED):
            yield Pick(row, "quality", row["quality"])
    if not task.spec.verify:
        return
    # A prompt whose variables could not be read cannot be executed, and is no failure for it.
    checked = [row for row in readable if row["variables"] != "{}"]
    said = [{**row, "completion": row["student"]} for row in checked]
    verdicts = build_judge(JudgeVerify(), task).judge(said)
    for row, verdict in zip(checked, verdicts, strict=True):
        if verdict["score"] is not None and verdict["score"] < min_score:
            yield Pick(row, "verifier", verdict["reasoning"])


def _doubts(task: Task, rows: Sequence[Row], config: RelabelConfig) -> Iterator[Pick]:
    for row in rows:
        if row["mean_logprob"] is not None:
            if row["mean_logprob"] < config.min_mean_logprob:
                detail = f"mean log-probability {row['mean_logprob']:.3f}"
                yield Pick(row, "low_confidence", detail)
            continue
        answer = task.parse(row["student"]).answer or {}
        said = answer.get(config.confidence_field)
        if isinstance(said, (int, float)) and said < config.min_confidence:
            yield Pick(row, "low_confidence", f"{config.confidence_field} {said:g}")


def _uncovered(
    rows: Sequence[Row],
    training: Sequence[Row],
    config: RelabelConfig,
    embed: Callable[[Sequence[str]], np.ndarray],
) -> Iterator[Pick]:
    """Yield what lies further from every cluster than training prompts do, furthest first."""
    from sklearn.cluster import KMeans

    if not rows or len(training) < least_training(config):
        return
    vectors = embed([prompt_text(row) for row in (*training, *rows)])
    known, asked = vectors[: len(training)], vectors[len(training) :]
    # Clusters lie nearer to what they were fitted to than to anything new of the same kind, so the
    # limit comes from training prompts that they have not seen (split conformal prediction).
    order = np.random.default_rng(config.seed).permutation(len(known))
    fitted, unseen = known[order[: len(known) // 2]], known[order[len(known) // 2 :]]
    wanted = min(config.clusters, len(fitted) // ROWS_PER_CLUSTER, len(np.unique(fitted, axis=0)))
    clusters = KMeans(wanted, n_init="auto", random_state=config.seed).fit(fitted)
    near = np.sort(clusters.transform(unseen).min(axis=1))
    limit = float(near[ceil((len(near) + 1) * config.coverage) - 1])
    distances = clusters.transform(asked).min(axis=1)
    for place in np.argsort(-distances, kind="stable"):
        if distances[place] <= limit:
            return
        detail = f"{distances[place]:.3f} from the nearest cluster, training within {limit:.3f}"
        yield Pick(rows[place], "uncovered", detail)
