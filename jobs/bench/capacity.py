"""The capacity simulator against a real server: measure a curve, play traffic, compare the P90s."""

from __future__ import annotations

import asyncio
import sys
import time
from typing import Any

import numpy as np

from jobs.bench.report import Case, at_most, for_comparison
from serve.autoscale import Scaling
from serve.capacity.curve import ServiceCurve
from serve.capacity.measure import Asker, measure_curve
from serve.capacity.simulate import Site, simulate
from serve.capacity.trace import Trace, synthetic

REQUEST: Any = {"prompt_words": 40, "max_tokens": 32, "stream": False}
CONCURRENCIES = (1, 2, 4, 8, 16)
MEASURE_S = 10.0
TRACE_S = 90
LOADS = (0.4, 0.7)
"""Shares of the measured throughput that are sent."""


def compare(url: str, model: str) -> list[Case]:
    """Predict and observe the P90 at each load; a figure is |predicted / observed - 1|."""
    curve: ServiceCurve = asyncio.run(
        measure_curve(url, model=model, concurrencies=CONCURRENCIES, seconds=MEASURE_S, **REQUEST)
    )
    one = Scaling(min_replicas=1, max_replicas=1, target_ongoing_requests=1.0)
    cases: list[Case] = []
    for load in LOADS:
        rate = load * curve.requests_per_s(CONCURRENCIES[-1])
        trace = synthetic(rate=rate, hours=TRACE_S / 3600, seed=11)
        predicted = simulate(trace, scaling=one, site=Site(curve=curve)).quantile_s(0.9)
        observed = float(np.quantile(asyncio.run(play(url, model, trace)), 0.9))
        print(
            f"capacity at {load:g}: P90 predicted {predicted:.2f} s, observed {observed:.2f} s",
            file=sys.stderr,
            flush=True,
        )
        cases += [
            for_comparison(f"P90 observed at {load:.0%} of the throughput", observed, unit="s"),
            at_most(
                f"P90 predicted, off by, at {load:.0%}",
                abs(predicted / observed - 1),
                unit="share",
                target=0.25,
            ),
        ]
    return cases


async def play(url: str, model: str, trace: Trace) -> np.ndarray:
    """Send requests like the measured ones when the trace says; the latency of each, seconds."""
    import openai

    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        ask = Asker(client, model=model, **REQUEST)
        begin_s = time.perf_counter() + 1.0

        async def one(at_s: float) -> float:
            await asyncio.sleep(begin_s + at_s - time.perf_counter())
            answer = await ask()
            return answer.ended_s - answer.began_s

        return np.array(await asyncio.gather(*(one(at_s) for at_s in trace.arrival_s)))
