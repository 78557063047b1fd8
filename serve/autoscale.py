"""How many replicas: a pure decision, and the Ray Serve policy that asks it.

The number follows the requests under way, as Ray Serve's own policy does, and the P90 objective,
which Ray Serve's own does not know. `distillery capacity` simulates traffic with this `decide`.

This module imports nothing of the project and only the standard library: Ray Serve pickles it by
value into its controller, which may run where the project is not on the path.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from typing import Any

log = logging.getLogger("ray.serve")

WINDOW_S = 30.0
"""Seconds of finished requests that a replica's P90 is over."""
MIN_FINISHED = 10
"""Below this many finished requests a P90 says nothing, and only the load counts."""
MAX_STEP = 2.0
"""At most this many times the running replicas for the sake of latency in one decision."""
HEADROOM = 0.8
"""Replicas are let go only while the P90 is expected to stay below this share of the objective."""
TOLERANCE = 0.1
"""Fewer replicas by less than this share are not worth a change, as in Kubernetes."""
LEAST_ONGOING = 0.5
"""Requests a replica below which more replicas do not make any request faster."""

LOOK_BACK_S = 10.0
"""Seconds that the requests under way are averaged over."""
METRICS_INTERVAL_S = 2.0
"""How often replicas and the gateway report to Ray Serve's controller."""

_MEMORY = "distillery"


@dataclass(frozen=True, kw_only=True)
class Scaling:
    """Bounds and pace; the fields of the same names in `[serve]`."""

    min_replicas: int
    max_replicas: int
    target_ongoing_requests: float
    slo_p90_s: float = 0.0
    upscale_delay_s: float = 0.0
    downscale_delay_s: float = 300.0
    idle_s: float = 900.0


@dataclass(frozen=True, kw_only=True)
class Window:
    """What was seen lately, over all replicas."""

    ongoing: float
    """Requests under way or waiting for a replica."""
    finished: int = 0
    """Requests that replicas finished in the last `WINDOW_S` seconds."""
    p90_s: float = 0.0
    """P90 of those, seconds inside the replica."""
    queue_s: float = 0.0
    """Seconds that a request which arrives now waits for a replica."""


Said = tuple[tuple[float, int], ...]
"""When a number of replicas was wanted, and the number; only what can still matter."""


@dataclass(frozen=True)
class Memory:
    """What a decision keeps for the next one."""

    highs: Said = ()
    lows: Said = ()
    busy_at_s: float = 0.0
    replicas: int = 0
    grown_at_s: float = -math.inf
    begun: bool = False


def queue_time_s(queued: float, *, finished: int, window_s: float = WINDOW_S) -> float:
    """Seconds a request waits behind `queued` others at the throughput of the window.

    Little's law: waiting time = length of the queue / throughput (J. D. C. Little, "A Proof for
    the Queuing Formula L = λW", Operations Research 9(3), 1961).
    """
    return queued * window_s / finished if finished else 0.0


def wanted_replicas(window: Window, *, replicas: int, scaling: Scaling, trusted: bool) -> int:
    """Return how many replicas this window asks for, without bounds or patience.

    With an untrusted P90 (it is from before the newest replicas) only the load counts. Latency is
    taken to rise at most in proportion to the requests a replica has, which is processor sharing.
    """
    by_load = math.ceil(window.ongoing / scaling.target_ongoing_requests)
    if not scaling.slo_p90_s or not trusted or window.finished < MIN_FINISHED:
        return by_load
    pressure = (window.p90_s + window.queue_s) / scaling.slo_p90_s
    if pressure > 1.0:
        by_latency = math.ceil(replicas * min(pressure, MAX_STEP))
    else:
        by_latency = min(replicas, math.ceil(replicas * pressure / HEADROOM))
    # A request that is slow although it is nearly alone would be as slow with more replicas.
    return max(by_load, min(by_latency, math.ceil(window.ongoing / LEAST_ONGOING)))


