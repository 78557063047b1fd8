"""Any provider or OpenAI-compatible server, through LiteLLM. Only workers import this."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Sequence
from typing import Any

from tenacity import (
    AsyncRetrying,
    retry_if_exception_type,
    stop_after_attempt,
    wait_random_exponential,
)

# The price table that was installed, not today's from the network: the same run, the same bill.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "True")
import litellm

from cluster.errors import ConfigError, PrerequisiteError
from distill.config import LiteLLMTeacher
from distill.teach.teacher import Answer

# What another attempt can mend. A bad request, a wrong key or a refused content cannot be.
RETRIED = (
    litellm.exceptions.RateLimitError,
    litellm.exceptions.Timeout,
    litellm.exceptions.APIConnectionError,
    litellm.exceptions.InternalServerError,
    litellm.exceptions.ServiceUnavailableError,
    litellm.exceptions.BadGatewayError,
)


def connection(*, model: str, api_base: str | None, api_key_env: str | None) -> dict[str, Any]:
    """Arguments that reach the model; a key that is needed and missing is a PrerequisiteError."""
    if api_key_env:
        key = os.environ.get(api_key_env)
        if not key:
            raise PrerequisiteError(
                f"the key for {model} is missing: set the environment variable {api_key_env}."
            )
        return {"model": model, "api_base": api_base, "api_key": key}
    missing = litellm.validate_environment(model)["missing_keys"]
    if missing and api_base:
        # A server of one's own usually asks for no key, but the client insists on some text.
        return {"model": model, "api_base": api_base, "api_key": "none"}
    if missing:
        raise PrerequisiteError(
            f"the key for {model} is missing: set the environment variable {' or '.join(missing)}, "
            "or name another one with api_key_env."
        )
    return {"model": model, "api_base": api_base}


def token_prices(config: LiteLLMTeacher) -> tuple[float, float]:
    """Dollars per input and output token: the configured price, else LiteLLM's table.

    A model that neither knows is a ConfigError: an unknown price is never zero.
    """
    if config.price is not None:
        return config.price.input_usd_per_mtok / 1e6, config.price.output_usd_per_mtok / 1e6
    try:
        known = litellm.get_model_info(config.model)
    except Exception:
        known = None
    if not known or known.get("input_cost_per_token") is None:
        raise ConfigError(
            f"teacher.model {config.model!r}: LiteLLM's price table does not know it; give "
            "[teacher.price] input_usd_per_mtok and output_usd_per_mtok (0 for your own server)."
        )
    return float(known["input_cost_per_token"]), float(known["output_cost_per_token"] or 0.0)


async def complete(
    request: dict[str, Any], *, max_retries: int, timeout_s: float
) -> tuple[Any, float]:
    """Send one chat completion with retries; returns (response, seconds of the last attempt)."""
    async for attempt in AsyncRetrying(
        stop=stop_after_attempt(max_retries + 1),
        wait=wait_random_exponential(multiplier=0.5, max=30),
        retry=retry_if_exception_type(RETRIED),
        reraise=True,
    ):
        with attempt:
            start = time.perf_counter()
            response = await litellm.acompletion(**request, timeout=timeout_s, max_retries=0)
            return response, time.perf_counter() - start
    raise AssertionError("AsyncRetrying ends with a result or raises")


class LiteLLMTeacherRunner:
    """Asks a model, many prompts at once."""

    def __init__(self, config: LiteLLMTeacher, *, name: str):
        """Check key and price, so that both fail before a cent is spent."""
        self.name = name
        self._config = config
        self._connection = connection(
            model=config.model, api_base=config.api_base, api_key_env=config.api_key_env
        )
        self._prices = token_prices(config)
        litellm.suppress_debug_info = True

    def answer(self, rows: Sequence[dict[str, Any]]) -> list[Answer]:
        """Ask for every row, `concurrency` at a time."""
        return asyncio.run(self._all(rows))

    async def _all(self, rows: Sequence[dict[str, Any]]) -> list[Answer]:
        slots = asyncio.Semaphore(self._config.concurrency)

        async def one(row: dict[str, Any]) -> Answer:
            async with slots:
                return await self._one(row)

        return list(await asyncio.gather(*(one(row) for row in rows)))

    async def _one(self, row: dict[str, Any]) -> Answer:
        config = self._config
        request = {
            **self._connection,
            "messages": list(row["messages"]),
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
        }
        try:
            response, latency_s = await complete(
                request, max_retries=config.max_retries, timeout_s=config.timeout_s
            )
            text = response.choices[0].message.content
        except Exception as error:
            # A row that keeps failing ends as a failed row; the others go on.
            return Answer(error=f"{type(error).__name__}: {str(error)[:500]}")
        if not text:
            return Answer(error=f"empty answer ({response.choices[0].finish_reason})")
        usage = response.usage
        tokens_in, tokens_out = int(usage.prompt_tokens), int(usage.completion_tokens)
        return Answer(
            completion=text,
            prompt_tokens=tokens_in,
            completion_tokens=tokens_out,
            latency_s=latency_s,
            cost_usd=tokens_in * self._prices[0] + tokens_out * self._prices[1],
        )
