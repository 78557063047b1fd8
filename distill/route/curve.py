"""Cost against quality: what every threshold sends elsewhere, pays and gets right."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.errors import ConfigError
from distill.evaluate.metrics import Bootstrap, interval

Floats = NDArray[np.float64]
Point = dict[str, Any]

MOST_POINTS = 60
WITHIN = 0.01
"""Accuracy that the default gives away for a lower price."""


@dataclass(frozen=True)
class Outcomes:
    """Of the held-out prompts, in one order."""

    probabilities: Floats
    """Out of fold, that the student is wrong."""
    student: Floats
    """1 where it was right."""
    other: Floats
    """1 where the other model was."""
    student_usd: float | None
    """Dollars per 1,000 requests; `None`: not known."""
    other_usd: float | None

    @property
    def is_priced(self) -> bool:
        """Whether both prices are known."""
        return self.student_usd is not None and self.other_usd is not None


def cost_quality(outcomes: Outcomes, bootstrap: Bootstrap) -> list[Point]:
    """Return the points from the student alone to the other alone.

    `threshold` sends every prompt of at least this probability away; `None` sends none, 0 all.
    Intervals are of prompts drawn anew, with the threshold kept. `random_accuracy` is that of as
    many prompts picked blindly, `gain` the difference.
    """
    found = np.unique(outcomes.probabilities)[::-1]
    if len(found) > MOST_POINTS:
        found = found[np.unique(np.linspace(0, len(found) - 1, MOST_POINTS).astype(int))]
    thresholds: list[float | None] = [None, *(float(value) for value in found[:-1]), 0.0]
    return [_point(outcomes, threshold, bootstrap) for threshold in thresholds]


def _point(outcomes: Outcomes, threshold: float | None, bootstrap: Bootstrap) -> Point:
    num = len(outcomes.student)
    away = (
        np.zeros(num)
        if threshold is None
        else (outcomes.probabilities >= threshold).astype(np.float64)
    )
    right = np.where(away == 1, outcomes.other, outcomes.student)
    share_S = bootstrap.sums(away) / num
    right_S = bootstrap.sums(right) / num
    blind_S = _mixed(
        share_S, bootstrap.sums(outcomes.student) / num, bootstrap.sums(outcomes.other) / num
    )
    share = float(away.mean())
    blind = _mixed(share, float(outcomes.student.mean()), float(outcomes.other.mean()))
    point: Point = {
        "threshold": threshold,
        "share": share,
        "share_ci95": interval(share_S),
        "accuracy": float(right.mean()),
        "accuracy_ci95": interval(right_S),
        "usd_per_1k": None,
        "usd_per_1k_ci95": None,
        "random_accuracy": blind,
        "gain": float(right.mean()) - blind,
        "gain_ci95": interval(right_S - blind_S),
    }
    if outcomes.student_usd is not None and outcomes.other_usd is not None:
        prices = (outcomes.student_usd, outcomes.other_usd)
        point["usd_per_1k"] = _mixed(share, *prices)
        point["usd_per_1k_ci95"] = interval(_mixed(share_S, *prices))
    return point


def _mixed(share: Any, student: Any, other: Any) -> Any:
    return (1 - share) * student + share * other


@dataclass(frozen=True)
class Wish:
    """What the threshold is picked by; at most one is given."""

    max_usd_per_1k: float | None = None
    min_quality: float | None = None
    teacher_share: float | None = None

    def __post_init__(self) -> None:
        given = {name: value for name, value in vars(self).items() if value is not None}
        if len(given) > 1:
            names = ", ".join(f"--{name.replace('_', '-')}" for name in given)
            raise ConfigError(f"{names}: give one of them; each picks the threshold by itself.")
        for name in ("min_quality", "teacher_share"):
            value = given.get(name)
            if value is not None and not 0 <= value <= 1:
                flag = f"--{name.replace('_', '-')}"
                raise ConfigError(f"{flag} {value:g}: give a share from 0 to 1, such as 0.05.")
        usd = given.get("max_usd_per_1k")
        if usd is not None and not usd > 0:
            raise ConfigError(f"--max-usd-per-1k {usd:g}: give dollars above 0.")


def pick(curve: Sequence[Point], wish: Wish) -> tuple[Point, str]:
    """Return the point that the wish picks, and the rule in words.

    ConfigError for a wish that no point grants, with the nearest that one does.
    """
    if wish.max_usd_per_1k is not None:
        most = wish.max_usd_per_1k
        if curve[0]["usd_per_1k"] is None:
            raise ConfigError(
                f"--max-usd-per-1k {most:g}: the prices are not known; give teacher.price and "
                "evaluate.self_hosted_usd_per_hour and evaluate again, or use --teacher-share."
            )
        rule = f"most accurate for at most ${most:g} per 1,000 requests"
        return _best(curve, lambda point: point["usd_per_1k"] <= most, rule=rule,
                     nearest=f"the cheapest costs ${min(p['usd_per_1k'] for p in curve):.4g}",
                     asked=f"--max-usd-per-1k {most:g}"), rule  # fmt: skip
    if wish.teacher_share is not None:
        share = wish.teacher_share
        rule = f"most accurate with at most {share:.1%} sent away"
        return _best(curve, lambda point: point["share"] <= share, rule=rule,
                     nearest="", asked=f"--teacher-share {share:g}"), rule  # fmt: skip
    best = max(point["accuracy"] for point in curve)
    if wish.min_quality is not None:
        least = wish.min_quality
        rule = f"cheapest with an accuracy of at least {least:.1%}"
        asked = f"--min-quality {least:g}"
    else:
        least = best - WITHIN
        rule = f"cheapest within {100 * WITHIN:g} point of the best reachable, {best:.1%}"
        asked = "the default"
    good = [point for point in curve if point["accuracy"] >= least - 1e-12]
    if not good:
        raise ConfigError(f"{asked}: no threshold reaches it; the best is {best:.4g}.")
    return min(good, key=_price), rule


def _best(
    curve: Sequence[Point],
    allowed: Callable[[Point], bool],
    *,
    rule: str,
    nearest: str,
    asked: str,
) -> Point:
    good = [point for point in curve if allowed(point)]
    if not good:
        raise ConfigError(f"{asked}: no threshold keeps to it; {nearest}.")
    return min(good, key=lambda point: (-point["accuracy"], *_price(point)))


def _price(point: Point) -> tuple[float, float]:
    """By dollars; where they are not known the other model is taken for the dearer."""
    usd = point["usd_per_1k"]
    return (0.0 if usd is None else usd, point["share"])
