"""What a client is told when something is wrong, in the shape of OpenAI's API."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


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
    ):
        super().__init__(message)
        self.message = message
        self.status = status
        self.kind = kind
        self.code = code
        self.param = param
        self.headers = dict(headers or {})

    def as_dict(self) -> dict[str, Any]:
        """Return the constructor's arguments, to cross from a replica to the gateway."""
        return vars(self)

    @property
    def body(self) -> dict[str, Any]:
        """The JSON body."""
        kind = "invalid_request_error" if self.status < 500 else "server_error"
        return error_body(self.message, kind=kind, param=self.param, code=self.code)


def error_body(
    message: str, *, kind: str, param: str | None = None, code: str | None = None
) -> dict[str, Any]:
    """Return OpenAI's error object."""
    return {"error": {"message": message, "type": kind, "param": param, "code": code}}


def bad_request(message: str, *, param: str | None = None, code: str | None = None) -> ApiError:
    """The request itself is wrong (400)."""
    return ApiError(message, status=400, kind="bad_request", param=param, code=code)


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
    """A published version that this server will not serve (404): asking again changes nothing."""
    return ApiError(
        f"The model {model!r} is published but this server refuses it: {reason}",
        status=404,
        kind="refused_adapter",
        param="model",
        code="adapter_refused",
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
