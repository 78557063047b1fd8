"""The gateway's metrics, through Ray's metrics agent.

Label values are names from the registry, routes and error kinds: none comes from a client, so no
client can add a time series.
"""

from __future__ import annotations

import asyncio
from collections import Counter as Tally
from collections.abc import Callable

from ray.serve.metrics import Gauge as ReplicaGauge
from ray.util.metrics import Counter, Gauge, Histogram

from cluster import metrics as names
from serve.errors import CLIENT_CLOSED
from serve.live import LiveFigures, Version
from serve.observe import Usage
from serve.routes import Target

Labels = dict[str, str]


def labels_of(target: Target | None, route: str) -> Labels:
    """Return the labels of a request; every model nobody serves is the one adapter `unknown`."""
    if target is None:
        return {"adapter": "unknown", "version": "-", "route": route}
    return {"adapter": target.adapter, "version": target.version, "route": route}


def _version(labels: Labels) -> Version:
    return labels["adapter"], labels["version"]


REPEAT_S = 1.0


async def repeat(tell: Callable[[], None]) -> None:
    """Call `tell`, which sets gauges, every second until cancelled.

    Ray's agent drops a gauge that was not set within two of its report intervals.
    """
    while True:
        tell()
        await asyncio.sleep(REPEAT_S)


def resident_gauge() -> Callable[[int], None]:
    """Return what a replica calls with its number of adapters; the series has the replica's id."""
    gauge = ReplicaGauge(names.RESIDENT_ADAPTERS, description="Adapters in the replica's engine.")
    return gauge.set


class Times:
    """Where the time of an answer went."""

    def __init__(self) -> None:
        keys = names.MODEL_LABELS
        self._per_token = Histogram(
            names.TIME_PER_OUTPUT_TOKEN,
            description="Seconds a generated token after the first, in the engine.",
            boundaries=names.TOKEN_BUCKETS_S,
            tag_keys=keys,
        )
        self._queue = Histogram(
            names.QUEUE_SECONDS,
            description="Seconds in the engine's queue.",
            boundaries=names.WAIT_BUCKETS_S,
            tag_keys=keys,
        )
        self._overhead = Histogram(
            names.GATEWAY_OVERHEAD,
            description="Seconds of an answer outside the replica: the gateway, the checks, the "
            "hop and Ray Serve's queue; of a stream, until its first token.",
            boundaries=names.WAIT_BUCKETS_S,
            tag_keys=keys,
        )

    def observe(self, labels: Labels, usage: Usage, *, overhead_s: float | None) -> None:
        """Count what is known of an answer."""
        if usage.tpot_s is not None:
            self._per_token.observe(usage.tpot_s, tags=labels)
        if usage.queue_s is not None:
            self._queue.observe(usage.queue_s, tags=labels)
        if overhead_s is not None:
            self._overhead.observe(overhead_s, tags=labels)


