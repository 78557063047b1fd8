"""Asking a model to judge, through LiteLLM: answers as text, failures as errors, never raised."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cluster.prices import TokenPrice, api_price
from distill.config import JudgeLiteLLM
from distill.judge.schema import response_format
from distill.records import Message
from distill.surrogates import without_halves


@dataclass(frozen=True)
class Reply:
    """What came back for one question."""

    text: str = ""
    error: str = ""
    """Why there is no text; `""` when there is."""
    cost_usd: float | None = 0.0
    """Price of the call; `None` when the model's price is not known."""


class JudgeClient:
    """One judging model and how its JSON is asked for. Temperature 0, where the model has one."""

    def __init__(self, config: JudgeLiteLLM):
        """Check the key (PrerequisiteError)."""
        # From there, not by itself: that module keeps LiteLLM from fetching a newer price table.
        from distill.teach.provider import connection, litellm

        litellm.suppress_debug_info = True
        self._config = config
        self._connection = connection(
            model=config.model, api_base=config.api_base, api_key_env=config.api_key_env
        )
        self._strict = config.response_format == "json_schema" or (
            config.response_format == "auto"
            and bool(litellm.supports_response_schema(model=config.model))
        )
        self._price = _price(config)

    def ask_all(
        self, questions: Sequence[list[Message]], *, schema: dict[str, Any], name: str
    ) -> list[Reply]:
        """Ask every question for an object of `schema`, `concurrency` at a time, in order."""
        return asyncio.run(
            self._all(questions, response_format(schema, name=name, strict=self._strict))
        )

    async def _all(
        self, questions: Sequence[list[Message]], answer_format: dict[str, Any]
    ) -> list[Reply]:
        slots = asyncio.Semaphore(self._config.concurrency)

        async def one(messages: list[Message]) -> Reply:
            async with slots:
                return await self._one(messages, answer_format)

        return list(await asyncio.gather(*(one(messages) for messages in questions)))

    async def _one(self, messages: list[Message], answer_format: dict[str, Any]) -> Reply:
        from distill.teach.provider import complete

        request = {
            **self._connection,
            "messages": messages,
            "temperature": 0.0,
            "response_format": answer_format,
            # Reasoning models refuse a temperature, some servers a response format: LiteLLM knows
            # which, and the answer is read with care in any case.
            "drop_params": True,
        }
        try:
            response, _ = await complete(
                request, max_retries=self._config.max_retries, timeout_s=self._config.timeout_s
            )
            choice = response.choices[0]
            text = without_halves(choice.message.content or "")
        except Exception as error:
            # One record's failure; the others are judged all the same.
            return Reply(error=f"{type(error).__name__}: {str(error)[:300]}")
        cost_usd = self._cost(response)
        if not text.strip():
            return Reply(error=f"empty answer ({choice.finish_reason})", cost_usd=cost_usd)
        return Reply(text=text, cost_usd=cost_usd)

    def _cost(self, response: Any) -> float | None:
        usage = getattr(response, "usage", None)
        if self._price is None or usage is None:
            return None
        return self._price.request_usd(
            prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens
        )


def _price(config: JudgeLiteLLM) -> TokenPrice | None:
    if config.price is None:
        return api_price(config.model)
    return config.price.as_token_price("the judge's own price")
