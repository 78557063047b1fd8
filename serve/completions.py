"""The way of a completion: let in, routed, answered, checked, counted, logged."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from functools import partial
from typing import Any

from fastapi import Request
from fastapi.responses import JSONResponse, Response, StreamingResponse

from cluster.difficulty import TEACHER
from serve.admit import Door
from serve.call import Call, overhead_s
from serve.config import ServeConfig
from serve.errors import ApiError, client_left, internal
from serve.log_rows import row_maker
from serve.metrics import GatewayMetrics
from serve.observe import Usage
from serve.quality.answers import as_events, unstreamed
from serve.quality.gate import Checked, QualityGate, ReplicaAnswer
from serve.reading import read_body
from serve.replicas import Replicas
from serve.request_log import RequestLog
from serve.requests import ApiRequest, check_size, parse_body, request_id_of
from serve.routes import Routed, RouteTable
from serve.routing.router import NOT_THERE, Router
from serve.split.running import Splits
from serve.split.shadow import Shadows
from serve.watcher import RegistryWatcher

log = logging.getLogger("ray.serve")

REQUEST_ID_HEADER = "x-request-id"
EVENT_STREAM = "text/event-stream"
UNFINISHED = ("client_closed", "timeout")
"""Kinds of failures for which the engine had begun to work."""


class Completions:
    """Answers chat and text completions."""

    def __init__(
        self,
        config: ServeConfig,
        *,
        replicas: Replicas,
        door: Door,
        table: RouteTable,
        watcher: RegistryWatcher,
        metrics: GatewayMetrics,
        quality: QualityGate,
        router: Router,
        splits: Splits,
        shadows: Shadows,
        request_log: RequestLog | None,
    ):
        self._config = config
        self._replicas = replicas
        self._door = door
        self._table = table
        self._watcher = watcher
        self._metrics = metrics
        self._quality = quality
        self._router = router
        self._splits = splits
        self._shadows = shadows
        self._log = request_log

    async def complete(self, route: str, http: Request) -> Response:
        """Answer a request to `route`, `chat` or `completions`, whatever becomes of it."""
        call = Call(route, request_id_of(http.headers.get(REQUEST_ID_HEADER)))
        try:
            call.request = await self._admit(call, http)
            call.send_to(await self._route(call))
            return await self._by_difficulty(call)
        except ApiError as error:
            self._failed(call, error)
            return JSONResponse(
                error.body, status_code=error.status, headers=call.headers | error.headers
            )
        except asyncio.CancelledError:
            self._failed(call, client_left())
            raise
        except Exception:
            log.exception("request %s failed", call.request_id)
            ours = internal(call.request_id)
            self._failed(call, ours)
            return JSONResponse(ours.body, status_code=ours.status, headers=call.headers)

    async def _admit(self, call: Call, http: Request) -> ApiRequest:
        """Who asks, then what: a stranger's body is never read."""
        config = self._config
        key = self._door.authenticate(http.headers)
        body = await read_body(
            http, max_bytes=config.max_body_mb << 20, timeout_s=config.body_timeout_s
        )
        request = parse_body(body, max_bytes=config.max_body_mb << 20)
        check_size(
            request, max_prompt_chars=config.max_prompt_chars, max_choices=config.max_choices
        )
        call.admission = self._door.admit(key, request)
        return request

    async def _route(self, call: Call) -> Routed:
        assert call.request is not None
        route = partial(
            self._table.route,
            call.request.model,
            user=str(call.request.payload.get("user") or ""),
            key_id=call.admission.key_id,
            request_id=call.request_id,
        )
        try:
            return route()
        except ApiError as error:
            if error.kind != "unknown_model":
                raise
            # Published a moment ago? One look, shared by everyone who asks within it.
            await self._watcher.refresh()
            return route()

    async def _by_difficulty(self, call: Call) -> Response:
        """Let somebody else answer a hard prompt; the student where nobody can, or it is none."""
        assert call.request is not None
        assert call.routed is not None
        asked = call.routed
        found = call.difficulty = self._router.look(asked, call.route, call.request.payload)
        if found is None:
            return await self._answer(call)
        if found.to == TEACHER:
            checked, outcome = await self._taught(call)
            if checked is not None:
                found.routed_to = TEACHER
                # Neither a canary's answer nor one that a shadow is compared with.
                call.send_to(Routed(asked.target))
            self._router.count(found, reason=outcome)
            return await self._answer(call) if checked is None else self._whole(call, checked)
        way = self._router.way(found.to) if found.to is not None else None
        if way is not None:
            found.routed_to = way.target.served_name
            call.send_to(way)
            try:
                return await self._answer(call)
            except ApiError as error:
                if error.kind not in ("refused_adapter", "not_ready"):
                    raise
                # Published, and no replica can hold it, or none at the moment.
                found.routed_to = None
                call.send_to(asked)
            finally:
                self._router.count(found, reason=NOT_THERE)
        else:
            self._router.count(found, reason=NOT_THERE)
        return await self._answer(call)

    async def _taught(self, call: Call) -> tuple[Checked | None, str]:
        """Ask the teacher; it gets half of the time, so that the student could still answer."""
        assert call.request is not None
        self._metrics.begin(call.labels)
        try:
            return await self._quality.taught(
                call.labels,
                call.route,
                call.request.payload,
                request_id=call.request_id,
                seconds_left=max(0.0, self._config.request_timeout_s - call.elapsed_s) / 2,
                on_teacher=call.admission.count_teacher,
            )
        finally:
            self._metrics.end(call.labels)

    async def _answer(self, call: Call) -> Response:
        assert call.request is not None
        payload = call.request.payload
        held = self._quality.holds(call.labels["adapter"], call.route, payload)
        if call.request.stream and not held:
            return await self._begin_stream(call)
        return await self._answer_whole(call)

    async def _answer_whole(self, call: Call) -> Response:
        """Answer with a whole body; a stream that is checked first gets it as one burst."""
        assert call.request is not None
        payload = call.request.payload
        self._metrics.begin(call.labels)
        try:
            first = await self._ask(call, unstreamed(payload))
            checked = await self._quality.checked(
                call.labels,
                call.route,
                payload,
                first,
                request_id=call.request_id,
                ask=lambda changed: self._ask(call, changed),
                on_teacher=call.admission.count_teacher,
                seconds_left=lambda: max(0.0, self._config.request_timeout_s - call.elapsed_s),
            )
        finally:
            self._metrics.end(call.labels)
        return self._whole(call, checked)

    def _whole(self, call: Call, checked: Checked) -> Response:
        assert call.request is not None
        call.checked = checked
        self._answered(call, usage=checked.usage, ttft_s=checked.usage.ttft_s)
        if not call.request.stream:
            return Response(checked.content, media_type="application/json", headers=call.headers)
        events = as_events(checked.content, call.route, call.request.payload)
        return Response(
            events, media_type=EVENT_STREAM, headers=call.headers | {"cache-control": "no-cache"}
        )

    async def _ask(self, call: Call, payload: dict[str, Any]) -> ReplicaAnswer:
        assert call.target is not None
        logprobs = self._quality.wants_logprob(call.target.adapter)
        answer = await self._replicas.answer(call, payload, logprobs=logprobs)
        call.admission.count(answer.usage)
        return answer

    async def _begin_stream(self, call: Call) -> Response:
        """Wait for the first event before the status is sent: an error then has its own status."""
        self._metrics.begin(call.labels)
        try:
            first, events = await self._replicas.begin_stream(call)
        except BaseException:
            self._metrics.end(call.labels)
            raise
        stream = self._rest_of_stream(call, first=first, events=events, ttft_s=call.elapsed_s)
        # Of a client that leaves now nobody reads a byte: a generator that never began is never
        # closed either, and what the request took would stay taken.
        await anext(stream)
        return StreamingResponse(
            stream,
            media_type=EVENT_STREAM,
            headers=call.headers | {"cache-control": "no-cache"},
        )

    async def _rest_of_stream(
        self, call: Call, *, first: Any, events: Any, ttft_s: float
    ) -> AsyncIterator[bytes]:
        """Yield an empty beginning, `first` and the rest; however it ends, the request is over."""
        usage: Usage | None = None
        deadline_s = self._config.request_timeout_s
        try:
            yield b""
            yield first
            async with asyncio.timeout(max(0.0, deadline_s - call.elapsed_s)):
                async for item in events:
                    if isinstance(item, tuple):
                        raise ApiError(**item[1])
                    if isinstance(item, Usage):
                        usage = item
                    else:
                        call.num_events += item.count(b"data: ")
                        yield item
            if usage is not None and call.request is not None:
                call.checked = await self._quality.looked_at(
                    call.labels, call.route, call.request.payload, usage
                )
            call.admission.count(usage or Usage())
            self._answered(call, usage=usage or Usage(), ttft_s=ttft_s)
        except (asyncio.CancelledError, GeneratorExit):
            self._failed(call, client_left())
            raise
        except Exception as error:
            # The status is sent already: the error can only be an event, and the stream ends.
            known = self._replicas.known_error(error, call)
            self._failed(call, known)
            yield b"data: " + json.dumps(known.body).encode() + b"\n\n"
        finally:
            self._metrics.end(call.labels)
            if usage is None:
                events.cancel()

    def _answered(self, call: Call, *, usage: Usage, ttft_s: float | None) -> None:
        latency_s = call.elapsed_s
        self._door.charge(call.admission)
        self._metrics.answered(
            call.labels,
            latency_s=latency_s,
            ttft_s=ttft_s,
            usage=usage,
            overhead_s=overhead_s(call, usage, latency_s=latency_s, ttft_s=ttft_s),
        )
        self._splits.observe(call.routed, latency_s=latency_s, checked=call.checked)
        self._write(call, status=200, latency_s=latency_s, usage=usage, ttft_s=ttft_s)
        if call.request is not None:
            self._shadows.copy(call.routed, call.route, call.request.payload)

    def _failed(self, call: Call, error: ApiError) -> None:
        latency_s = call.elapsed_s
        self._metrics.failed(call.labels, status=error.status, kind=error.kind, latency_s=latency_s)
        self._splits.observe(call.routed, latency_s=latency_s, error_kind=error.kind)
        if error.kind in UNFINISHED:
            self._door.charge_left(call.admission, num_events=call.num_events)
        else:
            self._door.charge(call.admission)
        self._write(call, status=error.status, latency_s=latency_s, usage=Usage(), ttft_s=None)

    def _write(
        self, call: Call, *, status: int, latency_s: float, usage: Usage, ttft_s: float | None
    ) -> None:
        if self._log is None or call.request is None:
            return
        checked = call.checked
        row = row_maker(
            call.request.payload,
            request_id=call.request_id,
            model_answered=call.target.served_name if call.target else "",
            route=call.route,
            usage=usage,
            status=status,
            latency_s=latency_s,
            ttft_s=ttft_s,
            checked=checked,
            difficulty=call.difficulty,
        )
        # What the teacher said is material for the next training, whoever asked it.
        taught = call.difficulty is not None and call.difficulty.routed_to == TEACHER
        self._log.add(row, always=taught or (checked is not None and checked.is_pair))
