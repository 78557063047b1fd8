"""The OpenAI-compatible gateway: names in, immutable versions out, errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import json
import logging
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response, StreamingResponse
from ray import serve as ray_serve
from ray.exceptions import RayActorError, RayTaskError, TaskCancelledError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.registry import Registry
from cluster.storage import Store
from serve.admin import Admin
from serve.admit import Admission, Door, price_of
from serve.broadcast import call_every_replica
from serve.config import ServeConfig
from serve.cors import Cors
from serve.dashboard import PAGE, PAGE_HEADERS
from serve.errors import (
    ApiError,
    client_left,
    error_body,
    internal,
    not_ready,
    overloaded,
    timed_out,
    unknown_model,
)
from serve.http_server import HttpServer
from serve.keys import Key
from serve.live import LiveFigures
from serve.log_rows import row_maker
from serve.metrics import GatewayMetrics, Labels, labels_of, repeat
from serve.observe import Usage
from serve.openapi import ApiPages
from serve.quality.answers import as_events, unstreamed
from serve.quality.gate import Checked, QualityGate, QualityParts, ReplicaAnswer
from serve.reading import read_body
from serve.request_log import RequestLog
from serve.requests import ApiRequest, check_size, parse_body, parse_object, request_id_of
from serve.routes import Routed, RouteTable, Target
from serve.split.running import Splits
from serve.split.shadow import Shadows
from serve.watcher import RegistryWatcher

log = logging.getLogger("ray.serve")

MODEL_HEADER = "x-distillery-model"
REQUEST_ID_HEADER = "x-request-id"
MAX_ATTEMPTS = 4
RETRY_PAUSE_S = 0.1
"""Before another replica is asked: the router has to learn that one is gone."""
MOST_ADMIN_BYTES = 65_536
EVENT_STREAM = "text/event-stream"
TEACHER_SPENDING = ".teacher-usage"
"""Folder in the registry; no adapter can have this name."""
UNFINISHED = ("client_closed", "timeout")
"""Kinds of failures for which the engine had begun to work."""

# Described from the engine's own models, which the gateway does not import.
api = FastAPI(title="Distillery", docs_url=None, redoc_url=None, openapi_url=None)


def _cors_origins() -> list[str]:
    gateway: Gateway = ray_serve.get_replica_context().servable_object
    return gateway._config.cors_origins


api.add_middleware(Cors, origins=_cors_origins)


@api.exception_handler(ApiError)
async def _api_error(request: Request, error: ApiError) -> JSONResponse:
    return JSONResponse(error.body, status_code=error.status, headers=error.headers)


@api.exception_handler(HTTPException)
async def _http_error(request: Request, error: HTTPException) -> JSONResponse:
    """Unknown paths and methods, in the shape of the rest."""
    message = f"{request.method} {request.url.path[:128]}: {error.detail}."
    body = error_body(message, kind="invalid_request_error", code=None)
    return JSONResponse(body, status_code=error.status_code, headers=error.headers)


@api.exception_handler(Exception)
async def _unexpected(request: Request, error: Exception) -> JSONResponse:
    request_id = request_id_of(request.headers.get(REQUEST_ID_HEADER))
    log.exception("request %s failed", request_id, exc_info=error)
    return JSONResponse(internal(request_id).body, status_code=500)


class _Call:
    """One request on its way: what is counted and logged about it."""

    __slots__ = (
        "admission", "checked", "labels", "num_events", "request", "request_id", "route", "routed",
        "started",
    )  # fmt: skip

    def __init__(self, route: str, request_id: str):
        self.route = route
        self.request_id = request_id
        self.started = time.perf_counter()
        self.request: ApiRequest | None = None
        self.routed: Routed | None = None
        self.labels: Labels = labels_of(None, route)
        self.admission = Admission()
        self.num_events = 0
        self.checked: Checked | None = None

    @property
    def target(self) -> Target | None:
        return self.routed.target if self.routed else None

    @property
    def elapsed_s(self) -> float:
        return time.perf_counter() - self.started

    @property
    def headers(self) -> dict[str, str]:
        # Whoever listens passes the request id in, or makes one, and sends it back by itself.
        model = {MODEL_HEADER: self.target.served_name} if self.target else {}
        checked = dict(self.checked.headers) if self.checked else {}
        return self.admission.headers | model | checked


def _overhead_s(
    call: _Call, usage: Usage, *, latency_s: float, ttft_s: float | None
) -> float | None:
    """Seconds outside the replica; `None` where a step after a refused answer took part of them."""
    if call.checked is not None and call.checked.quality not in (None, "passed"):
        return None
    if usage.replica_s is not None:
        return max(0.0, latency_s - usage.replica_s)
    # A stream's end is the client's matter as well as ours.
    if ttft_s is not None and usage.ttft_s is not None:
        return max(0.0, ttft_s - usage.ttft_s)
    return None


# Serve copies the routes where it wraps the class, with the names of this module that exist by
# then: what they call stands above.
@ray_serve.ingress(api)
class Gateway:
    """Resolves names, calls a replica, counts and logs. Holds no model."""

    # Serve awaits it in the event loop that requests run in, so the watcher shares their loop.
    async def __init__(  # type: ignore[misc]
        self,
        replicas: DeploymentHandle,
        *,
        config: ServeConfig,
        base_name: str,
        registry_uri: str,
        quality: Mapping[str, QualityParts] | None = None,
    ):
        self._config = config
        # By value, a call goes to the replica's own gRPC server and not through Ray's object store:
        # half the work. Within a request of Serve's proxy Ray 2.60 would not unpickle the answer.
        by = replicas.options(_by_reference=not config.is_direct)
        self._answer = by.options(method_name="answer")
        self._stream = by.options(method_name="stream", stream=True)
        self._created = int(time.time())
        self._pages = ApiPages(replicas, with_keys=bool(config.keys))
        self._door = Door(config, price=price_of(config, base_name))
        await self._door.start()
        self._live = LiveFigures(slo_p90_s=config.slo_p90_s)
        self._metrics = GatewayMetrics(live=self._live, slo_p90_s=config.slo_p90_s)
        # A teacher's client takes seconds to import.
        spending = Store(registry_uri) / TEACHER_SPENDING
        self._quality = await asyncio.to_thread(
            QualityGate, quality or {}, state=spending, live=self._live
        )
        await self._quality.start()
        self._log = (
            RequestLog(
                config.request_log,
                sample=config.request_log_sample,
                masking=config.request_log_masking if config.request_log_masking.kinds else None,
                keep_days=config.request_log_days,
                on_drop=self._metrics.log_dropped,
                on_masked=self._metrics.log_masked,
            )
            if config.request_log
            else None
        )
        self._table = RouteTable(base_name)

        async def load(model_id: str) -> list[str | None]:
            return await call_every_replica(replicas, "load_adapter", model_id)

        async def unload(model_id: str) -> list[bool]:
            return await call_every_replica(replicas, "unload_adapter", model_id)

        async def pin(model_ids: list[str]) -> list[bool]:
            return await call_every_replica(replicas, "pin_adapters", model_ids)

        registry = Registry(registry_uri)
        self._splits = Splits(registry, self._table)
        self._shadows = Shadows(
            self._answer,
            table=self._table,
            metrics=self._metrics,
            quality=self._quality,
            splits=self._splits,
            request_log=self._log,
        )
        self._watcher = RegistryWatcher(
            registry,
            table=self._table,
            load=load,
            unload=unload,
            pin=pin,
            on_load=lambda model_id, seconds, ok: self._metrics.loaded(
                model_id.partition("@")[0], seconds=seconds, ok=ok
            ),
            on_swap=self._metrics.swapped,
        )

        async def everywhere(method: str, *arguments: Any) -> list[Any]:
            return await call_every_replica(replicas, method, *arguments)

        self._admin = Admin(
            registry, watcher=self._watcher, splits=self._splits, everywhere=everywhere
        )
        self._server = HttpServer(self._serve_asgi, config) if config.is_direct else None
        if self._server is not None:
            self._server.start()
        self._following = asyncio.create_task(self._follow(replicas))
        self._telling = asyncio.create_task(repeat(self._metrics.tell))
        self._deciding = asyncio.create_task(self._splits.follow(poll_s=config.alias_poll_s))

    async def _follow(self, replicas: DeploymentHandle) -> None:
        """Wait for the first warm replica, then follow the registry."""
        while True:
            try:
                if await call_every_replica(replicas, "resident_adapters"):
                    break
            except Exception as error:
                log.info("no replica answers yet (%s)", type(error).__name__)
            await asyncio.sleep(self._config.alias_poll_s)
        await self._watcher.run(poll_s=self._config.alias_poll_s)

    async def _serve_asgi(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Serve sets the application once this object is made.
        app: ASGIApp = self.app  # type: ignore[attr-defined]
        await app(scope, receive, send)

    async def __del__(self) -> None:
        if self._server is not None:
            await self._server.stop()
        self._following.cancel()
        self._deciding.cancel()
        self._telling.cancel()
        await self._door.close()
        await self._quality.close()
        if self._log is not None:
            await asyncio.to_thread(self._log.close)

    def is_ready(self) -> bool:
        """Whether every alias was tried on every replica."""
        return self._watcher.synced

    @api.get("/health")
    async def health(self) -> Response:
        """The gateway process lives."""
        return JSONResponse({"status": "ok"})

    @api.get("/ready")
    async def ready(self, request: Request) -> Response:
        """200 once replicas are warm and aliases are loaded; routes and refusals for admins."""
        ready = self.is_ready()
        body: dict[str, Any] = {"ready": ready}
        with suppress(ApiError):
            # Names and the reasons of refusals are not for whoever happens to reach the port.
            self._door.require_admin(request.headers)
            body |= self._watcher.status()
        return JSONResponse(body, status_code=200 if ready else 503)

    @api.get("/openapi.json")
    async def openapi(self) -> Response:
        """The OpenAPI description."""
        return JSONResponse(await self._pages.document())

    @api.get("/docs")
    async def docs(self) -> Response:
        """The same as a page that loads nothing."""
        return HTMLResponse(await self._pages.page())

    @api.get("/v1/models")
    async def models(self, request: Request) -> Response:
        """The base, aliases and versions that the caller may ask for."""
        return JSONResponse({"object": "list", "data": await self._cards(request)})

    @api.get("/v1/models/{model:path}")
    async def model(self, model: str, request: Request) -> Response:
        """One of them."""
        for card in await self._cards(request):
            if card["id"] == model:
                return JSONResponse(card)
        raise unknown_model(model)

    async def _cards(self, request: Request) -> list[dict[str, Any]]:
        key = self._identify("models", request)
        await self._watcher.refresh()
        cards = self._table.cards(created=self._created)
        return [card for card in cards if self._door.may_see(key, card["id"])]

    def _identify(self, route: str, request: Request) -> Key | None:
        try:
            return self._door.authenticate(request.headers)
        except ApiError as error:
            self._metrics.failed(labels_of(None, route), status=error.status, kind=error.kind)
            raise

    @api.get("/dashboard")
    async def dashboard(self) -> Response:
        """Latency, traffic, canaries and adapters as a page; what it shows needs an admin's key."""
        return HTMLResponse(PAGE, headers=PAGE_HEADERS)

    @api.get("/admin/metrics")
    async def admin_metrics(self, request: Request) -> Response:
        """The last five minutes of this gateway, and its canaries."""
        self._door.require_admin(request.headers)
        return JSONResponse(self._live.snapshot() | {"splits": self._splits.status()})

    @api.get("/admin/status")
    async def admin_status(self, request: Request) -> Response:
        """Adapters, aliases, splits with their figures, and what each replica holds."""
        self._door.require_admin(request.headers)
        return JSONResponse(await self._admin.status())

    @api.post("/admin/adapters/{action}")
    async def admin_act(self, action: str, request: Request) -> Response:
        """Promote, rollback, canary, end, pin, unpin or unload."""
        key = self._door.require_admin(request.headers)
        config = self._config
        body = await read_body(request, max_bytes=MOST_ADMIN_BYTES, timeout_s=config.body_timeout_s)
        asked = parse_object(body, max_bytes=MOST_ADMIN_BYTES)
        return JSONResponse(
            await self._admin.act(action, asked, by=f"key {key.name}" if key else "")
        )

    @api.post("/v1/chat/completions")
    async def chat(self, request: Request) -> Response:
        """OpenAI's chat completions."""
        return await self._complete("chat", request)

    @api.post("/v1/completions")
    async def completions(self, request: Request) -> Response:
        """OpenAI's text completions."""
        return await self._complete("completions", request)

    async def _complete(self, route: str, http: Request) -> Response:
        call = _Call(route, request_id_of(http.headers.get(REQUEST_ID_HEADER)))
        try:
            call.request = await self._admit(call, http)
            call.routed = await self._route(call)
            call.labels = labels_of(call.target, route)
            held = self._quality.holds(call.labels["adapter"], route, call.request.payload)
            if call.request.stream and not held:
                return await self._begin_stream(call)
            return await self._answer_whole(call)
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

    async def _admit(self, call: _Call, http: Request) -> ApiRequest:
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

    async def _route(self, call: _Call) -> Routed:
        assert call.request is not None
        model = call.request.model
        # Whoever asks stays with one version for as long as a split lasts.
        user = str(call.request.payload.get("user") or call.admission.key_id or call.request_id)
        try:
            return self._table.route(model, user=user)
        except ApiError as error:
            if error.kind != "unknown_model":
                raise
            # Published a moment ago? One look, shared by everyone who asks within it.
            await self._watcher.refresh()
            return self._table.route(model, user=user)

    async def _answer_whole(self, call: _Call) -> Response:
        """Answer with a whole body; a stream that is checked first gets it as one burst."""
        assert call.request is not None
        payload = call.request.payload
        self._metrics.begin(call.labels)
        try:
            first = await self._ask(call, unstreamed(payload))
            checked = call.checked = await self._quality.checked(
                call.labels,
                call.route,
                payload,
                first,
                ask=lambda changed: self._ask(call, changed),
                on_teacher=call.admission.count_teacher,
                seconds_left=lambda: max(0.0, self._config.request_timeout_s - call.elapsed_s),
            )
        finally:
            self._metrics.end(call.labels)
        self._answered(call, usage=checked.usage, ttft_s=checked.usage.ttft_s)
        if not call.request.stream:
            return Response(checked.content, media_type="application/json", headers=call.headers)
        events = as_events(checked.content, call.route, payload)
        return Response(
            events, media_type=EVENT_STREAM, headers=call.headers | {"cache-control": "no-cache"}
        )

    async def _ask(self, call: _Call, payload: dict[str, Any]) -> ReplicaAnswer:
        """Ask a replica for a whole answer; ApiError when it has none."""
        assert call.target is not None
        logprobs = self._quality.wants_logprob(call.target.adapter)
        arguments = (call.route, payload, call.target.model_id, call.request_id, logprobs)
        status, content, usage = await self._first_result(
            call, lambda: self._answer.remote(*arguments)
        )
        if status != 200:
            raise self._replica_error(call, content)
        call.admission.count(usage)
        return ReplicaAnswer(content, usage)

    async def _begin_stream(self, call: _Call) -> Response:
        """Wait for the first event before the status is sent: an error then has its own status."""
        assert call.request is not None
        assert call.target is not None
        asked = (call.route, call.request.payload, call.target.model_id, call.request_id)
        self._metrics.begin(call.labels)
        events: Any = None
        try:

            def start() -> Any:
                nonlocal events
                events = self._stream.remote(*asked)
                return events.__anext__()

            first = await self._first_result(call, start)
            if isinstance(first, tuple):
                raise self._replica_error(call, first[1])
        except BaseException:
            self._metrics.end(call.labels)
            if events is not None:
                events.cancel()
            raise
        ttft_s = call.elapsed_s
        return StreamingResponse(
            self._rest_of_stream(call, first=first, events=events, ttft_s=ttft_s),
            media_type=EVENT_STREAM,
            headers=call.headers | {"cache-control": "no-cache"},
        )

    async def _rest_of_stream(
        self, call: _Call, *, first: Any, events: Any, ttft_s: float
    ) -> AsyncIterator[bytes]:
        usage: Usage | None = None
        deadline_s = self._config.request_timeout_s
        try:
            yield first
            async with asyncio.timeout(max(0.0, deadline_s - call.elapsed_s)):
                async for item in events:
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
            known = self._known_error(error, call)
            self._failed(call, known)
            yield b"data: " + json.dumps(known.body).encode() + b"\n\n"
        finally:
            self._metrics.end(call.labels)
            if usage is None:
                events.cancel()

    async def _first_result(self, call: _Call, start: Any) -> Any:
        """Await a replica's first result, on another replica if one died before it began."""
        attempt = 0
        while True:
            attempt += 1
            result = start()
            try:
                async with asyncio.timeout(self._config.request_timeout_s - call.elapsed_s):
                    return await result
            except RayActorError as error:
                if attempt == MAX_ATTEMPTS:
                    raise self._known_error(error, call) from error
                log.warning("request %s: a replica died, asking another", call.request_id)
                await asyncio.sleep(RETRY_PAUSE_S * attempt)
            except asyncio.CancelledError:
                # The client left: nobody reads what the replica would go on to generate.
                if hasattr(result, "cancel"):
                    result.cancel()
                raise
            except (TimeoutError, BackPressureError, DeploymentUnavailableError) as error:
                if hasattr(result, "cancel"):
                    result.cancel()
                raise self._known_error(error, call) from None
            except (RayTaskError, TaskCancelledError) as error:
                raise self._known_error(error, call) from error

    def _known_error(self, error: Exception, call: _Call) -> ApiError:
        if isinstance(error, ApiError):
            return error
        if isinstance(error, TimeoutError):
            return timed_out(self._config.request_timeout_s)
        if isinstance(error, BackPressureError):
            return overloaded()
        if isinstance(error, (DeploymentUnavailableError, RayActorError)):
            return not_ready("No model replica can answer at the moment.")
        log.error("request %s failed", call.request_id, exc_info=error)
        return internal(call.request_id)

    def _replica_error(self, call: _Call, fields: dict[str, Any]) -> ApiError:
        error = ApiError(**fields)
        if error.kind == "refused_adapter" and call.target and call.target.model_id:
            # Known from now on: it leaves /v1/models and is not tried for every request.
            self._table.refused[call.target.model_id] = error.message
        return error

    def _answered(self, call: _Call, *, usage: Usage, ttft_s: float | None) -> None:
        latency_s = call.elapsed_s
        self._door.charge(call.admission)
        self._metrics.answered(
            call.labels,
            latency_s=latency_s,
            ttft_s=ttft_s,
            usage=usage,
            overhead_s=_overhead_s(call, usage, latency_s=latency_s, ttft_s=ttft_s),
        )
        self._splits.observe(call.routed, latency_s=latency_s, checked=call.checked)
        self._write(call, status=200, latency_s=latency_s, usage=usage, ttft_s=ttft_s)
        if call.request is not None:
            self._shadows.copy(call.routed, call.route, call.request.payload)

    def _failed(self, call: _Call, error: ApiError) -> None:
        self._metrics.failed(call.labels, status=error.status, kind=error.kind)
        self._splits.observe(call.routed, latency_s=None, error_kind=error.kind)
        if error.kind in UNFINISHED:
            self._door.charge_left(call.admission, num_events=call.num_events)
        else:
            self._door.charge(call.admission)
        self._write(call, status=error.status, latency_s=call.elapsed_s, usage=Usage(), ttft_s=None)

    def _write(
        self, call: _Call, *, status: int, latency_s: float, usage: Usage, ttft_s: float | None
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
        )
        self._log.add(row, always=checked is not None and checked.is_pair)