def decide(
    window: Window,
    *,
    replicas: int,
    target: int,
    scaling: Scaling,
    memory: Memory,
    now_s: float,
) -> tuple[int, Memory]:
    """Return the new target and what to remember; `replicas` run, `target` are asked for.

    More replicas once every wish of the last `upscale_delay_s` seconds was for more, fewer once
    every wish of the last `downscale_delay_s` was for fewer, and then as few as the largest of
    them: the stabilisation windows of Kubernetes' horizontal pod autoscaler. None at all only
    after `idle_s` without a request, and only from one, as Ray Serve does it.
    """
    if not memory.begun:
        start = ((now_s, target),)
        memory = Memory(start, start, busy_at_s=now_s, replicas=replicas)
    busy = window.ongoing > 0 or window.finished > 0
    busy_at_s = now_s if busy else memory.busy_at_s
    grown_at_s = now_s if replicas > memory.replicas else memory.grown_at_s
    highs, lows = memory.highs, memory.lows
    if replicas:
        trusted = now_s - grown_at_s >= WINDOW_S
        wanted = wanted_replicas(window, replicas=replicas, scaling=scaling, trusted=trusted)
        highs = _said(highs, now_s, wanted, span_s=scaling.downscale_delay_s, sign=1)
        lows = _said(lows, now_s, wanted, span_s=scaling.upscale_delay_s, sign=-1)
    memory = Memory(highs, lows, busy_at_s, replicas, grown_at_s, begun=True)
    if not replicas:
        return _within(max(target, int(window.ongoing > 0)), scaling), memory
    high, low = highs[0][1], lows[0][1]
    idle = now_s - busy_at_s >= scaling.idle_s
    if low > target:
        target = low
    elif idle and target == 1:
        target = 0
    elif high <= target * (1 - TOLERANCE):
        target = max(high, 1)
    return _within(target, scaling), memory


def _within(target: int, scaling: Scaling) -> int:
    return max(scaling.min_replicas, min(scaling.max_replicas, target))


def _said(said: Said, now_s: float, wanted: int, *, span_s: float, sign: int) -> Said:
    """Add a wish; the first entry is the largest (`sign` 1) or smallest (-1) of the span."""
    recent = [entry for entry in said if entry[0] > now_s - span_s]
    while recent and sign * recent[-1][1] <= sign * wanted:
        recent.pop()
    return (*recent, (now_s, wanted))


class LatencyPolicy:
    """Ray Serve's autoscaling policy: reads its context, asks `decide`, keeps its memory there.

    Made with the fields of `Scaling`. Each replica reports `finished` and `p90_s` through Serve's
    `record_autoscaling_stats`; the P90 of all is taken as their mean, weighted by `finished`.
    """

    def __init__(self, **scaling: Any):
        self._scaling = Scaling(**scaling)

    def __call__(self, ctx: Any) -> tuple[int, dict[str, Any]]:
        """Return the target number of replicas and Serve's policy state."""
        window = window_of(ctx)
        target, memory = decide(
            window,
            replicas=ctx.current_num_replicas,
            target=ctx.target_num_replicas,
            scaling=self._scaling,
            memory=ctx.policy_state.get(_MEMORY, Memory()),
            now_s=ctx.current_time,
        )
        if target != ctx.target_num_replicas:
            log.info("replicas %d -> %d: %s", ctx.target_num_replicas, target, window)
        return target, {_MEMORY: memory}


def window_of(ctx: Any) -> Window:
    """Read a window from Ray Serve's AutoscalingContext."""
    metrics = ctx.raw_metrics or {}
    counts = {replica: series[-1].value for replica, series in metrics.get("finished", {}).items()}
    p90s = {replica: series[-1].value for replica, series in metrics.get("p90_s", {}).items()}
    finished = int(sum(counts.values()))
    weighed = sum(counts[replica] * p90s.get(replica, 0.0) for replica in counts)
    return Window(
        ongoing=ctx.total_num_requests,
        finished=finished,
        p90_s=weighed / finished if finished else 0.0,
        queue_s=queue_time_s(ctx.total_queued_requests or 0.0, finished=finished),
    )
