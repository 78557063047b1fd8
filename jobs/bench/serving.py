"""The online side, against a bare vLLM server and stock Ray Serve LLM, in turns in one run.

    python -m jobs.bench.serving [--only throughput hop promote swaps capacity] [--rounds N]

throughput   8 clients, 93 tokens in and 32 out: requests a second and P90, all sides in turns
hop          gateway and handle without a model
promote      promote to served everywhere, under load: seconds, failures, wrong versions
swaps        100 swaps, and 50 adapters through 4 slots: memory and wrong answers
capacity     the simulator's P90 against the observed one
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from cluster.models import model_digest
from cluster.registry import AdapterManifest, Registry
from jobs.bench.capacity import compare
from jobs.bench.loopback import free_port
from jobs.bench.report import Case, at_least, at_most, for_comparison, report
from jobs.bench.side import SideProcess

CLIENTS = 8
WORDS_IN = 66
"""Makes a chat prompt of 93 tokens with SmolLM2's template and system message."""
TOKENS_OUT = 32
REQUESTS_A_TURN = 24
SWAP_LOAD = 500
"""Requests over which swaps may fail none."""
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

    def resident_mib(self) -> float:
        """Resident memory of the replica, MiB."""
        return float(self._process.ask({"command": "resident_mib"})["resident_mib"])

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


def throughput(model: str, folder: Path, *, rounds: int, with_stock: bool) -> list[Case]:
    """Requests a second and P90, the sides in turns, every other round backwards."""
    registry = str(folder / "registry")
    starts: list[Callable[[], Server]] = [
        lambda: Server("bare", folder, model=model),
        lambda: Server("ours", folder, model=model, registry=registry),
    ]
    if with_stock:
        starts.append(lambda: Server("stock", folder, model=model))
    with running(*starts) as servers:
        rates: dict[str, list[float]] = {server.name: [] for server in servers}
        latencies: dict[str, list[float]] = {server.name: [] for server in servers}
        names = {"ours": Path(model).name}
        for server in servers:
            server.turn(names.get(server.name, "base"), count=CLIENTS)
        for number in range(rounds):
            for server in servers if number % 2 == 0 else servers[::-1]:
                rate, taken = server.turn(names.get(server.name, "base"), count=REQUESTS_A_TURN)
                rates[server.name].append(rate)
                latencies[server.name].append(float(np.quantile(taken, 0.9)))
            shown = ", ".join(f"{name} {of[-1]:.2f}" for name, of in rates.items())
            print(f"requests/s: {shown}", file=sys.stderr, flush=True)
    cases = [for_comparison("bare vLLM", statistics.median(rates["bare"]), unit="requests/s")]
    for name in list(rates)[1:]:
        rate = _median_ratio(rates[name], rates["bare"])
        p90 = _median_ratio(latencies[name], latencies["bare"])
        if name == "ours":
            cases += [
                at_least("throughput / bare vLLM", rate, unit="ratio", target=0.95),
                at_most("P90 / bare vLLM", p90, unit="ratio", target=1.10),
            ]
        else:
            cases += [
                for_comparison("Ray Serve LLM: throughput / bare vLLM", rate, unit="ratio"),
                for_comparison("Ray Serve LLM: P90 / bare vLLM", p90, unit="ratio"),
            ]
    return cases


def _median_ratio(figures: list[float], others: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(figures, others, strict=True))


def hop(folder: Path, *, rounds: int) -> list[Case]:
    """Gateway and handle in front of a replica that answers at once."""
    with running(lambda: Server("hop", folder, registry=str(folder / "registry"))) as (server,):
        server.turn("base", count=200)
        rates, halves = [], []
        for _ in range(rounds):
            rate, taken = server.turn("base", count=1000)
            rates.append(rate)
            halves.append(statistics.median(taken) * 1000)
            print(f"hop: {rate:.0f}/s, P50 {halves[-1]:.1f} ms", file=sys.stderr, flush=True)
    return [
        at_least("hop without a model", statistics.median(rates), unit="requests/s", target=300),
        at_most("hop without a model, P50", statistics.median(halves), unit="ms", target=20),
    ]


def promote(model: str, folder: Path, *, rounds: int) -> list[Case]:
    """Move an alias to and fro under load; every answer is its own version's, none fails."""
    registry = Registry(str(folder / "registry"))
    publish_random(registry, "swapped", Path(model), folder, count=2)
    registry.promote("swapped", 1)
    start = lambda: Server(  # noqa: E731
        "ours", folder, model=model, registry=str(folder / "registry")
    )
    with running(start) as (server,):
        return asyncio.run(_promote(server, registry, swaps=max(4, rounds)))


