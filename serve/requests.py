"""From a body's bytes to the request that a replica gets."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from typing import Any, NoReturn

from serve.errors import ApiError, bad_request

UNSAFE_IN_ID = re.compile(r"[^A-Za-z0-9._:-]")


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """What the gateway needs to know; the fields themselves are validated once, by the engine."""

    model: str
    stream: bool
    payload: dict[str, Any]


def parse_body(body: bytes, *, max_bytes: int) -> ApiRequest:
    """Read the JSON body of a completion request; ApiError (400 or 413) says what is wrong."""
    if len(body) > max_bytes:
        raise ApiError(
            f"The request body has {len(body)} bytes; at most {max_bytes} are accepted.",
            status=413,
            kind="bad_request",
            code="request_too_large",
        )
    try:
        payload = json.loads(body, parse_constant=_no_constant)
        if b"\\u" in body:
            # A lone surrogate is valid JSON and no valid text: it would fail in the tokenizer.
            json.dumps(payload, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise bad_request("The body contains a lone surrogate, which is no character.") from None
    except UnicodeDecodeError:
        raise bad_request("The body is not valid UTF-8.") from None
    except RecursionError:
        raise bad_request("The body is nested too deeply.") from None
    except ValueError as error:
        raise bad_request(f"The body is not valid JSON: {error}.") from None
    if not isinstance(payload, dict):
        raise bad_request("The body must be a JSON object.")
    model = payload.get("model")
    if not isinstance(model, str) or not model:
        raise bad_request("`model` is required and must be a string.", param="model")
    stream = payload.get("stream")
    if stream is None:
        stream = False
        payload.pop("stream", None)
    if not isinstance(stream, bool):
        raise bad_request("`stream` must be true or false.", param="stream")
    # The engine would take its own id from here; ids are the gateway's.
    payload.pop("request_id", None)
    return ApiRequest(model=model, stream=stream, payload=payload)


def request_id_of(header: str | None) -> str:
    """Return the client's request id as far as it is safe in a log, or a new one."""
    return UNSAFE_IN_ID.sub("", header or "")[:128] or uuid.uuid4().hex


def prompt_messages(payload: dict[str, Any]) -> list[dict[str, str]]:
    """Return the messages of a chat request, or a text prompt as one user message.

    Content parts become their text, so the id of an example is the same however a client wrote it.
    """
    messages = payload.get("messages")
    if isinstance(messages, list):
        return [
            {"role": str(m.get("role", "")), "content": _text(m.get("content"))}
            for m in messages
            if isinstance(m, dict)
        ]
    return [{"role": "user", "content": _text(payload.get("prompt"))}]


def _text(content: Any) -> str:
    if isinstance(content, str):
        return content
    if isinstance(content, list):
        parts = [p.get("text", "") if isinstance(p, dict) else str(p) for p in content]
        return "".join(str(part) for part in parts)
    return "" if content is None else str(content)


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
