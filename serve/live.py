"""What a gateway has seen in the last minutes, for its own page: no Prometheus is needed.

Fed where the metrics are fed. Latencies are counted in buckets 5% wide, so a quantile is off by at
most 2.5% of itself and memory does not grow with traffic (Masson, Rim & Lee, "DDSketch", VLDB
2019). Keys are names and versions from the registry: no client can add one.
"""

from __future__ import annotations

import math
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

GROWTH = 1.05
"""Upper bound of a latency bucket over its lower bound."""
SHORTEST_S = 1e-4
STEP_S = 5.0
NUM_STEPS = 60
QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}

Version = tuple[str, str]
"""Adapter and version, as the metrics' labels."""


class Quantiles:
    """Durations in geometric buckets."""

    def __init__(self) -> None:
        self._counts: Counter[int] = Counter()

    def add(self, seconds: float) -> None:
        """Count one."""
        self._counts[math.ceil(math.log(max(seconds, SHORTEST_S), GROWTH))] += 1

    def merge(self, other: Quantiles) -> None:
        """Count all of another's."""
        self._counts.update(other._counts)

    def __len__(self) -> int:
        return self._counts.total()

    def at(self, share: float) -> float | None:
        """Seconds below which `share` of them are; `None` of nothing."""
        left = share * len(self)
        for bucket, count in sorted(self._counts.items()):
            left -= count
            if left <= 0:
                # The point of a bucket that is off by the same ratio from both its ends.
                return 2 * GROWTH**bucket / (1 + GROWTH)
        return None

    def shown(self) -> dict[str, float | None]:
        """P50, P90 and P99 in seconds."""
        return {name: self.at(share) for name, share in QUANTILES.items()}


COUNTS = (
    "answered", "client_errors", "server_errors", "slo_misses", "prompt_tokens",
    "completion_tokens", "checked", "passed", "fallbacks", "left_late",
)  # fmt: skip


@dataclass
class Figures:
    """Counts and durations of one version over some time."""

    counts: Counter[str] = field(default_factory=Counter)
    latency: Quantiles = field(default_factory=Quantiles)
    first_token: Quantiles = field(default_factory=Quantiles)

    def merge(self, other: Figures) -> None:
        """Add another's."""
        self.counts.update(other.counts)
        self.latency.merge(other.latency)
        self.first_token.merge(other.first_token)

    def shown(self, *, seconds: float) -> dict[str, Any]:
        """As the page gets it; rates are over `seconds`."""
        found: dict[str, Any] = {name: self.counts[name] for name in COUNTS}
        requests = sum(self.counts[n] for n in ("answered", "client_errors", "server_errors"))
        answered = self.counts["answered"]
        return found | {
            "requests": requests,
            "requests_per_s": requests / seconds,
            "completion_tokens_per_s": self.counts["completion_tokens"] / seconds,
            "fallback_share": self.counts["fallbacks"] / answered if answered else None,
            "latency_s": self.latency.shown(),
            "ttft_s": self.first_token.shown(),
        }


@dataclass
class _Step:
    """What happened within one step of the window."""

    number: int
    of: dict[Version, Figures] = field(default_factory=dict)