async def _promote(server: Server, registry: Registry, *, swaps: int) -> list[Case]:
    request = body("swapped", max_tokens=8)
    texts = {
        version: (await load(server.url, [request | {"model": f"swapped@v{version}"}], clients=1))[
            0
        ].text
        for version in (1, 2)
    }
    if texts[1] == texts[2]:
        raise SystemExit("the two versions answer alike: the benchmark could not tell them apart")
    samples: list[Sample] = []
    done = asyncio.Event()

    async def client(session: aiohttp.ClientSession) -> None:
        while not done.is_set() or len(samples) < SWAP_LOAD:
            samples.append(await ask(session, server.url, request))

    async def swap(session: aiohttp.ClientSession) -> list[float]:
        seconds = []
        for number in range(swaps):
            await asyncio.sleep(2)
            version = 2 - number % 2
            begun = time.perf_counter()
            await asyncio.to_thread(registry.promote, "swapped", version)
            while (await ask(session, server.url, request)).served_by != f"swapped@v{version}":
                await asyncio.sleep(0.01)
            seconds.append(time.perf_counter() - begun)
            print(f"promote: {seconds[-1]:.2f} s", file=sys.stderr, flush=True)
        done.set()
        return seconds

    async with aiohttp.ClientSession() as session:
        clients = [asyncio.create_task(client(session)) for _ in range(CLIENTS)]
        seconds = await swap(session)
        await asyncio.gather(*clients)
    failed = sum(sample.status != 200 for sample in samples)
    wrong = sum(
        sample.status == 200 and sample.text != texts[int(sample.served_by[-1])]
        for sample in samples
    )
    return [
        at_most("promote to served under load, median", statistics.median(seconds), unit="s",
                target=2.0),
        for_comparison("requests meanwhile", len(samples), unit="requests"),
        at_most("of them failed", failed, unit="requests", target=0),
        at_most("of them answered by a wrong version", wrong, unit="requests", target=0),
    ]  # fmt: skip


def swaps(model: str, folder: Path) -> list[Case]:
    """100 swaps, then 50 adapters through 4 slots: memory, and answers against the first ones."""
    registry = Registry(str(folder / "registry"))
    publish_random(registry, "many", Path(model), folder, count=50)
    registry.promote("many", 1)
    start = lambda: Server(  # noqa: E731
        "ours", folder, model=model, registry=str(folder / "registry"), max_loras=4
    )
    with running(start) as (server,):
        return asyncio.run(_swaps(server, registry))


async def _swaps(server: Server, registry: Registry) -> list[Case]:
    request = body("many", max_tokens=4)
    versions = registry.versions("many")
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        texts = {}
        for version in versions:
            name = f"many@v{version}"
            texts[name] = (await ask(session, server.url, request | {"model": name})).text
        # Every slot, cache and arena has been used by now.
        before = server.resident_mib()
        for number in range(100):
            version = versions[number % len(versions)]
            await asyncio.to_thread(registry.promote, "many", version)
            while True:
                sample = await ask(session, server.url, request)
                if sample.served_by == f"many@v{version}":
                    break
                await asyncio.sleep(0.01)
        after_swaps = server.resident_mib()
        asked = [request | {"model": f"many@v{v}"} for v in versions] * 2
        samples = await load(server.url, asked, clients=CLIENTS)
        after_churn = server.resident_mib()
    wrong = sum(s.status != 200 or s.text != texts[s.served_by] for s in samples)
    return [
        for_comparison("replica's memory after 50 adapters", before, unit="MiB"),
        at_most("after 100 swaps / before", after_swaps / before, unit="ratio", target=1.05),
        at_most("after 100 more loads through 4 slots / before", after_churn / before,
                unit="ratio", target=1.05),
        at_most("answers that changed, of 100 by 50 adapters", wrong, unit="answers", target=0),
    ]  # fmt: skip


def capacity(model: str, folder: Path) -> list[Case]:
    """What `distillery capacity` predicts against what a replica does."""
    start = lambda: Server(  # noqa: E731
        "ours", folder, model=model, registry=str(folder / "registry")
    )
    with running(start) as (server,):
        return compare(server.url, Path(model).name)


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
        torch.manual_seed(number)
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


def main() -> None:
    """Measure, print the table, exit with 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(".cache/models/SmolLM2-135M-Instruct")
    parser.add_argument("--model", type=Path, default=default)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--no-stock", action="store_true", help="leave out stock Ray Serve LLM")
    parts: dict[str, Callable[[Path], list[Case]]] = {
        "throughput": lambda folder: throughput(
            model, folder, rounds=options.rounds, with_stock=not options.no_stock
        ),
        "hop": lambda folder: hop(folder, rounds=5),
        "promote": lambda folder: promote(model, folder, rounds=options.rounds),
        "swaps": lambda folder: swaps(model, folder),
        "capacity": lambda folder: capacity(model, folder),
    }
    parser.add_argument("--only", nargs="+", choices=parts, default=list(parts))
    options = parser.parse_args()
    model = str(options.model.absolute())
    cases: list[Case] = []
    failed = 0
    for part in options.only:
        with tempfile.TemporaryDirectory(prefix="distillery-bench-") as folder:
            cases += parts[part](Path(folder))
        failed = report("serve", cases)
    sys.exit(failed)


if __name__ == "__main__":
    main()
