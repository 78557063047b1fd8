"""How long a replica's newest requests took: what its autoscaling policy is told."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from serve.autoscale import WINDOW_S


class RecentLatencies:
    """Latencies of the requests that finished within the last `window_s` seconds."""

    def __init__(
        self, *, window_s: float = WINDOW_S, now: Callable[[], float] = time.monotonic
    ) -> None:
        self._window_s = window_s
        self._now = now
        self._finished: deque[tuple[float, float]] = deque()

    def add(self, latency_s: float) -> None:
        """Count a request that was just answered."""
        self._finished.append((self._now(), latency_s))
        self._forget()

    def stats(self) -> dict[str, float]:
        """Return `finished`, a count, and `p90_s` (nearest rank), 0 without a request."""
        self._forget()
        latencies = sorted(latency_s for _, latency_s in self._finished)
        p90_s = latencies[-(-9 * len(latencies) // 10) - 1] if latencies else 0.0
        return {"finished": float(len(latencies)), "p90_s": p90_s}

    def _forget(self) -> None:
        oldest = self._now() - self._window_s
        while self._finished and self._finished[0][0] < oldest:
            self._finished.popleft()
