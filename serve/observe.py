"""What one request cost, read off the engine's own outputs instead of parsing its answer again."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

MAX_LOGGED_CHARS = 65_536


@dataclass(slots=True)
class Usage:
    """Tokens and time of one request; `text` is its first choice."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_s: float | None = None
    text: str = ""


_current: ContextVar[Usage | None] = ContextVar("usage", default=None)


def observe(usage: Usage) -> None:
    """Let engine calls made from here on, in this task, count into `usage`."""
    _current.set(usage)


def observed(generate: Any) -> Any:
    """Wrap an engine client's `generate` so that it fills the current request's Usage."""

    def wrapper(*args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        outputs = generate(*args, **kwargs)
        usage = _current.get()
        return outputs if usage is None else _counted(outputs, usage)

    return wrapper


async def _counted(outputs: AsyncIterator[Any], usage: Usage) -> AsyncIterator[Any]:
    started = time.perf_counter()
    first = True
    # A final-only output carries whole texts, a delta its new part: both add up to the answer.
    async for output in outputs:
        if first:
            first = False
            usage.prompt_tokens += len(output.prompt_token_ids or ())
            if usage.ttft_s is None:
                measured = getattr(output.metrics, "first_token_latency", 0.0)
                usage.ttft_s = measured or time.perf_counter() - started
        for choice in output.outputs:
            usage.completion_tokens += len(choice.token_ids)
            if choice.index == 0 and len(usage.text) < MAX_LOGGED_CHARS:
                usage.text += choice.text
        yield output
