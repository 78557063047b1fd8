"""Shadows: copies of requests that a second version answers, judged and never returned."""

from __future__ import annotations

import asyncio
import logging
import random
import time
import uuid
from typing import Any

from cluster import metrics as names
from serve.log_rows import row_maker
from serve.metrics import GatewayMetrics, labels_of
from serve.quality.answers import unstreamed
from serve.quality.gate import Checked, QualityGate
from serve.replicas import Replicas
from serve.request_log import RequestLog
from serve.routes import Routed, RouteTable
from serve.split.running import Splits

log = logging.getLogger("ray.serve")

ROUTE = names.SHADOW_ROUTE
MOST_RUNNING = 8
"""Copies under way; more are left out: a shadow must not take the replicas from the clients."""


class Shadows:
    """Made once a gateway process."""

    def __init__(
        self,
        replicas: Replicas,
        *,
        table: RouteTable,
        metrics: GatewayMetrics,
        quality: QualityGate,
        splits: Splits,
        request_log: RequestLog | None,
    ):
        self._replicas = replicas
        self._table = table
        self._metrics = metrics
        self._quality = quality
        self._splits = splits
        self._log = request_log
        self._running: set[asyncio.Task[None]] = set()

    def copy(self, routed: Routed | None, route: str, payload: dict[str, Any]) -> None:
        """Have the shadow answer too, if the alias has one and the request is in its share."""
        split = routed.split if routed else None
        if split is None or split.mode != "shadow" or len(self._running) >= MOST_RUNNING:
            return
        assert routed is not None
        if random.random() >= split.weight:
            return
        task = asyncio.create_task(self._answer_copy(routed, route, dict(payload)))
        self._running.add(task)
        task.add_done_callback(self._running.discard)

    async def _answer_copy(self, routed: Routed, route: str, payload: dict[str, Any]) -> None:
        assert routed.alias is not None
        assert routed.split is not None
        target = self._table.target(routed.alias.name, routed.split.version)
        labels = labels_of(target, ROUTE)
        request_id = uuid.uuid4().hex
        started = time.perf_counter()
        status, kind, checked, latency_s = 500, "internal", None, 0.0
        try:
            logprobs = self._quality.wants_logprob(target.adapter)
            answer, _ = self._replicas.handles(target.model_id)
            status, content, usage = await answer.remote(
                route, unstreamed(payload), target.model_id, request_id, logprobs
            )
            latency_s = time.perf_counter() - started
            if status == 200:
                kind = ""
                checked = await self._quality.looked_at(labels, route, payload, usage)
                self._metrics.answered(
                    labels, latency_s=latency_s, ttft_s=usage.ttft_s, usage=usage
                )
                self._write(request_id, payload, target.served_name, usage, latency_s, checked)
            else:
                kind = str(content["kind"])
        except Exception:
            log.exception("a shadow's answer failed")
        if kind:
            self._metrics.failed(labels, status=status, kind=kind)
        self._splits.observe_version(
            routed.alias,
            routed.split,
            second=True,
            latency_s=latency_s,
            error_kind=kind,
            checked=checked,
        )

    def _write(
        self,
        request_id: str,
        payload: dict[str, Any],
        model: str,
        usage: Any,
        latency_s: float,
        checked: Checked | None,
    ) -> None:
        if self._log is not None:
            row = row_maker(
                payload,
                request_id=request_id,
                model_answered=model,
                route=ROUTE,
                usage=usage,
                status=200,
                latency_s=latency_s,
                ttft_s=usage.ttft_s,
                checked=checked,
            )
            self._log.add(row)
