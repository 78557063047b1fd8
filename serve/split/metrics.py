"""Metrics of canaries, A/B tests and shadows, through Ray's metrics agent."""

from __future__ import annotations

from ray.util.metrics import Counter, Gauge

from cluster import metrics as names
from cluster.registry import Split
from serve.routes import Alias


class SplitMetrics:
    """Canaries, A/B tests and shadows by alias; a handful of series."""

    def __init__(self) -> None:
        keys = ("adapter", "alias", "mode")
        self._weight = Gauge(
            names.SPLIT_WEIGHT,
            description="Share of a running split's second version; 0 once it has ended.",
            tag_keys=keys,
        )
        self._requests = Gauge(
            names.SPLIT_REQUESTS,
            description="Requests that the second version of a running split has had.",
            tag_keys=keys,
        )
        self._ended = Counter(
            names.CANARIES_ENDED,
            description="Canaries by how they ended: promote or roll_back.",
            tag_keys=("adapter", "alias", "outcome"),
        )
        self._modes: dict[Alias, str] = {}

    def running(self, alias: Alias, split: Split, *, requests: int) -> None:
        """A split is live."""
        self._modes[alias] = split.mode
        tags = _of_split(alias, split.mode)
        self._weight.set(split.weight, tags=tags)
        self._requests.set(requests, tags=tags)

    def ended(self, alias: Alias) -> None:
        """It no longer is."""
        if mode := self._modes.pop(alias, None):
            self._weight.set(0.0, tags=_of_split(alias, mode))
            self._requests.set(0, tags=_of_split(alias, mode))

    def decided(self, alias: Alias, outcome: str) -> None:
        """A canary ended by itself."""
        tags = {"adapter": alias.name, "alias": alias.alias, "outcome": outcome}
        self._ended.inc(1, tags=tags)


def _of_split(alias: Alias, mode: str) -> dict[str, str]:
    return {"adapter": alias.name, "alias": alias.alias, "mode": mode}