class LiveFigures:
    """The last five minutes by version, in steps of five seconds, and dollars since the start."""

    def __init__(
        self, *, slo_p90_s: float = 0.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`clock` returns seconds that never go back."""
        self._slo_p90_s = slo_p90_s
        self._clock = clock
        self._started = clock()
        self._steps: deque[_Step] = deque(maxlen=NUM_STEPS)
        self._usd: dict[str, dict[str, float]] = {}

    def answered(
        self,
        version: Version,
        *,
        latency_s: float,
        ttft_s: float | None = None,
        prompt_tokens: int = 0,
        completion_tokens: int = 0,
    ) -> None:
        """A request was answered in full."""
        figures = self._now(version)
        figures.counts["answered"] += 1
        figures.counts["prompt_tokens"] += prompt_tokens
        figures.counts["completion_tokens"] += completion_tokens
        figures.latency.add(latency_s)
        if ttft_s is not None:
            figures.first_token.add(ttft_s)

    def failed(self, version: Version, *, status: int, left_late: bool = False) -> None:
        """A request was answered with an error, or not at all.

        `left_late` says that its client left once `slo_p90_s` had passed.
        """
        counts = self._now(version).counts
        counts["server_errors" if status >= 500 else "client_errors"] += 1
        counts["left_late"] += left_late

    def missed_objective(self, version: Version) -> None:
        """It was slower than `slo_p90_s`, or failed on the server's side, or was left later."""
        self._now(version).counts["slo_misses"] += 1

    def checked(self, version: Version, *, passed: bool) -> None:
        """The task's checks looked at an answer."""
        counts = self._now(version).counts
        counts["checked"] += 1
        counts["passed"] += passed

    def fell_back(self, version: Version) -> None:
        """Somebody else answered."""
        self._now(version).counts["fallbacks"] += 1

    def paid(self, adapter: str, *, teacher_usd: float = 0.0, saved_usd: float = 0.0) -> None:
        """Dollars spent on the teacher, or not."""
        usd = self._usd.setdefault(adapter, {"teacher_usd": 0.0, "saved_usd": 0.0})
        usd["teacher_usd"] += teacher_usd
        usd["saved_usd"] += saved_usd

    def _number(self) -> int:
        return int(self._clock() // STEP_S)

    def _now(self, version: Version) -> Figures:
        number = self._number()
        if not self._steps or self._steps[-1].number != number:
            self._steps.append(_Step(number))
        return self._steps[-1].of.setdefault(version, Figures())

    def snapshot(self) -> dict[str, Any]:
        """What `/admin/metrics` answers: versions, adapters, all, a point a step, dollars."""
        number = self._number()
        steps = [step for step in self._steps if step.number > number - NUM_STEPS]
        uptime_s = self._clock() - self._started
        window_s = max(1.0, min(NUM_STEPS * STEP_S, uptime_s))
        versions = _merged(item for step in steps for item in step.of.items())
        adapters = _merged((adapter, f) for (adapter, _), f in versions.items())
        return {
            "window_s": window_s,
            "uptime_s": uptime_s,
            "slo_p90_s": self._slo_p90_s or None,
            "all": _together(versions.values()).shown(seconds=window_s),
            "adapters": [
                {"adapter": adapter, **figures.shown(seconds=window_s)}
                for adapter, figures in sorted(adapters.items())
            ],
            "versions": [
                {"adapter": key[0], "version": key[1], **figures.shown(seconds=window_s)}
                for key, figures in sorted(versions.items())
            ],
            "steps": _points(steps, newest=number),
            "usd": {adapter: dict(usd) for adapter, usd in sorted(self._usd.items())},
        }


def _merged(items: Iterable[tuple[Any, Figures]]) -> dict[Any, Figures]:
    found: dict[Any, Figures] = {}
    for key, figures in items:
        found.setdefault(key, Figures()).merge(figures)
    return found


def _together(all_: Iterable[Figures]) -> Figures:
    return _merged(("all", figures) for figures in all_).get("all", Figures())


def _points(steps: list[_Step], *, newest: int) -> list[dict[str, Any]]:
    """One point a step, oldest first; the newest step is not over yet and is left out."""
    by_number = {step.number: step for step in steps}
    points = []
    for number in range(newest - NUM_STEPS + 1, newest):
        step = by_number.get(number)
        figures = _together(step.of.values() if step else ()).shown(seconds=STEP_S)
        points.append(
            {
                "age_s": (newest - number) * STEP_S,
                "requests_per_s": figures["requests_per_s"],
                "p90_s": figures["latency_s"]["p90"],
            }
        )
    return points
