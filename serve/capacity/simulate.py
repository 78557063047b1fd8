"""Play traffic against replicas that start and stop as `serve.autoscale.decide` says."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass

import numpy as np

from serve.autoscale import (
    LOOK_BACK_S,
    METRICS_INTERVAL_S,
    WINDOW_S,
    Memory,
    Scaling,
    Window,
    decide,
    queue_time_s,
)
from serve.capacity import queueing as q
from serve.capacity.curve import ServiceCurve
from serve.capacity.trace import Trace


@dataclass(frozen=True, kw_only=True)
class Site:
    """What does not change from setting to setting."""

    curve: ServiceCurve
    max_ongoing_requests: int = 64
    """Requests a replica works on at once."""
    max_queued_requests: int = 256
    """Requests that may wait; one more is refused."""
    request_timeout_s: float = 120.0
    """Deadline of a request; one that takes longer counts as late, and is played to its end."""
    startup_s: float | None = None
    """Seconds until a new replica answers; `None` takes the curve's."""
    every_s: float = METRICS_INTERVAL_S
    """Seconds between decisions: Serve decides more often, but hears figures only as often."""
    seed: int = 0

    @property
    def start_s(self) -> float:
        """Seconds until a new replica answers."""
        return self.curve.startup_s if self.startup_s is None else self.startup_s


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What came of it. T decisions, M answered requests."""

    scaling: Scaling
    latency_s: np.ndarray
    """(M,) from arrival to end, in the order of arrival."""
    arrival_s: np.ndarray
    """(M,)."""
    rejected: int
    """Requests that found the waiting line full."""
    late: int
    """Answered requests that took longer than the deadline."""
    replica_s: float
    """Seconds paid for: replicas that start, run or finish their last requests."""
    busy_s: float
    """Seconds of these with at least one request."""
    time_s: np.ndarray
    """(T,)."""
    running: np.ndarray
    """(T,) replicas that take requests."""
    target: np.ndarray
    """(T,) replicas asked for."""
    ongoing: np.ndarray
    """(T,) requests under way or waiting."""

    @property
    def requests(self) -> int:
        """Requests that arrived."""
        return len(self.latency_s) + self.rejected

    def quantile_s(self, share: float) -> float:
        """Latency that this share of the answered requests does not exceed, seconds."""
        return float(np.quantile(self.latency_s, share)) if len(self.latency_s) else np.inf

    @property
    def idle_share(self) -> float:
        """Share of the paid replica-seconds without any request, start-up included."""
        return 1.0 - self.busy_s / self.replica_s if self.replica_s else 0.0

    @property
    def peak(self) -> int:
        """Most replicas that took requests at once."""
        return int(self.running.max())

    def holds(self, slo_p90_s: float) -> bool:
        """Whether the P90 is within the objective and nobody was refused or given up."""
        return not self.rejected and not self.late and self.quantile_s(0.9) <= slo_p90_s

    def missed_share(self, slo_p90_s: float, *, window_s: float = 300.0) -> float:
        """Share of the windows with requests whose own P90 is above the objective."""
        if not len(self.latency_s):
            return 0.0
        number = (self.arrival_s / window_s).astype(int)
        edges = np.flatnonzero(np.diff(number)) + 1
        windows = np.split(self.latency_s, edges)
        return float(np.mean([np.quantile(window, 0.9) > slo_p90_s for window in windows]))

    def usd(self, usd_per_hour: float) -> float:
        """Price of the replica-hours, US dollars."""
        return self.replica_s / 3600 * usd_per_hour


class _Fleet:
    """Replicas that run in the queueing model, and those that are starting."""

    def __init__(self, pool: q.Pool, *, start_s: float, max_queued: int):
        self.pool = pool
        self._start_s = start_s
        self._max_queued = max_queued
        self._ready_s: deque[float] = deque()
        self._starting_s = 0.0

    @property
    def now_s(self) -> float:
        return float(self.pool.sums[q.NOW])

    @property
    def running(self) -> int:
        return int(self.pool.counts[q.RUNNING])

    @property
    def replica_s(self) -> float:
        return float(self.pool.sums[q.SUM_ALIVE]) + self._starting_s

    def start_at_once(self, count: int) -> None:
        for _ in range(count):
            q.start_replica(self.pool)

    def steer(self, target: int) -> None:
        """Start or stop as many as are missing or too many; those that start are stopped first."""
        missing = target - self.running - len(self._ready_s)
        self._ready_s.extend([self.now_s + self._start_s] * max(0, missing))
        for _ in range(max(0, -missing)):
            if self._ready_s:
                self._ready_s.pop()
            else:
                q.stop_replica(self.pool)

    def advance(self, until_s: float) -> None:
        while self._ready_s and self._ready_s[0] <= until_s:
            self._pass(self._ready_s[0])
            while self._ready_s and self._ready_s[0] <= self.now_s:
                self._ready_s.popleft()
                q.start_replica(self.pool)
        self._pass(until_s)

    def _pass(self, until_s: float) -> None:
        self._starting_s += len(self._ready_s) * (until_s - self.now_s)
        q.advance(self.pool, until_s, self._max_queued)


class _Gauges:
    """What the policy would be told: means of the look-back, latencies of the window."""

    def __init__(self, pool: q.Pool, *, every_s: float):
        self._pool = pool
        looks = max(1, round(LOOK_BACK_S / every_s))
        self._inside = deque([(0.0, 0.0)], maxlen=looks + 1)
        self._oldest = 0

    def window(self) -> Window:
        pool, counts = self._pool, self._pool.counts
        now_s = float(pool.sums[q.NOW])
        self._inside.append((now_s, float(pool.sums[q.SUM_INSIDE])))
        (from_s, before), (_, after) = self._inside[0], self._inside[-1]
        ongoing = (after - before) / (now_s - from_s) if now_s > from_s else 0.0
        done = pool.done[self._oldest : counts[q.DONE]]
        old = int(np.searchsorted(pool.finish_s[done], now_s - WINDOW_S))
        self._oldest += old
        recent = done[old:]
        p90_s = 0.0
        if len(recent):
            # As a replica measures: from when it took the request.
            inside_s = pool.finish_s[recent] - pool.start_s[recent]
            rank = -(-9 * len(recent) // 10) - 1
            p90_s = float(np.partition(inside_s, rank)[rank])
        queued = int(counts[q.TAIL] - counts[q.HEAD])
        return Window(
            ongoing=ongoing if ongoing > 1e-9 else 0.0,
            finished=len(recent),
            p90_s=p90_s,
            queue_s=queue_time_s(queued, finished=len(recent)),
        )


def simulate(trace: Trace, *, scaling: Scaling, site: Site) -> Outcome:
    """Play the trace until its last request is answered.

    It begins with as many replicas as serving does, `min_replicas` and at least one, and ends with
    the last answer. Requests that no replica will ever take (`max_replicas` of 0) cannot be.
    """
    work_s = site.curve.work_s(trace.prompt_tokens, trace.completion_tokens, count=len(trace))
    pool = q.new_pool(
        trace.arrival_s,
        work_s,
        speed=site.curve.speed(site.max_ongoing_requests),
        # Those that drain are there beside those that replace them.
        max_replicas=2 * scaling.max_replicas + 1,
        seed=site.seed,
    )
    fleet = _Fleet(pool, start_s=site.start_s, max_queued=site.max_queued_requests)
    gauges = _Gauges(pool, every_s=site.every_s)
    target, memory = max(1, scaling.min_replicas), Memory()
    fleet.start_at_once(target)
    seen: list[tuple[float, int, int, float]] = []
    while pool.counts[q.DONE] + pool.counts[q.REJECTED] < len(trace):
        fleet.advance(fleet.now_s + site.every_s)
        window = gauges.window()
        target, memory = decide(
            window,
            replicas=fleet.running,
            target=target,
            scaling=scaling,
            memory=memory,
            now_s=fleet.now_s,
        )
        seen.append((fleet.now_s, fleet.running, target, window.ongoing))
        fleet.steer(target)
    answered = ~np.isnan(pool.finish_s)
    latency_s = (pool.finish_s - trace.arrival_s)[answered]
    times, running, targets, ongoing = (np.array(column) for column in zip(*seen, strict=True))
    return Outcome(
        scaling=scaling,
        latency_s=latency_s,
        arrival_s=trace.arrival_s[answered],
        rejected=int(pool.counts[q.REJECTED]),
        late=int((latency_s > site.request_timeout_s).sum()),
        replica_s=fleet.replica_s,
        busy_s=float(pool.sums[q.SUM_BUSY]),
        time_s=times,
        running=running,
        target=targets,
        ongoing=ongoing,
    )
