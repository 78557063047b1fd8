"""What stands before Ray Serve's own HTTP proxy: what it would choke on is cleaned or refused.

Serve calls `middlewares` once in each proxy process if the environment variable of that name
(`cluster.session.PROXY_ENV`) says so; `ray_session` and the manifests set it. Without it everything
else works and what is listed here is missing:

- A header that the proxy decodes as UTF-8 (`x-request-id`) and that is none becomes a 400 instead
  of a 500. Headers by which a client would steer Ray Serve are dropped: one keeps a generation
  running when its client has left, one sets the timeout, one picks a replica.
- uvicorn waits for ever for a request's head and takes one of any size. Here it has HEAD_S seconds
  and MAX_HEAD_BYTES, so a slow-loris client holds a connection for that long.
"""

from __future__ import annotations

import asyncio
from typing import Any

import uvicorn.config
from starlette.middleware import Middleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from serve.errors import bad_request
from serve.requests import request_id_of

HEAD_S = 10.0
"""Seconds from a connection's start, or a request's first byte, to the end of its head."""
MAX_HEAD_BYTES = 64 << 10
"""Request line and headers."""
REQUEST_ID = b"x-request-id"
DROPPED = {
    b"x-request-disconnect-disabled",
    b"x-request-timeout-seconds",
    b"serve_multiplexed_model_id",
    b"serve-multiplexed-model-id",
}


def middlewares() -> list[Middleware]:
    """Return the middlewares of Serve's proxy, after its HTTP protocol was bounded."""
    # The one way in: Serve hands uvicorn no options, and "auto" is what it then looks up here.
    uvicorn.config.HTTP_PROTOCOLS["auto"] = f"{__name__}:BoundedProtocol"
    return [Middleware(CleanHeaders)]


class CleanHeaders:
    """Drops, cleans or refuses headers before Serve's proxy reads them."""

    def __init__(self, app: ASGIApp):
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on or refuse one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        kept = []
        for name, value in scope["headers"]:
            if name in DROPPED:
                continue
            if name == REQUEST_ID:
                value = request_id_of(value.decode("latin-1")).encode()
            try:
                value.decode()
            except UnicodeDecodeError:
                shown = name.decode("latin-1")[:64]
                error = bad_request(f"The header {shown!r} is not valid UTF-8.")
                await JSONResponse(error.body, status_code=400)(scope, receive, send)
                return
            kept.append((name, value))
        await self._app({**scope, "headers": kept}, receive, send)


class BoundedProtocol(HttpToolsProtocol):
    """uvicorn's HTTP protocol with a deadline and a size for a request's head."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._in_head = True
        self._head_bytes = 0

    def connection_made(self, transport: Any) -> None:
        """A client connected: its first request's head is awaited."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """The client is gone."""
        self._forget_deadline()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what comes in before a head is complete."""
        if self._in_head:
            self._head_bytes += len(data)
            if self._deadline is None:
                self._await_head()
        super().data_received(data)
        # Checked after parsing: the end of the head may be in the same piece as a long body.
        if self._in_head and self._head_bytes > MAX_HEAD_BYTES and not self._is_closing:
            self._refuse(431, "Request head too large.")

    def on_headers_complete(self) -> None:
        """The head is complete; what follows is the application's to limit."""
        self._forget_deadline()
        self._in_head = False
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is complete; the next one's head may follow."""
        super().on_message_complete()
        self._in_head = True
        self._head_bytes = 0

    def _await_head(self) -> None:
        self._deadline = self.loop.call_later(HEAD_S, self._refuse, 408, "Request head too slow.")

    def _forget_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    @property
    def _is_closing(self) -> bool:
        return self.transport is None or self.transport.is_closing()

    def _refuse(self, status: int, message: str) -> None:
        self._forget_deadline()
        if self._is_closing:
            return
        if self.cycle is not None and not self.cycle.response_complete:
            # An answer is on its way on this connection: another cannot be put between.
            self.transport.close()
            return
        head = f"HTTP/1.1 {status} {message.rstrip('.')}\r\ncontent-type: text/plain\r\n"
        head += f"content-length: {len(message)}\r\nconnection: close\r\n\r\n"
        self.transport.write((head + message).encode())
        self.transport.close()
