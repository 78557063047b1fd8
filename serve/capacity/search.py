"""The cheapest setting that holds the objective: a search that simulates each setting it tries."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from serve.autoscale import Scaling
from serve.capacity.curve import round_up
from serve.capacity.simulate import Outcome, Site, simulate
from serve.capacity.trace import Trace

DOWNSCALE_DELAYS_S = (30.0, 60.0, 120.0, 300.0, 600.0, 900.0)
UPSCALE_DELAYS_S = (0.0, 10.0, 30.0)
MIN_SHARES = (0.0, 0.25, 0.5, 0.75, 1.0)
"""Fewest replicas to try, as shares of what the mean traffic keeps busy."""


@dataclass
class Search:
    """Every setting that was simulated, with what came of it."""

    trace: Trace
    site: Site
    slo_p90_s: float
    told: Callable[[int, Outcome], None] = lambda number, outcome: None
    """Called after each simulation."""
    tried: dict[Scaling, Outcome] = field(default_factory=dict)

    def outcome(self, scaling: Scaling) -> Outcome:
        """Simulate a setting, once."""
        if scaling not in self.tried:
            self.tried[scaling] = simulate(self.trace, scaling=scaling, site=self.site)
            self.told(len(self.tried), self.tried[scaling])
        return self.tried[scaling]

    def better(self, scaling: Scaling) -> tuple[bool, float, float]:
        """Sort key: what holds before what does not, then the cheaper, or the nearer to holding."""
        found = self.outcome(scaling)
        if found.holds(self.slo_p90_s):
            return False, found.replica_s, found.quantile_s(0.9)
        return True, float(found.rejected + found.late), found.quantile_s(0.9)

    def cheapest(self, begin: Scaling) -> Outcome:
        """Return the best outcome found from `begin`, one field at a time, until none improves.

        Coordinate descent finds a setting that no change of one field betters among the values
        tried; it does not prove that no other combination is cheaper.
        """
        best = begin
        while True:
            before = best
            for changes in (self._targets, self._delays, self._minima, self._upscale):
                best = min((best, *changes(best)), key=self.better)
            if best == before:
                return self.outcome(best)

    def fixed(self, limit: int) -> Outcome | None:
        """Return the smallest fixed number of replicas that holds, up to `limit`; None if none."""
        low, high = 1, limit
        if not self._fixed(high).holds(self.slo_p90_s):
            return None
        while low < high:
            middle = (low + high) // 2
            if self._fixed(middle).holds(self.slo_p90_s):
                high = middle
            else:
                low = middle + 1
        return self._fixed(high)

    def _fixed(self, count: int) -> Outcome:
        setting = Scaling(min_replicas=count, max_replicas=count, target_ongoing_requests=1.0)
        return self.outcome(setting)

    def _targets(self, best: Scaling) -> Iterator[Scaling]:
        limit = self.site.max_ongoing_requests
        values = {float(2**power) for power in range(limit.bit_length()) if 2**power <= limit}
        curve = self.site.curve
        for share in (0.5, 0.6, 0.7, 0.8, 0.9):
            values.add(float(curve.concurrency_within(share * self.slo_p90_s, limit=limit)))
        for value in sorted(values - {0.0}):
            yield replace(best, target_ongoing_requests=value)

    def _delays(self, best: Scaling) -> Iterator[Scaling]:
        for delay_s in DOWNSCALE_DELAYS_S:
            yield replace(best, downscale_delay_s=delay_s)

    def _upscale(self, best: Scaling) -> Iterator[Scaling]:
        for delay_s in UPSCALE_DELAYS_S:
            yield replace(best, upscale_delay_s=delay_s)

    def _minima(self, best: Scaling) -> Iterator[Scaling]:
        mean = float(np.mean(self.outcome(best).running))
        for share in MIN_SHARES:
            yield replace(best, min_replicas=min(best.max_replicas, round_up(mean * share)))
