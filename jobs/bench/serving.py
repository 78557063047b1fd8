"""The online side, against a bare vLLM server and stock Ray Serve LLM, in turns in one run.

    python -m jobs.bench.serving [--only PART ...] [--rounds N]

throughput   8 clients, 93 tokens in and 32 out: requests a second and P90, all sides in turns
hop          gateway and handle without a model
promote      promote to served everywhere, under load: seconds, failures, wrong versions
swaps        100 swaps, and 50 adapters through 4 slots: memory and wrong answers
malformed    10,000 wrong requests: answers of 5xx, stack traces, files touched
capacity     the simulator's P90 against the observed one
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from cluster.registry import Registry
from jobs.bench import malformed
from jobs.bench.capacity import compare
from jobs.bench.report import Case, at_least, at_most, for_comparison, report
from jobs.bench.served import (
    CLIENTS,
    Sample,
    Server,
    ask,
    body,
    load,
    ours,
    running,
)
from jobs.bench.voices import Voices, mixed_up, publish_random, telling

REQUESTS_A_TURN = 24
SWAP_LOAD = 500
"""Requests over which swaps may fail none."""


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
    request = telling(body("swapped", max_tokens=8))
    told = {"count": 2, "messages": request["messages"]}
    voices = publish_random(registry, ["swapped"], Path(model), folder, **told)
    with ours(model, folder) as server:
        return asyncio.run(_promote(server, registry, request, voices, swaps=max(4, rounds)))


async def _promote(
    server: Server, registry: Registry, request: dict[str, Any], voices: Voices, *, swaps: int
) -> list[Case]:
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
            # One token: what is asked is when it serves, not how long an answer takes.
            probe = request | {"max_tokens": 1}
            while (await ask(session, server.url, probe)).served_by != f"swapped@v{version}":
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
    return [
        at_most("promote to served under load, median", statistics.median(seconds), unit="s",
                target=2.0),
        for_comparison("requests meanwhile", len(samples), unit="requests"),
        at_most("of them failed", failed, unit="requests", target=0),
        *mixed_up([s for s in samples if s.status == 200], voices),
    ]  # fmt: skip


def swaps(model: str, folder: Path) -> list[Case]:
    """100 swaps, then 50 adapters through 4 slots: memory, and answers against PEFT's logits."""
    registry = Registry(str(folder / "registry"))
    request = telling(body("many", max_tokens=4))
    told = {"count": 50, "messages": request["messages"]}
    voices = publish_random(registry, ["many"], Path(model), folder, **told)
    with ours(model, folder, max_loras=4) as server:
        return asyncio.run(_swaps(server, registry, request, voices))


async def _swaps(
    server: Server, registry: Registry, request: dict[str, Any], voices: Voices
) -> list[Case]:
    versions = registry.versions("many")
    timeout = aiohttp.ClientTimeout(total=300)
    async with aiohttp.ClientSession(timeout=timeout) as session:
        every = [request | {"model": f"many@v{version}"} for version in versions]
        await load(server.url, every, clients=CLIENTS)
        # Every slot, cache and arena has been used by now.
        before = server.memory_mib()["replica"]
        for number in range(100):
            version = versions[number % len(versions)]
            await asyncio.to_thread(registry.promote, "many", version)
            while True:
                sample = await ask(session, server.url, request)
                if sample.served_by == f"many@v{version}":
                    break
                await asyncio.sleep(0.01)
        after_swaps = server.memory_mib()["replica"]
        samples = await load(server.url, every * 2, clients=CLIENTS)
        after_churn = server.memory_mib()["replica"]
    failed = sum(s.status != 200 for s in samples)
    return [
        for_comparison("replica's memory after 50 adapters", before, unit="MiB"),
        at_most("after 100 swaps / before", after_swaps / before, unit="ratio", target=1.05),
        at_most("after 100 more loads through 4 slots / before", after_churn / before,
                unit="ratio", target=1.05),
        at_most("of 100 answers by 50 adapters: failed", failed, unit="answers", target=0),
        *mixed_up([s for s in samples if s.status == 200], voices),
    ]  # fmt: skip


def _files(folder: Path) -> dict[Path, int]:
    """When each file was written, the server's own log apart."""
    return {
        path: path.stat().st_mtime_ns
        for path in folder.rglob("*")
        if path.is_file() and path.suffix != ".log"
    }


def malformed_requests(model: str, folder: Path, *, count: int = 10_000) -> list[Case]:
    """Send what no server should fall over."""
    registry = Registry(str(folder / "registry"))
    messages = body("reconcile")["messages"]
    publish_random(registry, ["reconcile"], Path(model), folder, count=1, messages=messages)
    with ours(model, folder) as server:
        before = _files(folder)
        outcome = malformed.send(server.url, count=count, seed=1)
        after = _files(folder)
    touched = sum(before.get(path) != after.get(path) for path in before.keys() | after.keys())
    print(f"malformed: {dict(sorted(outcome.statuses.items()))}", file=sys.stderr, flush=True)
    return [
        for_comparison("malformed requests", outcome.statuses.total(), unit="requests"),
        at_most("answers of 5xx or with a stack trace", len(outcome.bad), unit="answers", target=0),
        at_most("files changed, made or gone", touched, unit="files", target=0),
    ]


def capacity(model: str, folder: Path) -> list[Case]:
    """What `distillery capacity` predicts against what a replica does."""
    with ours(model, folder) as server:
        return compare(server.url, Path(model).name)


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
        "malformed": lambda folder: malformed_requests(model, folder),
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