class GatewayMetrics:
    """Made once a gateway process; every call costs some microseconds."""

    def __init__(self, *, live: LiveFigures, slo_p90_s: float = 0.0) -> None:
        """`live` gets what the gateway's own page shows; `slo_p90_s` 0 is no objective."""
        keys = names.MODEL_LABELS
        self._live = live
        self._slo_p90_s = slo_p90_s
        self._times = Times()
        self._slo = Gauge(names.SLO_SECONDS, description="Objective for the P90 latency, seconds.")
        self._misses = Counter(
            names.SLO_MISSES,
            description="Requests slower than the objective, or failed on the server's side, or "
            "left by their client once the objective had passed.",
            tag_keys=keys,
        )
        self._latency = Histogram(
            names.REQUEST_LATENCY,
            description="Seconds from the request's arrival at the gateway to its last byte.",
            boundaries=names.LATENCY_BUCKETS_S,
            tag_keys=keys,
        )
        self._first_token = Histogram(
            names.TIME_TO_FIRST_TOKEN,
            description="Seconds to the first token: to the client when streamed, otherwise in "
            "the engine.",
            boundaries=names.LATENCY_BUCKETS_S,
            tag_keys=keys,
        )
        self._requests = Counter(
            names.REQUESTS,
            description="Requests by status class; 499 where the client left once the objective "
            "had passed.",
            tag_keys=(*keys, "status"),
        )
        self._prompt = Counter(names.PROMPT_TOKENS, description="Prompt tokens.", tag_keys=keys)
        self._completion = Counter(
            names.COMPLETION_TOKENS, description="Generated tokens.", tag_keys=keys
        )
        self._errors = Counter(
            names.ERRORS, description="Failed requests by kind.", tag_keys=(*keys, "kind")
        )
        self._in_flight = Gauge(
            names.IN_FLIGHT, description="Requests being answered.", tag_keys=keys
        )
        self._loads = Counter(
            names.ADAPTER_LOADS,
            description="Loads of an adapter on every replica, by outcome.",
            tag_keys=("adapter", "outcome"),
        )
        self._load_seconds = Histogram(
            names.ADAPTER_LOAD_SECONDS,
            description="Seconds until every replica had loaded and warmed an adapter.",
            boundaries=names.LOAD_BUCKETS_S,
            tag_keys=("adapter",),
        )
        self._swap_seconds = Histogram(
            names.ADAPTER_SWAP_SECONDS,
            description="Seconds from an alias's move being seen to requests going there.",
            boundaries=names.LOAD_BUCKETS_S,
            tag_keys=("adapter",),
        )
        self._log_dropped = Counter(
            names.REQUEST_LOG_DROPPED, description="Request log rows that were not written."
        )
        self._log_masked = Counter(
            names.REQUEST_LOG_MASKED,
            description="Personal data masked in the request log, by kind.",
            tag_keys=("kind",),
        )
        self._running: Tally[tuple[str, str, str]] = Tally()

    def tell(self) -> None:
        """Set every gauge again, as `repeat` needs it."""
        if self._slo_p90_s:
            self._slo.set(self._slo_p90_s)
        for key, running in self._running.items():
            self._in_flight.set(running, tags=dict(zip(names.MODEL_LABELS, key, strict=True)))

    def begin(self, labels: Labels) -> None:
        """A request is being answered."""
        self._change(labels, 1)

    def end(self, labels: Labels) -> None:
        """It no longer is."""
        self._change(labels, -1)

    def _change(self, labels: Labels, step: int) -> None:
        key = (labels["adapter"], labels["version"], labels["route"])
        self._running[key] += step
        self._in_flight.set(self._running[key], tags=labels)

    def answered(
        self,
        labels: Labels,
        *,
        latency_s: float,
        ttft_s: float | None,
        usage: Usage,
        overhead_s: float | None = None,
    ) -> None:
        """Count a request that was answered in full."""
        prompt_tokens, completion_tokens = usage.prompt_tokens, usage.completion_tokens
        if labels["route"] != names.SHADOW_ROUTE:
            self._live.answered(
                _version(labels),
                latency_s=latency_s,
                ttft_s=ttft_s,
                prompt_tokens=prompt_tokens,
                completion_tokens=completion_tokens,
            )
            if self._slo_p90_s and latency_s > self._slo_p90_s:
                self._missed(labels)
        self._times.observe(labels, usage, overhead_s=overhead_s)
        self._requests.inc(1, tags=labels | {"status": "2xx"})
        self._latency.observe(latency_s, tags=labels)
        if ttft_s is not None:
            self._first_token.observe(ttft_s, tags=labels)
        if prompt_tokens > 0:
            self._prompt.inc(prompt_tokens, tags=labels)
        if completion_tokens > 0:
            self._completion.inc(completion_tokens, tags=labels)

    def failed(
        self, labels: Labels, *, status: int, kind: str, latency_s: float | None = None
    ) -> None:
        """Count a request that was answered with an error, or not at all.

        `latency_s` is how long a client waited.
        """
        left_late = (
            status == CLIENT_CLOSED
            and latency_s is not None
            and bool(self._slo_p90_s)
            and latency_s > self._slo_p90_s
        )
        if labels["route"] != names.SHADOW_ROUTE:
            self._live.failed(_version(labels), status=status, left_late=left_late)
            if left_late or (self._slo_p90_s and status >= 500):
                self._missed(labels)
        # Whoever left earlier says nothing of the objective, and is no part of its share.
        shown = str(status) if left_late else f"{status // 100}xx"
        self._requests.inc(1, tags=labels | {"status": shown})
        self._errors.inc(1, tags=labels | {"kind": kind})

    def _missed(self, labels: Labels) -> None:
        self._misses.inc(1, tags=labels)
        self._live.missed_objective(_version(labels))

    def swapped(self, adapter: str, seconds: float) -> None:
        """Count an alias that moved on every replica."""
        self._swap_seconds.observe(seconds, tags={"adapter": adapter})

    def loaded(self, adapter: str, *, seconds: float, ok: bool) -> None:
        """Count a load on every replica."""
        self._loads.inc(1, tags={"adapter": adapter, "outcome": "ok" if ok else "refused"})
        if ok:
            self._load_seconds.observe(seconds, tags={"adapter": adapter})

    def log_dropped(self, num_rows: int) -> None:
        """Count request log rows that were lost."""
        self._log_dropped.inc(num_rows)

    def log_masked(self, kind: str, count: int) -> None:
        """Count personal data that was masked in the request log."""
        self._log_masked.inc(count, tags={"kind": kind})
