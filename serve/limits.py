"""Limits of one key over time: a token bucket for each minute's limit.

Time is the monotonic clock, so a wall clock that is set forward or back changes nothing.
"""

from __future__ import annotations

import time
from collections.abc import Callable

from serve.keys import Key

Clock = Callable[[], float]


class TokenBucket:
    """Holds a minute's worth, refills steadily (Turner, "New directions in communications", 1986).

    What turned out to be more than was taken may be taken afterwards: the level is then negative
    and the bucket refuses until it has refilled.
    """

    def __init__(self, per_minute: float, *, clock: Clock = time.monotonic):
        self.per_minute = per_minute
        self._clock = clock
        self._level = per_minute
        self._at = clock()

    @property
    def level(self) -> float:
        """What can be taken now."""
        now = self._clock()
        self._level = min(
            self.per_minute, self._level + max(0.0, now - self._at) * self.per_minute / 60
        )
        self._at = now
        return self._level

    def wait_s(self, amount: float) -> float:
        """Seconds until `amount` can be taken, 0 if at once; more than a minute's worth is cut."""
        missing = min(amount, self.per_minute) - self.level
        return max(0.0, missing * 60 / self.per_minute)

    def take(self, amount: float) -> None:
        """Take `amount`, or give back a negative one, whatever the level."""
        self._level = min(self.per_minute, self.level - amount)


class KeyLimits:
    """The buckets of one key; `None` where it has no limit."""

    def __init__(self, key: Key, *, clock: Clock = time.monotonic):
        self.of = (key.requests_per_minute, key.tokens_per_minute)
        requests, tokens = self.of
        self.requests = TokenBucket(requests, clock=clock) if requests else None
        self.tokens = TokenBucket(tokens, clock=clock) if tokens else None

    def headers(self) -> dict[str, str]:
        """OpenAI's rate limit headers."""
        found: dict[str, str] = {}
        for kind, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            if bucket is not None:
                found[f"x-ratelimit-limit-{kind}"] = str(int(bucket.per_minute))
                found[f"x-ratelimit-remaining-{kind}"] = str(max(0, int(bucket.level)))
        return found
