"""From predictions to `routing.json`: learn, judge the predictor, draw the curve, pick."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from cluster.difficulty import FORMAT, TEACHER, VERSION
from distill.evaluate.metrics import Bootstrap
from distill.route.chance import LEVEL
from distill.route.curve import Outcomes, Point, Wish, cost_quality, pick
from distill.route.labels import HeldOut, Logged
from distill.route.learn import LEAST_OF_EACH, learn
from distill.route.worth import worth

MOST_CELLS = 20_000_000
"""Resamples times prompts that are held in memory."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """What the file is about."""

    task: str
    task_digest: str
    adapter: str
    """Name the student is published under."""
    base_model: str
    student: str
    """Name of the run's folder."""
    other: str = TEACHER
    """`teacher`, or the name of the run whose student is the other model."""
    student_usd: float | None = None
    """Dollars per 1,000 requests."""
    other_usd: float | None = None
    teacher_is_reference: bool = False
    """The right answers are the teacher's own."""


def route(
    held: HeldOut, more: Logged, *, subject: Subject, wish: Wish, samples: int, seed: int
) -> Row:
    """Return what `routing.json` holds.

    Where the predictor ranks no better than chance, or one model alone is the pick, `threshold` is
    `None`, `recommended` false, and `reason` says why. `model` is `None` where there were too few
    answers of either kind to learn from. ConfigError for a wish that cannot be granted.
    """
    num_wrong = sum(held.wrong)
    found: Row = {
        "format": FORMAT,
        "version": VERSION,
        "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "task": subject.task,
        "task_digest": subject.task_digest,
        "adapter": subject.adapter,
        "student": subject.student,
        "base_model": subject.base_model,
        "to": subject.other,
        "usd_per_1k": {"student": subject.student_usd, "other": subject.other_usd},
        "recommended": False,
        "reason": "",
        "threshold": None,
        "picked": None,
        "labels": {
            "held_out": len(held.wrong),
            "held_out_wrong": num_wrong,
            "logged": len(more.rows),
            "logged_wrong": sum(label for _, label in more.rows),
            "left_out": dict(more.left_out),
        },
        "worth": None,
        "curve": [],
        "notes": _notes(held, subject),
        "model": None,
    }
    if min(num_wrong, len(held.wrong) - num_wrong) < LEAST_OF_EACH:
        return found | {
            "reason": f"the student got {num_wrong} of {len(held.wrong)} held-out prompts wrong; "
            f"at least {LEAST_OF_EACH} wrong and right ones are needed to learn from"
        }
    learned = learn(held.texts, held.wrong, more=more.rows, seed=seed)
    wrong = np.asarray(held.wrong, dtype=np.float64)
    figures = worth(
        learned.scores,
        learned.honest,
        wrong,
        _bootstrap(len(wrong), samples, seed),
        p_value=learned.p_value,
    )
    found |= {
        "worth": figures | {"folds": learned.folds},
        "model": learned.model.model_dump(mode="json"),
    }
    known = np.array([right is not None for right in held.other_right])
    if not known.any():
        return found | {"reason": f"no held-out prompt has a prediction of {subject.other}"}
    outcomes = Outcomes(
        probabilities=learned.probabilities[known],
        student=1 - wrong[known],
        other=np.array([float(r) for r in held.other_right if r is not None]),
        student_usd=subject.student_usd,
        other_usd=subject.other_usd,
    )
    curve = cost_quality(outcomes, _bootstrap(int(known.sum()), samples, seed))
    point, rule = pick(curve, wish)
    return (
        found | {"curve": curve, "picked": {"rule": rule, **point}} | _verdict(found, point, rule)
    )


def _bootstrap(num_rows: int, samples: int, seed: int) -> Bootstrap:
    return Bootstrap(num_rows, samples=max(1, min(samples, MOST_CELLS // num_rows)), seed=seed)


def _verdict(found: Row, point: Point, rule: str) -> Row:
    figures = found["worth"]
    low, high = figures["auc_ci95"] or (0.0, 1.0)
    if not figures["better_than_chance"]:
        return {
            "reason": "which prompts the student gets wrong is predicted no better than by chance: "
            f"AUC {figures['auc']:.2f} ({low:.2f} to {high:.2f}, chance is 0.5), p "
            f"{figures['p_value']:.2g} where {LEVEL:g} is asked for"
        }
    if point["threshold"] is None:
        return {"reason": f"the student alone is the {rule}"}
    if point["share"] == 1.0:
        return {"reason": f"{found['to']} alone is the {rule}"}
    return {"recommended": True, "reason": rule, "threshold": point["threshold"]}


def _notes(held: HeldOut, subject: Subject) -> list[str]:
    notes = []
    if subject.teacher_is_reference and subject.other == TEACHER:
        notes.append(
            "The teacher's answers are the reference, so its accuracy is 1.0 by definition."
        )
    if all(right in (True, None) for right in held.other_right):
        notes.append(
            f"{subject.other} was right about every prompt: its true share may still be up to 3/n "
            "lower (rule of three), and an interval around 1 collapses."
        )
    unknown = sum(right is None for right in held.other_right)
    if unknown:
        notes.append(
            f"{unknown} prompts have no prediction of {subject.other}: the curve is without them."
        )
    if subject.student_usd is None or subject.other_usd is None:
        notes.append(
            "A price is not known, so the cheapest is taken to be what sends the fewest away."
        )
    notes.append(
        "Everything is out of fold: no prompt was scored by a model that had seen its answer. The "
        "threshold is picked on the same prompts, which flatters it a little."
    )
    return notes
