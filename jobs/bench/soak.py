"""Serve for half an hour: `python -m jobs.bench.soak [--minutes 30]`.

Clients ask a base and three names in turn, whole and streamed, while one alias a minute moves.
Nothing may fail, every answer has to be that of the version that its header names, and the memory
of the gateway and of the replica with its engine must not grow.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp
import numpy as np

from cluster.registry import Registry
from jobs.bench.report import Case, at_most, for_comparison, report
from jobs.bench.served import (
    MODEL_HEADER,
    Sample,
    Server,
    ask,
    body,
    ours,
)
from jobs.bench.voices import Voices, mixed_up, publish_random, telling

NAMES = ("alpha", "beta", "gamma")
VERSIONS = 2
CLIENTS = 4
SWAP_EVERY_S = 60.0
WARM_SHARES = {0.2: True, 0.5: False}
"""Shares of the time before memory counts, and whether it is judged from there. The later one shows
whether what grows in between goes on (docs/log.md)."""
LEAST_MINUTES = 5
MOST_MIB_PER_MINUTE = 1.0


async def stream(session: aiohttp.ClientSession, url: str, request: dict[str, Any]) -> Sample:
    """Stream one answer; a stream that does not end as it should has status 0."""
    begun = time.perf_counter()
    lines: list[bytes] = []
    try:
        async with session.post(
            f"{url}/v1/chat/completions", json=request | {"stream": True}
        ) as response:
            status = response.status
            served_by = response.headers.get(MODEL_HEADER, "")
            async for line in response.content:
                if line.strip():
                    lines.append(line.strip())
    except (aiohttp.ClientError, TimeoutError):
        status, served_by = 0, ""
    if status == 200 and (not lines or lines[-1] != b"data: [DONE]"):
        status = 0
    return Sample(time.perf_counter() - begun, status, served_by)


async def soak(
    server: Server, registry: Registry, base: str, voices: Voices, *, minutes: float
) -> list[Case]:
    """Load the server and return what came of it."""
    models = [base, *NAMES]
    request = {name: telling(body(name, max_tokens=8)) for name in models}
    samples: list[Sample] = []
    whole: list[Sample] = []
    """Answers to the names, not streamed: of these it is known whose they should be."""
    memory: list[tuple[float, float, float]] = []
    begun = time.monotonic()
    end = begun + 60 * minutes

    async def client(session: aiohttp.ClientSession, turns: itertools.count[int]) -> None:
        while time.monotonic() < end:
            turn = next(turns)
            # Five are no multiple of four: every name is asked whole and streamed.
            kind = stream if turn % 5 == 0 else ask
            model = models[turn % len(models)]
            samples.append(found := await kind(session, server.url, request[model]))
            if kind is ask and model in NAMES and found.status == 200:
                whole.append(found)

    async def follow() -> None:
        swaps = 0
        while (left := end - time.monotonic()) > 0:
            await asyncio.sleep(min(left, SWAP_EVERY_S))
            name = NAMES[swaps % len(NAMES)]
            version = registry.aliases(name)["prod"] % VERSIONS + 1
            await asyncio.to_thread(registry.promote, name, version)
            swaps += 1
            held = await asyncio.to_thread(server.memory_mib)
            minute = (time.monotonic() - begun) / 60
            memory.append((minute, held["gateway"], held["replica"]))
            failed = sum(sample.status != 200 for sample in samples)
            print(
                f"minute {minute:.1f}: {len(samples)} requests, {failed} failed, gateway "
                f"{held['gateway']:.0f} MiB, replica {held['replica']:.0f} MiB",
                file=sys.stderr, flush=True,
            )  # fmt: skip

    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=300)) as session:
        turns = itertools.count()
        await asyncio.gather(follow(), *(client(session, turns) for _ in range(CLIENTS)))
    failed = sum(sample.status != 200 for sample in samples)
    latencies = [sample.latency_s for sample in samples]
    cases = [
        for_comparison("requests", len(samples), unit="requests"),
        for_comparison("alias moves", len(memory), unit="moves"),
        for_comparison("P90", float(np.quantile(latencies, 0.9)), unit="s"),
        at_most("requests that failed", failed, unit="requests", target=0),
        *mixed_up(whole, voices),
    ]
    return [*cases, *slopes(memory, minutes=minutes)]


def slopes(memory: list[tuple[float, float, float]], *, minutes: float) -> list[Case]:
    """Growth of both processes after the warm-up, MiB a minute, by least squares.

    `memory` has rows of (minute, gateway MiB, replica MiB).
    """
    cases = []
    for share, judged in WARM_SHARES.items():
        late = np.array([row for row in memory if row[0] > share * minutes])
        for column, what in ((1, "gateway"), (2, "replica")):
            name = f"memory of the {what}, after {share:.0%} of the time"
            slope = float(np.polyfit(late[:, 0], late[:, column], 1)[0])
            cases.append(
                at_most(name, slope, unit="MiB/min", target=MOST_MIB_PER_MINUTE)
                if judged
                else for_comparison(name, slope, unit="MiB/min")
            )
    return cases


def main() -> None:
    """Soak, print the table, exit with 1 if a target is missed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    default = Path(".cache/models/SmolLM2-135M-Instruct")
    parser.add_argument("--model", type=Path, default=default)
    parser.add_argument("--minutes", type=float, default=30)
    options = parser.parse_args()
    if options.minutes < LEAST_MINUTES:
        parser.error(f"--minutes {options.minutes:g}: a slope needs at least {LEAST_MINUTES}")
    model = options.model.absolute()
    with tempfile.TemporaryDirectory(prefix="distillery-bench-") as name:
        folder = Path(name)
        registry = Registry(str(folder / "registry"))
        messages = body(NAMES[0])["messages"]
        voices = publish_random(registry, NAMES, model, folder, count=VERSIONS, messages=messages)
        with ours(str(model), folder, max_loras=len(NAMES) * VERSIONS) as server:
            cases = asyncio.run(soak(server, registry, model.name, voices, minutes=options.minutes))
    sys.exit(report("soak", cases))


if __name__ == "__main__":
    main()
