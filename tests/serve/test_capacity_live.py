"""The simulator against a real server: a curve is measured, traffic is played, P90s compared.

Also that a real Ray Serve follows the policy: a second replica starts under load.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import openai
import pytest

from serve import app
from serve.autoscale import Scaling
from serve.capacity.curve import ServiceCurve
from serve.capacity.measure import Asker, measure_curve
from serve.capacity.simulate import Site, simulate
from serve.capacity.trace import Trace, synthetic
from serve.config import ServeConfig

pytestmark = [pytest.mark.ray, pytest.mark.model]

MODEL = "tiny-llama"
TRACE_S = 120
REQUEST: Any = {"prompt_words": 40, "max_tokens": 48, "stream": False}


@pytest.fixture(scope="module")
def url(
    ray_runtime: Any,
    tiny_model: Path,
    free_port: Callable[[], int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    config = ServeConfig(
        port=free_port(), max_replicas=2, target_ongoing_requests=24, cpu_threads=1
    )
    yield app.deploy(
        config,
        base_model=str(tiny_model),
        registry_uri=str(tmp_path_factory.mktemp("registry")),
        accelerator=None,
    )
    app.shutdown(config.app_name)


@pytest.fixture(scope="module")
def curve(url: str) -> ServiceCurve:
    return asyncio.run(
        measure_curve(
            url,
            model=MODEL,
            concurrencies=(1, 2, 4, 8, 16),
            seconds=10.0,
            **REQUEST,
        )
    )


def num_replicas() -> int:
    from ray import serve as ray_serve

    deployments = ray_serve.status().applications["distillery"].deployments
    states = next(d.replica_states for name, d in deployments.items() if name.endswith("replica"))
    return sum(count for state, count in states.items() if state == "RUNNING")


async def play(url: str, trace: Trace) -> np.ndarray:
    """Send requests like the measured ones when the trace says; the latency of each, seconds."""
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0) as client:
        ask = Asker(client, model=MODEL, **REQUEST)
        begin_s = time.perf_counter() + 1.0

        async def one(at_s: float) -> float:
            await asyncio.sleep(begin_s + at_s - time.perf_counter())
            answer = await ask()
            return answer.ended_s - answer.began_s

        return np.array(await asyncio.gather(*(one(at_s) for at_s in trace.arrival_s)))


def test_the_predicted_p90_is_near_the_observed_one(
    url: str, curve: ServiceCurve, capsys: pytest.CaptureFixture[str]
) -> None:
    rate = 0.5 * curve.requests_per_s(16)
    trace = synthetic(rate=rate, hours=TRACE_S / 3600, seed=11)
    one = Scaling(min_replicas=1, max_replicas=1, target_ongoing_requests=1.0)
    predicted = simulate(trace, scaling=one, site=Site(curve=curve)).quantile_s(0.9)
    observed = float(np.quantile(asyncio.run(play(url, trace)), 0.9))
    with capsys.disabled():
        print(
            f"\n{len(trace)} requests in {TRACE_S} s at half of the measured throughput: ", end=""
        )
        print(f"P90 predicted {predicted:.3f} s, observed {observed:.3f} s")
        print("curve", [(p.concurrency, p.seconds_per_request) for p in curve.points])
    assert num_replicas() == 1
    # The client shares the server's cores, and what else the machine does comes on top.
    assert 0.5 < predicted / observed < 1.6


def test_more_requests_under_way_start_a_second_replica(url: str, curve: ServiceCurve) -> None:
    async def flood() -> float:
        async def client(number: int) -> None:
            trace = Trace(np.array([0.0]))
            while num < 2:
                await play(url, trace)

        num = 1
        began_s = time.monotonic()
        clients = [asyncio.create_task(client(n)) for n in range(40)]
        while num < 2 and time.monotonic() - began_s < 240:
            await asyncio.sleep(1)
            num = await asyncio.to_thread(num_replicas)
        took_s = time.monotonic() - began_s
        num = 2
        await asyncio.gather(*clients)
        return took_s

    assert asyncio.run(flood()) < 240
    assert num_replicas() == 2
