"""What asking would cost, before anything is asked. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from cluster.prices import TokenPrice
from distill.teach.config import LiteLLMTeacher

CHARS_PER_TOKEN = 4.0
"""A usual figure for English text; other languages and code have more tokens."""
ASSUMED_LATENCY_S = 10.0
"""Seconds a request is taken to last where no answer of the model is known yet."""
LEAST_KNOWN = 20
"""Answers of the same model that make an average worth more than an assumption."""


@dataclass(frozen=True)
class Estimate:
    """Tokens, dollars and hours of what is still to be asked."""

    prompts: int
    """Prompts of the run."""
    samples: int
    """Answers asked for each of them."""
    known: int
    """Of these answers, those on disk: they are not asked again."""
    input_tokens: int
    """Estimated from the prompts' length."""
    output_tokens: int
    """Expected."""
    most_output_tokens: int
    """If every answer were as long as `max_tokens` allows."""
    usd: float | None
    """Expected dollars; `None` where no table knows the price."""
    most_usd: float | None
    """Dollars if every answer were as long as it may be."""
    hours: float
    """The longest of what concurrency, requests and tokens a minute allow."""
    basis: str
    """Where the expected length and the seconds of a request are from."""


def estimate(
    prompts: Sequence[dict[str, Any]],
    config: LiteLLMTeacher,
    *,
    missing: Sequence[dict[str, Any]],
    earlier: Sequence[dict[str, Any]],
    price: TokenPrice | None,
) -> Estimate:
    """Estimate asking for `missing`, a row for each answer that `prompts` lack.

    `earlier` are journal rows of the same model.
    """
    chars = sum(len(message["content"]) for row in missing for message in row["messages"])
    input_tokens = round(chars / CHARS_PER_TOKEN)
    answered = [row for row in earlier if not row["error"]]
    most = config.max_tokens * len(missing)
    if len(answered) >= LEAST_KNOWN:
        output_tokens = round(fmean(row["completion_tokens"] for row in answered) * len(missing))
        latency_s = fmean(row["latency_s"] for row in answered)
        basis = f"the average of {len(answered)} answers of this model on disk"
    else:
        output_tokens, latency_s = most, ASSUMED_LATENCY_S
        basis = f"no answers known yet: longest answers, {ASSUMED_LATENCY_S:g} s a request assumed"
    seconds = [len(missing) * latency_s / config.concurrency]
    if config.requests_per_minute:
        seconds.append(60 * len(missing) / config.requests_per_minute)
    if config.tokens_per_minute:
        seconds.append(60 * (input_tokens + output_tokens) / config.tokens_per_minute)

    def usd(completion_tokens: int) -> float | None:
        if price is None:
            return None
        return price.request_usd(prompt_tokens=input_tokens, completion_tokens=completion_tokens)

    return Estimate(
        prompts=len(prompts),
        samples=config.samples,
        known=len(prompts) * config.samples - len(missing),
        input_tokens=input_tokens,
        output_tokens=output_tokens,
        most_output_tokens=most,
        usd=usd(output_tokens),
        most_usd=usd(most),
        hours=max(seconds) / 3600,
        basis=basis,
    )
