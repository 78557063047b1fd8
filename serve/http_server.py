"""The gateway's own HTTP server, in its event loop.

Ray Serve's proxy is a process of its own: each request crosses from it to the gateway before it
crosses to a replica, and that first crossing costs more than everything the gateway does. On one
machine the gateway listens itself (`serve.ingress`).
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from typing import Any

import uvicorn
from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from cluster.session import bound_socket
from serve.config import ServeConfig
from serve.front import REQUEST_ID, BoundedProtocol, CleanHeaders
from serve.requests import request_id_of

log = logging.getLogger("ray.serve")

STOP_S = 10


class HttpServer:
    """Listens from `start` to `stop`."""

    def __init__(self, app: ASGIApp, config: ServeConfig):
        self._config = config
        self._server = uvicorn.Server(
            uvicorn.Config(
                CleanHeaders(RequestIds(EndWithClient(app))),
                http=BoundedProtocol,
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                ssl_certfile=config.tls_cert or None,
                ssl_keyfile=config.tls_key or None,
                timeout_keep_alive=config.keep_alive_s,
                timeout_graceful_shutdown=STOP_S,
            )
        )
        self._task: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Bind and listen. A gateway that replaces another may overlap with it."""
        listener = bound_socket(self._config.host, self._config.port, shared=True)
        self._task = asyncio.create_task(self._server.serve(sockets=[listener]))

    async def stop(self) -> None:
        """Answer what is under way, for so many seconds, and close."""
        if self._task is None:
            return
        self._server.should_exit = True
        with suppress(TimeoutError):
            await asyncio.wait_for(self._task, timeout=2 * STOP_S)


class RequestIds:
    """Gives every request an id, unless it brings one, and sends it back; as Serve's proxy does."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        given = dict(scope["headers"]).get(REQUEST_ID, b"").decode("latin-1")
        request_id = request_id_of(given)
        if not given:
            scope["headers"] = [*scope["headers"], (REQUEST_ID, request_id.encode())]

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[REQUEST_ID.decode()] = request_id
            await send(message)

        await self._app(scope, receive, send_with_id)


class EndWithClient:
    """Cancels what works for a client that has left, whether it waits for a stream or not."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one request."""
        # One message ahead of the application: a body is not taken in faster than it is read.
        messages: asyncio.Queue[Message] = asyncio.Queue(maxsize=1)
        sent_all = False

        async def send_on(message: Message) -> None:
            nonlocal sent_all
            if message["type"] == "http.response.body" and not message.get("more_body", False):
                sent_all = True
            await send(message)

        working: asyncio.Task[Any] = asyncio.ensure_future(self._app(scope, messages.get, send_on))

        async def listen() -> None:
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    # It also says so once everything was sent.
                    if not sent_all:
                        working.cancel()
                    return
                await messages.put(message)

        listening = asyncio.create_task(listen())
        try:
            await working
        except asyncio.CancelledError:
            if not working.cancelled():
                working.cancel()
                raise
        finally:
            listening.cancel()
