"""Which web pages may call: none, unless `serve.cors_origins` names their origin.

Nor may one that gets at a server without keys by a name of its own, which its owner points at a
loopback address once it is loaded (DNS rebinding): to the browser both are one origin.
"""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.config import ServeConfig, is_loopback
from serve.errors import forbidden

EXPOSED = ["x-request-id", "x-distillery-model", "x-distillery-routed", "retry-after"]


class Cors:
    """Starlette's CORS for a configuration that is known only once the application runs.

    Leaving CORS headers out is not enough: a browser sends a form-like POST without asking first,
    and any page could make a server on its visitor's own machine generate. Such a request carries
    the page's origin and is refused here. Programs that are no browser send none.
    """

    def __init__(self, app: ASGIApp, *, config: Callable[[], ServeConfig]):
        self._app = app
        self._config = config
        self._cors: CORSMiddleware | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on one request."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        config = self._config()
        host, origin = headers.get("host"), headers.get("origin")
        # A program may send no Host at all; a browser always does.
        if config.is_private and host is not None and not is_loopback(_name(host)):
            error = forbidden(
                f"This server asks nobody for an API key and answers no request to the host "
                f"{host[:128]!r}: call it as http://127.0.0.1 or http://localhost. Or set "
                "serve.keys, or serve.allow_without_keys = true if something in front checks who "
                "asks."
            )
            await JSONResponse(error.body, status_code=error.status)(scope, receive, send)
            return
        if origin is None:
            await self._app(scope, receive, send)
            return
        allowed = config.cors_origins
        if "*" in allowed or origin in allowed:
            if self._cors is None:
                self._cors = CORSMiddleware(
                    self._app,
                    allow_origins=allowed,
                    allow_methods=["GET", "POST"],
                    allow_headers=["*"],
                    expose_headers=EXPOSED,
                )
            await self._cors(scope, receive, send)
        elif origin.partition("://")[2] == host:
            # A page of the gateway's own.
            await self._app(scope, receive, send)
        else:
            error = forbidden(
                "This server answers no web page of another origin (serve.cors_origins)."
            )
            await JSONResponse(error.body, status_code=error.status)(scope, receive, send)


def _name(host: str) -> str:
    """The name or address in a Host header, without brackets and port; empty if it is none."""
    try:
        return urlsplit(f"//{host}").hostname or ""
    except ValueError:
        return ""
