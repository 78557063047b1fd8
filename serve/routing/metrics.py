"""Counter of what was routed by difficulty, through Ray's metrics agent."""

from __future__ import annotations

from ray.util.metrics import Counter

from cluster import metrics as names


class RoutingMetrics:
    """Made once a gateway process. No label comes from a client."""

    def __init__(self) -> None:
        self._routed = Counter(
            names.ROUTED,
            description="Prompts whose difficulty was looked at, by who was asked and why: easy, "
            "hard, or why a hard one stayed with the student.",
            tag_keys=("adapter", "destination", "reason"),
        )

    def routed(self, adapter: str, *, destination: str, reason: str) -> None:
        """A prompt was looked at."""
        tags = {"adapter": adapter, "destination": destination, "reason": reason}
        self._routed.inc(1, tags=tags)
