"""Counters of checks and fallbacks, through Ray's metrics agent. No label comes from a client."""

from __future__ import annotations

from ray.util.metrics import Counter

from cluster import metrics as names
from serve.live import LiveFigures

Labels = dict[str, str]
OF_VERSION = ("adapter", "version")


class QualityMetrics:
    """Made once a gateway process."""

    def __init__(self, live: LiveFigures) -> None:
        """`live` gets what the gateway's own page shows."""
        self._live = live
        self._checks = Counter(
            names.QUALITY_CHECKS,
            description="Checked answers: passed, or why the student's answer was refused.",
            tag_keys=(*OF_VERSION, "outcome"),
        )
        self._steps = Counter(
            names.FALLBACK_STEPS,
            description="Steps taken after a refused answer, and what came of them.",
            tag_keys=(*OF_VERSION, "step", "outcome"),
        )
        self._fallbacks = Counter(
            names.FALLBACKS,
            description="Refused answers by reason and by who answered instead (or nobody).",
            tag_keys=(*OF_VERSION, "reason", "answered_by"),
        )
        self._spent = Counter(
            names.TEACHER_USD, description="Dollars spent on the teacher.", tag_keys=("adapter",)
        )
        self._saved = Counter(
            names.SAVED_USD,
            description="What the teacher would have cost for what the student answered, dollars "
            "by the student's count of tokens.",
            tag_keys=("adapter",),
        )

    def checked(self, labels: Labels, outcome: str) -> None:
        """An answer was looked at."""
        self._live.checked((labels["adapter"], labels["version"]), passed=outcome == "passed")
        self._checks.inc(1, tags=_of_version(labels) | {"outcome": outcome})

    def step(self, labels: Labels, *, step: str, outcome: str) -> None:
        """A step was taken."""
        self._steps.inc(1, tags=_of_version(labels) | {"step": step, "outcome": outcome})

    def fell_back(self, labels: Labels, *, reason: str, answered_by: str) -> None:
        """A refused answer reached its end."""
        if answered_by != "nobody":
            self._live.fell_back((labels["adapter"], labels["version"]))
        tags = _of_version(labels) | {"reason": reason, "answered_by": answered_by}
        self._fallbacks.inc(1, tags=tags)

    def spent(self, adapter: str, usd: float) -> None:
        """The teacher was paid."""
        if usd > 0:
            self._live.paid(adapter, teacher_usd=usd)
            self._spent.inc(usd, tags={"adapter": adapter})

    def saved(self, adapter: str, usd: float) -> None:
        """The teacher was not needed."""
        if usd > 0:
            self._live.paid(adapter, saved_usd=usd)
            self._saved.inc(usd, tags={"adapter": adapter})


def _of_version(labels: Labels) -> Labels:
    return {key: labels[key] for key in OF_VERSION}
