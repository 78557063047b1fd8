"""From a body's bytes to the request that a replica gets."""

from __future__ import annotations

import json
import re
import uuid
from dataclasses import dataclass
from typing import Any, NoReturn

from serve.errors import bad_request, too_large

UNSAFE_IN_ID = re.compile(r"[^A-Za-z0-9._:-]")
MAX_DEPTH = 64
"""Levels of arrays and objects in a body. JSON Schemas in requests have a dozen; what a process
passes on by recursion (pickle, pydantic) breaks near a thousand."""
CHARS_OF_A_TOKEN = 4
"""What one id of a tokenised prompt counts as."""


@dataclass(frozen=True, slots=True)
class ApiRequest:
    """What the gateway needs to know; the fields themselves are validated once, by the engine."""

    model: str
    stream: bool
    payload: dict[str, Any]

    @property
    def prompt_chars(self) -> int:
        """Characters of the prompt, or of the messages and tools."""
        return sum(_chars(self.payload.get(name)) for name in ("messages", "tools", "prompt"))

    @property
    def max_tokens(self) -> int | None:
        """Tokens that one choice may have, if the request says so."""
        asked = self.payload.get("max_completion_tokens", self.payload.get("max_tokens"))
        return asked if _is_count(asked) else None

    @property
    def choices(self) -> int:
        """Answers asked for: `n` for each prompt."""
        n: Any = self.payload.get("n")
        prompt: Any = self.payload.get("prompt")
        many = isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list))
        return int(n if _is_count(n) else 1) * (len(prompt) if many else 1)


def parse_object(body: bytes, *, max_bytes: int) -> dict[str, Any]:
    """Read a body that is one JSON object; ApiError (400 or 413) says what is wrong."""
    if len(body) > max_bytes:
        raise too_large(
            f"The request body has {len(body)} bytes; at most {max_bytes} are accepted."
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
        if "integer string" in str(error):
            # Python reads no number of more than 4,300 digits (CVE-2020-10735).
            raise bad_request("The body holds a number with too many digits.") from None
        raise bad_request(f"The body is not valid JSON: {error}.") from None
    if body.count(b"{") + body.count(b"[") > MAX_DEPTH and _depth_exceeds(payload, MAX_DEPTH):
        raise bad_request("The body is nested too deeply.")
    if not isinstance(payload, dict):
        raise bad_request("The body must be a JSON object.")
    return payload


def parse_body(body: bytes, *, max_bytes: int) -> ApiRequest:
    """Read the JSON body of a completion request; ApiError (400 or 413) says what is wrong."""
    payload = parse_object(body, max_bytes=max_bytes)
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
    prompt = payload.get("prompt")
    if isinstance(prompt, list) and len(prompt) == 1 and isinstance(prompt[0], str):
        # One request to the engine either way; so it is to checks and routing.
        payload["prompt"] = prompt[0]
    return ApiRequest(model=model, stream=stream, payload=payload)


def check_size(request: ApiRequest, *, max_prompt_chars: int, max_choices: int) -> None:
    """Raise ApiError (400), as OpenAI words it, for a prompt or a number that is too large."""
    chars = request.prompt_chars
    if chars > max_prompt_chars:
        field = "prompt" if "prompt" in request.payload else "messages"
        raise bad_request(
            f"Invalid '{field}': string too long. Expected a string with maximum length "
            f"{max_prompt_chars}, but got a string with length {chars} instead.",
            param=field,
            code="string_above_max_length",
        )
    for field, value in request.payload.items():
        if _holds_a_huge_integer(value):
            # The engine's processes hand each other 64 bits.
            raise bad_request(
                f"Invalid '{field}': it holds an integer of more than 64 bits.",
                param=field,
                code="integer_above_max_value",
            )
    if request.choices > max_choices:
        raise bad_request(
            f"Invalid 'n': integer above maximum value. Expected a value <= {max_choices} (for all "
            f"prompts together), but got {request.choices} instead.",
            param="n",
            code="integer_above_max_value",
        )


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _holds_a_huge_integer(value: Any) -> bool:
    """Whether an integer in a value does not fit into 64 bits; without recursion."""
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, int):
            if not -(2**63) <= item < 2**64:
                return True
        elif isinstance(item, dict):
            left.extend(item.values())
        elif isinstance(item, list):
            left.extend(item)
    return False


def _chars(value: Any) -> int:
    """Characters of every string in a value; without recursion, however deep it is."""
    total = 0
    left = [value]
    while left:
        item = left.pop()
        if isinstance(item, str):
            total += len(item)
        elif isinstance(item, dict):
            left.extend(item.values())
        elif isinstance(item, list):
            left.extend(item)
        elif isinstance(item, int) and not isinstance(item, bool):
            total += CHARS_OF_A_TOKEN
    return total


def _depth_exceeds(value: Any, most: int) -> bool:
    level = [value]
    for _ in range(most):
        below: list[Any] = []
        for item in level:
            if isinstance(item, (dict, list)):
                below.extend(item.values() if isinstance(item, dict) else item)
        if not below:
            return False
        level = [item for item in below if isinstance(item, (dict, list))]
    return bool(level)


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
