"""A server of the serving benchmarks and its clients: requests, adapters, memory."""

from __future__ import annotations

import asyncio
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp

from cluster.models import model_digest
from cluster.registry import AdapterManifest, Registry
from jobs.bench.loopback import free_port
from jobs.bench.report import Case, at_most
from jobs.bench.side import SideProcess

CLIENTS = 8
WORDS_IN = 66
"""Makes a chat prompt of 93 tokens with SmolLM2's template and system message."""
TOKENS_OUT = 32
MODEL_HEADER = "x-distillery-model"


@dataclass(frozen=True)
class Sample:
    """One request: seconds, HTTP status, who answered, and the text."""

    latency_s: float
    status: int
    served_by: str
    text: str


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
            text = answer["choices"][0]["message"]["content"] if response.status == 200 else ""
            served_by = response.headers.get(MODEL_HEADER, "")
            return Sample(time.perf_counter() - begun, response.status, served_by, text)
    except (aiohttp.ClientError, TimeoutError, KeyError):
        return Sample(time.perf_counter() - begun, 0, "", "")


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


Texts = dict[str, frozenset[str]]
"""What each version answers when nobody else is asked, alone and several at a time."""


async def own_texts(
    url: str, request: dict[str, Any], models: Sequence[str], *, clients: int = CLIENTS
) -> Texts:
    """Ask each version by its name; SystemExit when two answer alike or one does not answer.

    bfloat16 sums depend on how many share the batch, and where two tokens are nearly equally likely
    a version has two answers of its own. Which of them is given says nothing about a mix-up.
    """
    texts: Texts = {}
    for model in models:
        asked = [request | {"model": model}]
        alone = await load(url, asked, clients=1)
        beside = await load(url, asked * 2 * clients, clients=clients)
        if failed := [sample.status for sample in (*alone, *beside) if sample.status != 200]:
            raise SystemExit(f"{model} does not answer: status {failed[0]}")
        texts[model] = frozenset(sample.text for sample in (*alone, *beside))
    if len(frozenset().union(*texts.values())) < sum(map(len, texts.values())):
        raise SystemExit("two versions answer alike: the benchmark could not tell them apart")
    return texts


def wrong_answers(samples: Sequence[Sample], texts: Texts) -> list[Case]:
    """Compare answers with what the version in their header answers by itself.

    A text that is nobody's can still be a rounding, of a batch with several adapters. It counts all
    the same; the second figure tells it from a version that was mixed up.
    """
    wrong = [sample for sample in samples if sample.text not in texts[sample.served_by]]
    everyones = frozenset().union(*texts.values())
    mixed_up = sum(sample.text in everyones for sample in wrong)
    return [
        at_most("answers unlike their version's own", len(wrong), unit="answers", target=0),
        at_most("of them another version's", mixed_up, unit="answers", target=0),
    ]


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


def publish_random(registry: Registry, name: str, model: Path, folder: Path, *, count: int) -> None:
    """Publish random adapters of rank 8 with non-zero B on all linear layers."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)
    config = LoraConfig(r=8, lora_alpha=16, target_modules="all-linear")
    adapted = get_peft_model(base, config)
    digest = model_digest(model)
    for number in range(1, count + 1):
        torch.manual_seed(zlib.crc32(f"{name}@v{number}".encode()))
        for parameter_name, weight in adapted.named_parameters():
            if "lora_B" in parameter_name:
                torch.nn.init.normal_(weight, std=0.02)
        place = folder / f"{name}-{number}"
        adapted.save_pretrained(place)
        manifest = AdapterManifest(
            name=name, base_model=model.name, base_digest=digest, rank=8, alpha=16.0,
            target_modules=sorted(config.target_modules or []), task="bench", task_digest="none",
            dataset_digest="none", teacher="none", train={}, gates=[],
        )  # fmt: skip
        registry.publish(place, manifest)
