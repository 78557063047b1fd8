"""Reading a request's body: never more than the limit, never longer than the deadline."""

from __future__ import annotations

import asyncio

from starlette.requests import ClientDisconnect, Request

from serve.errors import ApiError, client_left, too_large

WORTH_CLOSING = 64 << 20
"""Bytes. A refused body up to here is read and thrown away by the HTTP server, so that the client
sees the refusal; the connection of a larger one is closed."""
CLOSE = {"Connection": "close"}


async def read_body(request: Request, *, max_bytes: int, timeout_s: float) -> bytes:
    """Return the whole body.

    ApiError: 413 when it is too large, from its Content-Length or while it comes in; 408 when it is
    not there within `timeout_s`; 499 when the client left.
    """
    declared = request.headers.get("content-length", "")
    if declared.isdecimal() and int(declared[:19]) > max_bytes:
        raise too_large(
            f"The request body has {declared[:19]} bytes; at most {max_bytes} are accepted.",
            headers=CLOSE if int(declared[:19]) > WORTH_CLOSING else None,
        )
    chunks: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(timeout_s):
            async for chunk in request.stream():
                size += len(chunk)
                if size > max_bytes:
                    # Only a body without Content-Length gets here, so nobody knows what follows.
                    raise too_large(
                        f"The request body has more than the {max_bytes} bytes that are accepted.",
                        headers=CLOSE,
                    )
                chunks.append(chunk)
    except TimeoutError:
        raise ApiError(
            f"The request body did not arrive within {timeout_s:g} s.",
            status=408,
            kind="slow_client",
            code="request_timeout",
            headers=CLOSE,
        ) from None
    except ClientDisconnect:
        raise client_left() from None
    return b"".join(chunks)
