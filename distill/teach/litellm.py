"""A teacher that is asked through LiteLLM, and what it costs. Only workers import this."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Sequence
from typing import Any

from cluster.errors import ConfigError
from cluster.prices import api_price
from distill.records import Message
from distill.tasks.task import Task
from distill.teach.answer import Answer, problem_of
from distill.teach.config import LiteLLMTeacher
from distill.teach.limits import Gate
from distill.teach.provider import complete, connection, litellm, reason_to_retry
from distill.teach.reasoning import split_reasoning, with_reasoning

log = logging.getLogger(__name__)

MESSAGE_TOKENS = 16
"""Most that a message takes beside its text."""
QUOTED_BYTES = 500
"""Of what was wrong, in the request for a repair: a problem can quote a whole answer."""
COMPLAINT = (
    "That answer cannot be used: {problem}. Answer the question again, in the required form and "
    "with nothing else."
)


def _make_known(model: str, prices: tuple[float, float, float]) -> None:
    """Tell LiteLLM of a model that its table lacks.

    It prices every response for its own log and looks an unknown name up in ten ways each time,
    1.2 ms of CPU a call.
    """
    try:
        litellm.get_model_info(model)
    except Exception:
        per_input, per_cached, per_output = prices
        entry = {
            "mode": "chat",
            "litellm_provider": litellm.get_llm_provider(model)[1],
            "input_cost_per_token": per_input,
            "cache_read_input_token_cost": per_cached,
            "output_cost_per_token": per_output,
        }
        litellm.register_model({model: entry})


def token_prices(config: LiteLLMTeacher) -> tuple[float, float, float]:
    """Dollars per input, cached input and output token: the configured price, else the tables'.

    A model that neither knows is a ConfigError: an unknown price is never zero.
    """
    if config.price is not None:
        price = config.price.as_token_price("[teacher.price]")
    else:
        # Not LiteLLM's own look-up, which answers with zeros for some names that it does not know.
        known = api_price(config.model)
        if known is None:
            raise ConfigError(
                f"teacher.model {config.model!r}: the price table does not know it; give "
                "[teacher.price] input_usd_per_mtok and output_usd_per_mtok (0 for your own "
                "server)."
            )
        price = known
    per_input, per_cached = price.input_usd_per_mtok, price.cached_usd_per_mtok
    return (
        per_input / 1e6,
        (per_input if per_cached is None else per_cached) / 1e6,
        price.output_usd_per_mtok / 1e6,
    )


class LiteLLMTeacherRunner:
    """Asks a model, many prompts at once."""

    def __init__(self, config: LiteLLMTeacher, task: Task, *, name: str):
        """Check key and price, so that both fail before a cent is spent."""
        self.name = name
        self._config = config
        self._task = task
        self._connection = connection(
            model=config.model, api_base=config.api_base, api_key_env=config.api_key_env
        )
        self._prices = token_prices(config)
        self._format = self._response_format()
        self._said_uncounted = False
        litellm.suppress_debug_info = True
        _make_known(config.model, self._prices)

    def answer(self, rows: Sequence[dict[str, Any]]) -> list[Answer]:
        """Ask for every row, `concurrency` at a time; the stage asks through `ask`."""
        return asyncio.run(self._all(rows))

    async def _all(self, rows: Sequence[dict[str, Any]]) -> list[Answer]:
        slots = asyncio.Semaphore(self._config.concurrency)

        async def one(row: dict[str, Any]) -> Answer:
            async with slots:
                return await self.ask(row)

        return list(await asyncio.gather(*(one(row) for row in rows)))

    def most_usd(self, row: dict[str, Any]) -> float:
        """Most that a row's requests can cost."""
        most_in = self._most_tokens_in(self._messages(row))
        most_out = self._config.max_tokens
        once = self.usd_of(prompt_tokens=most_in, completion_tokens=most_out)
        if not self._config.repair:
            return once
        return once + self.usd_of(
            prompt_tokens=most_in + self._most_tokens_of_repair(), completion_tokens=most_out
        )

    def _most_tokens_in(self, messages: Sequence[Message]) -> int:
        """Most tokens that a request can have: one a byte, as digits and JSON nearly do."""
        schema = 0 if self._format is None else len(json.dumps(self._format))
        return schema + sum(len(m["content"].encode()) + MESSAGE_TOKENS for m in messages)

    def _most_tokens_of_repair(self) -> int:
        """Those that a repair sends beyond the first request: the answer and the complaint."""
        complaint = len(COMPLAINT) + QUOTED_BYTES
        return self._config.max_tokens + complaint + 2 * MESSAGE_TOKENS

    def _messages(self, row: dict[str, Any]) -> list[Message]:
        reasoning = self._config.reasoning
        return with_reasoning(row["messages"]) if reasoning else list(row["messages"])

    async def ask(self, row: dict[str, Any], *, gate: Gate | None = None) -> Answer:
        """Answer one row; an answer that does not fit the output is repaired at most once."""
        messages = self._messages(row)
        sample = row.get("sample") or 0
        most_in = self._most_tokens_in(messages)
        answer = await self._ask(messages, gate, sample=sample, most_in=most_in)
        if answer.error or not self._config.repair:
            return answer
        problem = self._task.parse(answer.completion).problem
        if not problem:
            return answer
        quoted = problem.encode(errors="replace")[:QUOTED_BYTES].decode(errors="ignore")
        again = await self._ask(
            [
                *messages,
                {"role": "assistant", "content": answer.completion},
                {"role": "user", "content": COMPLAINT.format(problem=quoted)},
            ],
            gate,
            sample=sample,
            most_in=most_in + self._most_tokens_of_repair(),
        )
        mended = not again.error and not self._task.parse(again.completion).problem
        return answer.followed_by(again, kept=again if mended else answer)

    async def _ask(
        self, messages: list[Message], gate: Gate | None, *, sample: int, most_in: int
    ) -> Answer:
        config = self._config
        request = {
            **self._connection,
            "messages": messages,
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
            # Reasoning models refuse a temperature, and some servers a seed: LiteLLM knows which.
            "drop_params": True,
        }
        if config.seed is not None:
            request["seed"] = config.seed + sample
        if self._format is not None:
            request["response_format"] = self._format
        retried: list[str] = []
        tokens = sum(len(m["content"]) for m in messages) // 4 + config.max_tokens
        try:
            response, latency_s = await complete(
                request,
                max_retries=config.max_retries,
                timeout_s=config.timeout_s,
                gate=gate,
                tokens=tokens,
                on_retry=retried.append,
            )
            message = response.choices[0].message
            finish_reason = str(response.choices[0].finish_reason)
            text = message.content or ""
            thoughts = str(getattr(message, "reasoning_content", None) or "")
        except Exception as error:
            # A row that keeps failing ends as a failed row; the others go on.
            reason = reason_to_retry(error) or "refused"
            return Answer(
                error=f"{type(error).__name__}: {str(error)[:500]}",
                failure=reason,
                retried=tuple(retried),
            )
        truncated = finish_reason == "length"
        most_out = config.max_tokens
        if not truncated:
            most_out = min(most_out, len((thoughts + text).encode()))
        rationale = ""
        if config.reasoning:
            rationale, text = split_reasoning(text)
            # Providers that keep a model's thoughts apart put them here.
            rationale = rationale or thoughts.strip()
        problem, failure = problem_of(
            text,
            truncated=truncated,
            max_tokens=config.max_tokens,
            finish_reason=finish_reason,
        )
        return self._counted(
            Answer(
                completion=text,
                rationale=rationale,
                error=problem,
                failure=failure,
                latency_s=latency_s,
                retried=tuple(retried),
            ),
            getattr(response, "usage", None),
            most_in=most_in,
            most_out=most_out,
        )

    def _counted(self, answer: Answer, usage: Any, *, most_in: int, most_out: int) -> Answer:
        """Return the answer with its tokens and dollars, as the server counted them.

        Of what it did not count, the most that it can have been: a budget holds all the same.
        """
        tokens_in = int(getattr(usage, "prompt_tokens", None) or 0)
        tokens_out = int(getattr(usage, "completion_tokens", None) or 0)
        if any(self._prices) and (not tokens_in or (most_out and not tokens_out)):
            tokens_in, tokens_out = tokens_in or most_in, tokens_out or most_out
            if not self._said_uncounted:
                self._said_uncounted = True
                log.warning(
                    "%s: the server sends no usage; its tokens, and so the dollars, are taken to "
                    "be as many as they can be (one a byte).",
                    self._config.model,
                )
        details = getattr(usage, "prompt_tokens_details", None)
        cached = min(tokens_in, int(getattr(details, "cached_tokens", None) or 0))
        return answer.with_usage(
            prompt_tokens=tokens_in,
            cached_tokens=cached,
            completion_tokens=tokens_out,
            cost_usd=self.usd_of(
                prompt_tokens=tokens_in, completion_tokens=tokens_out, cached_tokens=cached
            ),
        )

    def usd_of(
        self, *, prompt_tokens: int, completion_tokens: int, cached_tokens: int = 0
    ) -> float:
        """Price of a request, US dollars; `cached_tokens` are among the prompt's."""
        per_input, per_cached, per_output = self._prices
        paid_in_full = prompt_tokens - cached_tokens
        return (
            paid_in_full * per_input + cached_tokens * per_cached + completion_tokens * per_output
        )

    def _response_format(self) -> dict[str, Any] | None:
        """Ask for the task's own schema where the provider enforces one."""
        config, task = self._config, self._task
        if task.spec.output.format != "json" or config.structured == "off":
            return None
        if config.reasoning:
            return None  # nothing could stand before the object
        strict = config.structured == "json_schema" or (
            config.structured == "auto" and bool(litellm.supports_response_schema(config.model))
        )
        if not strict and config.structured == "auto":
            return None  # a server that does not know the field may refuse the whole request
        if not strict:
            return {"type": "json_object"}
        return {
            "type": "json_schema",
            "json_schema": {
                "name": task.name.replace(".", "-"),
                # Providers enforce closed objects only; an open schema is still a strong hint.
                "strict": _closed(task.schema),
                "schema": task.schema,
            },
        }


def _closed(schema: Any) -> bool:
    """Whether every object of a JSON Schema forbids further properties and requires its own."""
    if isinstance(schema, list):
        return all(map(_closed, schema))
    if not isinstance(schema, dict):
        return True
    if "properties" in schema and (
        schema.get("additionalProperties") is not False
        or set(schema.get("required", [])) != set(schema["properties"])
    ):
        return False
    return all(map(_closed, schema.values()))
