"""Where an answer's time went: the engine's own times, what is left for the gateway."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from serve.call import overhead_s
from serve.observe import Usage, observe, observed
from serve.quality.gate import Checked


@dataclass
class Stats:
    """The fields of vLLM's RequestStateStats that are read; they change while it generates."""

    queued_ts: float = 10.0
    scheduled_ts: float = 10.25
    first_token_ts: float = 0.0
    last_token_ts: float = 0.0
    num_generation_tokens: int = 0
    first_token_latency: float = 0.4


def generate(stats: Stats | None, *, tokens: int) -> Any:
    async def outputs(prompt: Any, sampling_params: Any) -> Any:
        for number in range(tokens):
            if stats is not None:
                stats.num_generation_tokens = number + 1
                stats.last_token_ts = 10.5 + 0.1 * number
                stats.first_token_ts = 10.5
            choice = SimpleNamespace(
                index=0, token_ids=[7], text="x", finish_reason=None, cumulative_logprob=None
            )
            yield SimpleNamespace(prompt_token_ids=[1, 2], metrics=stats, outputs=[choice])

    return outputs


def run(stats: Stats | None, *, tokens: int) -> Usage:
    usage = Usage()

    async def ask() -> None:
        observe(usage)
        async for _ in observed(generate(stats, tokens=tokens))("prompt", SimpleNamespace()):
            pass

    asyncio.run(ask())
    return usage


def test_queue_and_time_per_token_are_the_engines_own() -> None:
    usage = run(Stats(), tokens=5)
    assert usage.queue_s == pytest.approx(0.25)
    assert usage.tpot_s == pytest.approx(0.1)
    assert usage.completion_tokens == 5


def test_one_token_has_no_time_per_token_and_an_engine_without_statistics_says_nothing() -> None:
    assert run(Stats(), tokens=1).tpot_s is None
    silent = run(None, tokens=3)
    assert (silent.queue_s, silent.tpot_s) == (None, None)


def overhead(usage: Usage, *, checked: Checked | None = None, ttft_s: float | None) -> float | None:
    return overhead_s(SimpleNamespace(checked=checked), usage, latency_s=1.0, ttft_s=ttft_s)  # type: ignore[arg-type]


def test_the_gateways_part_is_what_the_replica_did_not_take() -> None:
    assert overhead(Usage(replica_s=0.75, ttft_s=0.2), ttft_s=0.2) == 0.25
    # Of a stream until its first token: how fast a client reads is not the gateway's time.
    assert overhead(Usage(ttft_s=0.25), ttft_s=0.5) == 0.25
    # The answer is the second attempt's; what the first took is neither's overhead.
    refused = Checked(b"", Usage(), quality="form", answered_by="retry")
    assert overhead(Usage(replica_s=0.25), checked=refused, ttft_s=None) is None
