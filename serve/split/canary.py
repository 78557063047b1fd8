"""When a canary ends: once it is shown to be within its bounds, or not to be.

Four rates are compared with those of the version it would replace, over the same time and by a
random share of the users, so that both see the same traffic: answers slower than `max_p90_ratio`
times the other's P90 (a P90 within that bound is a share of at most 10%), errors on the server's
side, answers that the checks refuse, answers that somebody else gave. Each rate of each version has
an interval that holds at every moment (`sequential.py`); the chances of error are shared out
evenly. The other's P90 is taken as measured, as if it were known exactly.

A client that left is a censored latency: its answer would have taken longer than it waited. It
counts once it waited longer than the bound that it is held against, and otherwise says nothing.
"""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from cluster.registry import CanaryBounds
from serve.split.sequential import rate_bounds

LATENCIES_KEPT = 5000
MOST_ERRORS = 0.5
"""Share of errors that ends a canary while the other version has too few requests to compare."""
SLOW_SHARE = 0.10
"""A P90 within a bound is at most this share of answers above it."""
CRITERIA = ("slow", "errors", "refused", "fallbacks")


@dataclass
class Arm:
    """What was seen of one version since the canary began."""

    requests: int = 0
    errors: int = 0
    refused: int = 0
    fallbacks: int = 0
    seen_s: deque[tuple[float, bool]] = field(default_factory=lambda: deque(maxlen=LATENCIES_KEPT))
    """How long a client waited, and whether for an answer or until it left."""

    def add(
        self, *, latency_s: float | None, error: bool, refused: bool = False, fallback: bool = False
    ) -> None:
        """Count a request; `latency_s` of an answered one."""
        self.requests += 1
        self.errors += error
        self.refused += refused
        self.fallbacks += fallback
        if latency_s is not None:
            self.seen_s.append((latency_s, True))

    def leave(self, elapsed_s: float) -> None:
        """Count a client that left before it had its answer."""
        self.seen_s.append((elapsed_s, False))

    @property
    def latencies_s(self) -> list[float]:
        """Of the answers that are kept."""
        return [seconds for seconds, answered in self.seen_s if answered]

    @property
    def p90_s(self) -> float | None:
        """P90 of the latency, seconds."""
        answered = self.latencies_s
        if not answered:
            return None
        of_answers = float(np.quantile(answered, 0.9))
        return float(np.quantile(answered + self._left_after(of_answers), 0.9))

    def slower_than(self, limit_s: float) -> tuple[int, int]:
        """How many took longer than `limit_s`, and of how many that is known."""
        answered, left = self.latencies_s, self._left_after(limit_s)
        slow = sum(seconds > limit_s for seconds in answered)
        return slow + len(left), len(answered) + len(left)

    def _left_after(self, limit_s: float) -> list[float]:
        return [seconds for seconds, answered in self.seen_s if not answered and seconds > limit_s]


@dataclass(frozen=True)
class Criterion:
    """One rate of the canary, and the most it may be."""

    name: str
    low: float
    high: float
    limit_low: float
    limit_high: float
    """The limit is known up to the other version's interval."""

    @property
    def holds(self) -> bool:
        """Shown to be within its limit."""
        return self.high <= self.limit_low

    @property
    def fails(self) -> bool:
        """Shown to be above its limit."""
        return self.low > self.limit_high


Action = Literal["wait", "promote", "roll_back"]


@dataclass(frozen=True)
class Decision:
    """What to do now, and what it rests on."""

    action: Action
    reason: str
    criteria: tuple[Criterion, ...] = ()

    def figures(self, canary: Arm, other: Arm) -> dict[str, object]:
        """What is kept in the alias's history."""
        return {
            "reason": self.reason,
            "requests": canary.requests,
            "requests_of_other": other.requests,
            "p90_s": canary.p90_s,
            "p90_s_of_other": other.p90_s,
            **{c.name: {"interval": [c.low, c.high], "limit": c.limit_low} for c in self.criteria},
        }


def decide(canary: Arm, other: Arm, bounds: CanaryBounds, *, hours: float) -> Decision:
    """Compare what was seen so far; `hours` is how long the canary has been running."""
    criteria = _criteria(canary, other, bounds)
    failed = [c.name for c in criteria if c.fails]
    if failed:
        return Decision("roll_back", f"out of bounds: {', '.join(failed)}", criteria)
    if hours >= bounds.max_hours:
        open_ = [c.name for c in criteria if not c.holds] or ["too few requests"]
        reason = f"undecided after {bounds.max_hours:g} hours: {', '.join(open_)}"
        return Decision("roll_back", reason, criteria)
    enough = min(canary.requests, other.requests) >= bounds.min_samples
    if enough and all(c.holds for c in criteria):
        return Decision("promote", "within bounds", criteria)
    return Decision("wait", "not enough requests to tell", criteria)


def _criteria(canary: Arm, other: Arm, bounds: CanaryBounds) -> tuple[Criterion, ...]:
    # One interval a rate and version. A wrong end needs one of them to miss.
    alpha = bounds.alpha / (2 * len(CRITERIA))
    margins = {
        "errors": bounds.max_more_errors,
        "refused": bounds.max_more_refused,
        "fallbacks": bounds.max_more_fallbacks,
    }
    found = [_latency(canary, other, bounds, alpha=alpha)]
    for name, margin in margins.items():
        low, high = rate_bounds(getattr(canary, name), canary.requests, alpha=alpha)
        base_low, base_high = rate_bounds(getattr(other, name), other.requests, alpha=alpha)
        most = base_high + margin
        if name == "errors" and other.requests < bounds.min_samples:
            # It may never get more: all traffic may be the canary's.
            most = min(most, max(MOST_ERRORS, margin))
        found.append(Criterion(name, low, high, base_low + margin, most))
    return tuple(found)


def _latency(canary: Arm, other: Arm, bounds: CanaryBounds, *, alpha: float) -> Criterion:
    p90_s = other.p90_s
    # A P90 of few answers is mostly chance. Clients that left may fill a part of what is kept.
    if p90_s is None or len(other.latencies_s) < min(bounds.min_samples, LATENCIES_KEPT // 2):
        return Criterion("slow", 0.0, 1.0, SLOW_SHARE, SLOW_SHARE)
    low, high = rate_bounds(*canary.slower_than(bounds.max_p90_ratio * p90_s), alpha=alpha)
    return Criterion("slow", low, high, SLOW_SHARE, SLOW_SHARE)
