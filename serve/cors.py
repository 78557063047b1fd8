"""Which web pages may call: none, unless `serve.cors_origins` names their origin."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from serve.errors import forbidden

EXPOSED = ["x-request-id", "x-distillery-model", "x-distillery-routed", "retry-after"]


class Cors:
    """Starlette's CORS for origins that are known only once the application runs.

    Leaving CORS headers out is not enough: a browser sends a form-like POST without asking first,
    and any page could make a server on its visitor's own machine generate. Such a request carries
    the page's origin and is refused here. Programs that are no browser send none.
    """

    def __init__(self, app: ASGIApp, *, origins: Callable[[], Sequence[str]]):
        self._app = app
        self._origins = origins
        self._cors: CORSMiddleware | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer or pass on one request."""
        origin = Headers(scope=scope).get("origin") if scope["type"] == "http" else None
        if origin is None:
            await self._app(scope, receive, send)
            return
        allowed = self._origins()
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
        elif urlsplit(origin).netloc == Headers(scope=scope).get("host"):
            # A page of the gateway's own.
            await self._app(scope, receive, send)
        else:
            error = forbidden(
                "This server answers no web page of another origin (serve.cors_origins)."
            )
            await JSONResponse(error.body, status_code=error.status)(scope, receive, send)
