"""From what the engine says to what a client can act on."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing
from typing import Any

from pydantic import ValidationError

from serve.errors import ApiError, bad_request
from serve.requests import prompt_messages

TOO_LONG = re.compile(r"maximum context length|longer than the maximum model length")
REQUESTED = re.compile(r"you requested (\d+) output tokens")
ERROR_EVENT = 'data: {"error"'
MAX_COUNTED_CHARS = 200_000
"""A longer prompt is not tokenised just to say how much too long it is."""


def explain_validation_error(error: ValidationError) -> ApiError:
    """Name the first wrong field and what is wrong with it (400)."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    # Tags of unions are in the location too; a client knows names and positions only.
    parts = [str(p) for p in first["loc"] if isinstance(p, int) or str(p).isidentifier()]
    param = ".".join(parts) or None
    text = first["msg"].removeprefix("Value error, ")[:300]
    return bad_request(f"{param}: {text}" if param else text, param=param, code="invalid_value")


def explain_engine_error(
    message: str,
    *,
    param: str | None,
    max_length: int,
    length: Callable[[], int | None],
) -> ApiError:
    """Turn vLLM's message into a 400; an over-long prompt gets both lengths.

    vLLM stops tokenising just past the limit, so it cannot say how long the prompt is: `length`
    counts, or returns `None` when that would take too long.
    """
    if not TOO_LONG.search(message):
        return bad_request(message[:500], param=param, code="invalid_value")
    asked = REQUESTED.search(message)
    num_output = int(asked[1]) if asked else 0
    num_prompt = length()
    if num_prompt is None:
        return bad_request(message[:500], param="messages", code="context_length_exceeded")
    output = f" and {num_output} tokens of completion" if num_output else ""
    return bad_request(
        f"This model's maximum context length is {max_length} tokens, but the request has "
        f"{num_prompt} tokens of prompt{output}. Shorten the prompt or ask for fewer tokens.",
        param="messages",
        code="context_length_exceeded",
    )


async def raising(
    events: AsyncGenerator[str, None], explain: Callable[[int, str, str | None], ApiError]
) -> AsyncIterator[str]:
    """Yield the engine's server-sent events, and raise the one that is an error.

    vLLM's generators of streams turn whatever they raise into an event. `explain` gets its status,
    message and parameter; once an event has gone out the status is 500: what is answered in part
    was no wrong request.
    """
    begun = False
    async with aclosing(events):
        async for event in events:
            if event.startswith(ERROR_EVENT):
                error = json.loads(event.removeprefix("data: "))["error"]
                raise explain(500 if begun else error["code"], error["message"], error["param"])
            begun = True
            yield event


def prompt_length(payload: dict[str, Any], tokenizer: Any) -> int | None:
    """Count a prompt's tokens as the engine does; `None` if it is too long to count."""
    prompt = payload.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        return len(prompt)
    messages = prompt_messages(payload)
    if sum(len(m["content"]) for m in messages) > MAX_COUNTED_CHARS:
        return None
    if isinstance(prompt, str):
        return len(tokenizer.encode(prompt))
    encoded = tokenizer.apply_chat_template(
        messages, tokenize=True, add_generation_prompt=True, return_dict=True
    )
    return len(encoded["input_ids"])
