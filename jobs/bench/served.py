"""A server of the serving benchmarks and its clients: requests, answers, memory."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp

from jobs.bench.loopback import free_port
from jobs.bench.side import SideProcess

CLIENTS = 8
WORDS_IN = 66
"""Makes a chat prompt of 93 tokens with SmolLM2's template and system message."""
TOKENS_OUT = 32
MODEL_HEADER = "x-distillery-model"


@dataclass(frozen=True)
class Sample:
    """One request: seconds, HTTP status and who answered."""

    latency_s: float
    status: int
    served_by: str
    said: dict[str, float] = field(default_factory=dict)
    """The likeliest first tokens and their log-probabilities, where they were asked for."""


def body(model: str, number: int = 0, *, max_tokens: int = TOKENS_OUT) -> dict[str, Any]:
    """A chat request whose first words differ, so that no side answers it from its cache."""
    words = [f"{number}:", *(["bank"] * WORDS_IN)]
    return {
        "model": model,
        "messages": [{"role": "user", "content": " ".join(words)}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "temperature": 0,
    }


async def ask(session: aiohttp.ClientSession, url: str, request: dict[str, Any]) -> Sample:
    """Send one request; a connection that breaks has status 0."""
    begun = time.perf_counter()
    try:
        async with session.post(f"{url}/v1/chat/completions", json=request) as response:
            answer = await response.json()
            said = _first_token(answer) if response.status == 200 else {}
            served_by = response.headers.get(MODEL_HEADER, "")
            return Sample(time.perf_counter() - begun, response.status, served_by, said)
    except (aiohttp.ClientError, TimeoutError, KeyError):
        return Sample(time.perf_counter() - begun, 0, "")


def _first_token(answer: dict[str, Any]) -> dict[str, float]:
    told = answer["choices"][0].get("logprobs")
    return (
        {top["token"]: top["logprob"] for top in told["content"][0]["top_logprobs"]} if told else {}
    )


async def load(url: str, requests: Sequence[dict[str, Any]], *, clients: int) -> list[Sample]:
    """Send the requests, `clients` at a time."""
    waiting = iter(requests)
    found: list[Sample] = []

    async def client() -> None:
        for request in waiting:
            found.append(await ask(session, url, request))

    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        await asyncio.gather(*(client() for _ in range(clients)))
    return found


class Server:
    """A side of the benchmark and where it listens."""

    def __init__(self, side: str, folder: Path, **setup: Any):
        self.name = side
        port = free_port()
        self.url = f"http://127.0.0.1:{port}"
        self._process = SideProcess(
            "jobs.bench.serving_side",
            setup={"side": side, "port": port, **setup},
            env={"VLLM_LOGGING_LEVEL": "WARNING"},
            log=folder / f"{side}.log",
        )
        self._number = 0

    def turn(self, model: str, *, count: int, clients: int = CLIENTS) -> tuple[float, list[float]]:
        """Return requests a second and the latencies of `count` requests that all succeed."""
        first = self._number
        self._number += count
        requests = [body(model, number) for number in range(first, first + count)]
        begun = time.perf_counter()
        samples = asyncio.run(load(self.url, requests, clients=clients))
        seconds = time.perf_counter() - begun
        failed = [s.status for s in samples if s.status != 200]
        if failed:
            raise SystemExit(f"{self.name}: {len(failed)} of {count} requests failed: {failed[:5]}")
        return count / seconds, [s.latency_s for s in samples]

    def memory_mib(self) -> dict[str, float]:
        """Resident memory of the `gateway` and of the `replica` with its engine, MiB."""
        return self._process.ask({"command": "memory_mib"})

    def close(self) -> None:
        """End it."""
        self._process.close()


@contextmanager
def running(*starts: Callable[[], Server]) -> Iterator[list[Server]]:
    """Start servers one after the other; end them all."""
    servers: list[Server] = []
    try:
        for start in starts:
            servers.append(start())
        yield servers
    finally:
        for server in servers:
            server.close()


@contextmanager
def ours(model: str, folder: Path, **setup: Any) -> Iterator[Server]:
    """Our gateway and one replica over the registry in `folder`."""
    registry = str(folder / "registry")
    with running(lambda: Server("ours", folder, model=model, registry=registry, **setup)) as (one,):
        yield one
