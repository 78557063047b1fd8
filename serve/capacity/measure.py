"""Measure a service curve: closed loops of clients against a running gateway with one replica."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from cluster.errors import PrerequisiteError, StageError
from serve.capacity.curve import Point, ServiceCurve

CONCURRENCIES = (1, 2, 4, 8, 16, 32)
ROUNDS = 2
"""Requests of each client that are counted at least, after its first."""
WORDS = ["ledger", "bank", "invoice", "amount", "date", "vendor", "refund", "transfer", "entry"]


@dataclass(frozen=True)
class Answer:
    """When one request began, had its first token (streamed ones only) and ended."""

    began_s: float
    first_s: float | None
    ended_s: float
    prompt_tokens: int
    completion_tokens: int


async def measure_curve(
    url: str,
    *,
    model: str,
    api_key: str = "none",
    concurrencies: Sequence[int] = CONCURRENCIES,
    prompt_words: int = 80,
    max_tokens: int = 32,
    stream: bool = True,
    seconds: float = 20.0,
    timeout_s: float = 300.0,
    told: Callable[[Point], None] = lambda point: None,
) -> ServiceCurve:
    """Ask `url` with so many clients at a time, each asking again when it is answered.

    Each concurrency lasts `seconds` and at least until every client was counted twice. A client's
    first request is not counted: all of them start together. Answers are always `max_tokens` long
    (vLLM's `ignore_eos`), prompts of `prompt_words` words differ, so no prefix cache helps. Only
    streams tell the time to the first token; they cost the server more than whole answers.
    PrerequisiteError when nothing answers, StageError with the server's words when it refuses.
    """
    import openai

    base = url.rstrip("/").removesuffix("/v1")
    answers: list[Answer] = []
    points = []
    async with openai.AsyncOpenAI(
        base_url=f"{base}/v1", api_key=api_key, max_retries=0, timeout=timeout_s
    ) as client:
        ask = Asker(
            client, model=model, prompt_words=prompt_words, max_tokens=max_tokens, stream=stream
        )
        try:
            await ask()
            for concurrency in concurrencies:
                counted, lasted_s = await _closed_loop(ask, concurrency, seconds=seconds)
                answers += counted
                points.append(_point(concurrency, counted, lasted_s))
                told(points[-1])
        except openai.APITimeoutError:
            raise StageError(
                f"{base} did not answer a request within {timeout_s:g} s: lower --concurrency."
            ) from None
        except openai.APIConnectionError:
            raise PrerequisiteError(
                f"nothing answers at {base}: start it with `distillery serve FILE`."
            ) from None
        except openai.APIStatusError as error:
            raise StageError(f"{base} answered {error.status_code}: {error.message}") from None
    return ServiceCurve(
        model=model,
        measured_at=datetime.now(UTC).isoformat(timespec="seconds"),
        prompt_tokens=float(np.mean([answer.prompt_tokens for answer in answers])),
        completion_tokens=float(np.mean([answer.completion_tokens for answer in answers])),
        points=points,
    )


class Asker:
    """One kind of request: each call sends it once, with words of its own."""

    def __init__(
        self, client: Any, *, model: str, prompt_words: int, max_tokens: int, stream: bool
    ):
        """`client` is an `openai.AsyncOpenAI`."""
        self._client = client
        self._model = model
        self._prompt_words = prompt_words
        self._max_tokens = max_tokens
        self._stream = stream
        self._random = np.random.default_rng()

    async def __call__(self) -> Answer:
        """Ask, and read the answer to its end."""
        words = " ".join(self._random.choice(WORDS, self._prompt_words))
        fields = {
            "model": self._model,
            "messages": [{"role": "user", "content": f"{self._random.integers(10**9)} {words}"}],
            "max_tokens": self._max_tokens,
            "temperature": 0.0,
            "extra_body": {"ignore_eos": True},
        }
        began_s = time.perf_counter()
        first_s, usage = None, None
        create = self._client.chat.completions.create
        if self._stream:
            told = {"stream": True, "stream_options": {"include_usage": True}}
            async for chunk in await create(**fields, **told):
                first_s = first_s or time.perf_counter()
                usage = chunk.usage or usage
        else:
            usage = (await create(**fields)).usage
        if usage is None:
            raise StageError("the server does not say how many tokens an answer took")
        ended_s = time.perf_counter()
        return Answer(began_s, first_s, ended_s, usage.prompt_tokens, usage.completion_tokens)


async def _closed_loop(
    ask: Asker, concurrency: int, *, seconds: float
) -> tuple[list[Answer], float]:
    """Return the answers counted at this concurrency, and over how many seconds they ended."""
    counted: list[Answer] = []
    enough = asyncio.Event()
    began_s = time.perf_counter()

    async def client() -> None:
        await ask()
        while True:
            answer = await ask()
            counted.append(answer)
            long_enough = answer.ended_s - began_s >= seconds
            if long_enough and len(counted) >= ROUNDS * concurrency:
                enough.set()

    clients = [asyncio.create_task(client()) for _ in range(concurrency)]
    stop = asyncio.create_task(enough.wait())
    try:
        done, _ = await asyncio.wait([*clients, stop], return_when=asyncio.FIRST_COMPLETED)
    finally:
        # What is still under way is dropped: it would end among fewer and fewer others.
        for task in (*clients, stop):
            task.cancel()
        await asyncio.gather(*clients, stop, return_exceptions=True)
    for task in done - {stop}:
        task.result()
    answers = sorted(counted, key=lambda answer: answer.ended_s)
    return answers, answers[-1].ended_s - min(answer.began_s for answer in answers)


def _point(concurrency: int, answers: list[Answer], lasted_s: float) -> Point:
    took_s = np.array([answer.ended_s - answer.began_s for answer in answers])
    first_s = [answer.first_s - answer.began_s for answer in answers if answer.first_s is not None]
    return Point(
        concurrency=concurrency,
        seconds_per_request=round(float(took_s.mean()), 4),
        tokens_per_s=round(sum(answer.completion_tokens for answer in answers) / lasted_s, 2),
        p50_s=round(float(np.quantile(took_s, 0.5)), 4),
        p90_s=round(float(np.quantile(took_s, 0.9)), 4),
        ttft_s=round(float(np.mean(first_s)), 4) if first_s else None,
        requests=len(answers),
    )
