"""What a client is told when something is wrong, in the shape of OpenAI's API."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

CLIENT_CLOSED = 499


class ApiError(Exception):
    """An answer that is an error: HTTP status plus `{"error": {message, type, param, code}}`.

    `kind` is the label under which the error is counted; it has few values.
    """

    def __init__(
        self,
        message: str,
        *,
        status: int,
        kind: str,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
        type: str | None = None,
        reason: str | None = None,
    ):
        """`reason` is the bare cause where the message is more than that."""
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = dict(headers or {})
        self.reason = reason
        self.type = type or ("invalid_request_error" if status < 500 else "server_error")

    def as_dict(self) -> dict[str, Any]:
        """Return the constructor's arguments, to cross from a replica to the gateway."""
        return vars(self)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body."""
        return error_body(self.message, kind=self.type, param=self.param, code=self.code)


def error_body(
    message: str, *, kind: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Return OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """The request itself is wrong (400)."""
    return ApiError(message, status=400, kind="bad_request", param=param, code=code)


def too_large(message: str, *, headers: Mapping[str, str] | None = None) -> ApiError:
    """The body is larger than the server reads (413)."""
    return ApiError(
        message, status=413, kind="too_large", code="request_too_large", headers=headers
    )


def unauthorized() -> ApiError:
    """No key that counts (401): missing, forged, expired and revoked in the same words."""
    return ApiError(
        "You need a valid API key: send it as `Authorization: Bearer dk-…`.",
        status=401,
        kind="unauthorized",
        code="invalid_api_key",
        headers={"WWW-Authenticate": "Bearer"},
    )


def forbidden(message: str, *, code: str = "forbidden") -> ApiError:
    """The caller may not do this (403)."""
    return ApiError(message, status=403, kind="forbidden", code=code)


def rate_limited(what: str, *, limit: float, wait_s: float) -> ApiError:
    """A limit by the minute is used up (429); `what` is `requests` or `tokens`."""
    return ApiError(
        f"Rate limit reached: {limit:g} {what} per minute. Please try again in {wait_s:.1f} s.",
        status=429,
        kind=f"rate_limit_{what}",
        type=what,
        code="rate_limit_exceeded",
        headers={"Retry-After": str(max(1, math.ceil(wait_s)))},
    )


def quota_used_up(what: str, *, kind: str, wait_s: float) -> ApiError:
    """A limit by the day is used up (429) until the next UTC day."""
    return ApiError(
        f"You exceeded your current quota: {what} The next day begins at midnight UTC.",
        status=429,
        kind=kind,
        type="insufficient_quota",
        code="insufficient_quota",
        headers={"Retry-After": str(max(1, math.ceil(wait_s)))},
    )


def quota_held(what: str, *, kind: str) -> ApiError:
    """What is left of the day may be used up by requests under way (429)."""
    return ApiError(
        f"Your requests under way may use up the rest of your quota: {what} Try again when they "
        "are answered, or set max_tokens.",
        status=429,
        kind=kind,
        code="rate_limit_exceeded",
        headers={"Retry-After": "1"},
    )


def client_left() -> ApiError:
    """Nobody is there to read the answer (499, nginx's number for it)."""
    return ApiError("client left", status=CLIENT_CLOSED, kind="client_closed")


def unknown_model(model: str) -> ApiError:
    """No such model (404), the same words whether it never existed or was withdrawn."""
    return ApiError(
        f"The model {model[:128]!r} does not exist or you do not have access to it.",
        status=404,
        kind="unknown_model",
        param="model",
        code="model_not_found",
    )


def refused_model(model: str, *, reason: str) -> ApiError:
    """A published version that does not fit this server (404): asking again seldom helps."""
    return ApiError(
        f"The model {model!r} is published but this server refuses it: {reason}",
        status=404,
        kind="refused_adapter",
        param="model",
        code="adapter_refused",
        reason=reason,
    )


def not_ready(message: str, *, retry_after_s: int = 5) -> ApiError:
    """The server starts, or an alias has no version that loads (503)."""
    return ApiError(
        message,
        status=503,
        kind="not_ready",
        code="not_ready",
        headers={"Retry-After": str(retry_after_s)},
    )


def overloaded(*, retry_after_s: int = 1) -> ApiError:
    """The queue is full (503): refusing now is better than answering too late."""
    return ApiError(
        "The server has more requests than it can queue. Try again after the time in Retry-After.",
        status=503,
        kind="overloaded",
        code="overloaded",
        headers={"Retry-After": str(retry_after_s)},
    )


def refused_answer(reason: str) -> ApiError:
    """No answer passed the model's checks, and it is configured to give none then (502)."""
    return ApiError(
        f"No answer passed the model's checks ({reason}). Ask again, or ask in another way.",
        status=502,
        kind="refused_answer",
        code="answer_refused",
    )


def timed_out(timeout_s: float) -> ApiError:
    """The deadline passed (504)."""
    return ApiError(
        f"The answer was not finished within {timeout_s:g} s. Ask for fewer tokens or try again.",
        status=504,
        kind="timeout",
        code="timeout",
    )


def internal(request_id: str) -> ApiError:
    """Our fault (500): the log has the cause, the client gets the id to ask about."""
    return ApiError(
        f"The server failed to answer. Its log has the cause under request id {request_id}.",
        status=500,
        kind="internal",
        code="internal_error",
    )
