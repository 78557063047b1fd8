"""The OpenAI-compatible gateway: names in, immutable versions out, errors in OpenAI's shape."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response
from ray import serve as ray_serve
from ray.serve.handle import DeploymentHandle
from starlette.exceptions import HTTPException
from starlette.types import ASGIApp, Receive, Scope, Send

from cluster.registry import Registry
from cluster.storage import Store
from serve.admin import Admin
from serve.admit import Door, price_of
from serve.broadcast import call_every_replica
from serve.completions import REQUEST_ID_HEADER, Completions
from serve.config import ServeConfig
from serve.cors import Cors
from serve.dashboard import PAGE, PAGE_HEADERS
from serve.errors import (
    ApiError,
    error_body,
    internal,
    unknown_model,
)
from serve.http_server import HttpServer
from serve.keys import Key
from serve.live import LiveFigures
from serve.metrics import GatewayMetrics, labels_of, repeat
from serve.openapi import ApiPages
from serve.quality.gate import QualityGate, QualityParts
from serve.reading import read_body
from serve.replicas import Replicas
from serve.request_log import RequestLog
from serve.requests import parse_object, request_id_of
from serve.routes import NotLoaded, RouteTable
from serve.routing.router import Router, RoutingParts
from serve.split.running import Splits
from serve.split.shadow import Shadows
from serve.watcher import RegistryWatcher

log = logging.getLogger("ray.serve")

MOST_ADMIN_BYTES = 65_536
TEACHER_SPENDING = ".teacher-usage"
"""Folder in the registry; no adapter can have this name."""

# Described from the engine's own models, which the gateway does not import.
api = FastAPI(title="Distillery", docs_url=None, redoc_url=None, openapi_url=None)


def _running_config() -> ServeConfig:
    gateway: Gateway = ray_serve.get_replica_context().servable_object
    return gateway._config


api.add_middleware(Cors, config=_running_config)


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
        routing: Mapping[str, RoutingParts] | None = None,
    ):
        self._config = config
        # By value, a call goes to the replica's own gRPC server and not through Ray's object store:
        # half the work. Within a request of Serve's proxy Ray 2.60 would not unpickle the answer.
        by = replicas.options(_by_reference=not config.is_direct)
        self._table = RouteTable(base_name)
        # A refused adapter is known for a while: it leaves /v1/models and is not tried again.
        asked = Replicas(
            answer=by.options(method_name="answer"),
            stream=by.options(method_name="stream", stream=True),
            timeout_s=config.request_timeout_s,
            on_refused=lambda model_id, reason: self._table.refuse(model_id, NotLoaded(reason)),
        )
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
        self._request_log = (
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

        async def load(model_id: str) -> list[NotLoaded | None]:
            return await call_every_replica(replicas, "load_adapter", model_id)

        async def unload(model_id: str) -> list[bool]:
            return await call_every_replica(replicas, "unload_adapter", model_id)

        async def pin(model_ids: list[str]) -> list[bool]:
            return await call_every_replica(replicas, "pin_adapters", model_ids)

        registry = Registry(registry_uri)
        self._splits = Splits(registry, self._table)
        shadows = Shadows(
            asked,
            table=self._table,
            metrics=self._metrics,
            quality=self._quality,
            splits=self._splits,
            request_log=self._request_log,
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

        self._completions = Completions(
            config,
            replicas=asked,
            door=self._door,
            table=self._table,
            watcher=self._watcher,
            metrics=self._metrics,
            quality=self._quality,
            router=Router(routing or {}, table=self._table),
            splits=self._splits,
            shadows=shadows,
            request_log=self._request_log,
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
        """Wait for the first warm replica if one has to run, then follow the registry."""
        while True:
            try:
                warm = await call_every_replica(replicas, "resident_adapters")
                # With none, a request starts one: its name has to be known by then.
                if warm or self._config.min_replicas == 0:
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
        if self._request_log is not None:
            await asyncio.to_thread(self._request_log.close)

    def is_ready(self) -> bool:
        """Whether every alias was tried on every replica."""
        return self._watcher.synced

    @api.get("/health")
    async def health(self) -> Response:
        """The gateway process lives."""
        return JSONResponse({"status": "ok"})

    @api.get("/ready")
    async def ready(self, request: Request) -> Response:
        """200 once replicas are warm and aliases are loaded; routes and refusals for admins.

        With `min_replicas = 0` also while no replica runs: a request starts one.
        """
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
        return await self._completions.complete("chat", request)

    @api.post("/v1/completions")
    async def completions(self, request: Request) -> Response:
        """OpenAI's text completions."""
        return await self._completions.complete("completions", request)
