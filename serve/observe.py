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
    """Tokens and time of one request; `text` and what follows it are its first choice's."""

    prompt_tokens: int = 0
    completion_tokens: int = 0
    ttft_s: float | None = None
    text: str = ""
    finish_reason: str | None = None
    """OpenAI's: `stop`, `length`, …"""
    mean_logprob: float | None = None
    """Mean log-probability of its tokens, nats; only where it was asked for."""
    queue_s: float | None = None
    """In the engine's queue, until it was first scheduled."""
    tpot_s: float | None = None
    """Time per output token after the first; of one token there is none."""
    replica_s: float | None = None
    """In the replica, the load of a cold adapter included; of an answer that was not streamed."""

    def count_times(self, stats: Any) -> None:
        """Take the times of vLLM's `RequestStateStats`; without its log of statistics, none."""
        if stats is None or not stats.scheduled_ts:
            return
        self.queue_s = max(0.0, stats.scheduled_ts - stats.queued_ts)
        later = stats.num_generation_tokens - 1
        if later > 0 and stats.first_token_ts:
            self.tpot_s = max(0.0, stats.last_token_ts - stats.first_token_ts) / later


_current: ContextVar[tuple[Usage, bool] | None] = ContextVar("usage", default=None)


def observe(usage: Usage, *, logprobs: bool = False) -> None:
    """Let engine calls made from here on, in this task, count into `usage`.

    `logprobs` also has the engine sum up the log-probabilities of the tokens it samples; the
    client's answer does not show them.
    """
    _current.set((usage, logprobs))


def observed(generate: Any) -> Any:
    """Wrap an engine client's `generate` so that it fills the current request's Usage."""

    def wrapper(prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any) -> AsyncIterator[Any]:
        current = _current.get()
        if current is not None and current[1] and sampling_params.logprobs is None:
            sampling_params.logprobs = 0  # of the sampled token alone
        outputs = generate(prompt, sampling_params, *args, **kwargs)
        return outputs if current is None else _counted(outputs, current[0])

    return wrapper


async def _counted(outputs: AsyncIterator[Any], usage: Usage) -> AsyncIterator[Any]:
    started = time.perf_counter()
    first = True
    num_tokens = 0
    stats: Any = None
    # A final-only output carries whole texts, a delta its new part: both add up to the answer.
    async for output in outputs:
        if first:
            first = False
            usage.prompt_tokens += len(output.prompt_token_ids or ())
            if usage.ttft_s is None:
                measured = getattr(output.metrics, "first_token_latency", 0.0)
                usage.ttft_s = measured or time.perf_counter() - started
        stats = output.metrics
        for choice in output.outputs:
            usage.completion_tokens += len(choice.token_ids)
            if choice.index == 0:
                if len(usage.text) < MAX_LOGGED_CHARS:
                    usage.text += choice.text
                usage.finish_reason = choice.finish_reason or usage.finish_reason
                num_tokens += len(choice.token_ids)
                if choice.cumulative_logprob is not None and num_tokens:
                    usage.mean_logprob = choice.cumulative_logprob / num_tokens
        yield output
    usage.count_times(stats)
