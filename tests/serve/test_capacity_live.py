"""A real Ray Serve follows the policy: a second replica starts under load."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from cluster.registry import Registry
from serve import app
from serve.config import ServeConfig

pytestmark = [pytest.mark.ray, pytest.mark.model]

MODEL = "tiny-llama"


@pytest.fixture(scope="module")
def url(
    ray_runtime: Any,
    tiny_model: Path,
    adapters: dict[str, Path],
    publish: Any,
    free_port: Callable[[], int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[str]:
    registry = Registry(str(tmp_path_factory.mktemp("registry")))
    publish(registry, "cold", adapters["one"])  # behind no alias: nobody loads it unasked
    config = ServeConfig(
        port=free_port(), max_replicas=2, target_ongoing_requests=24, cpu_threads=1
    )
    yield app.deploy(
        config,
        base_model=str(tiny_model),
        registry_uri=registry.store.root,
        accelerator=None,
    )
    app.shutdown(config.app_name)


def num_replicas() -> int:
    from ray import serve as ray_serve

    deployments = ray_serve.status().applications["distillery"].deployments
    states = next(d.replica_states for name, d in deployments.items() if name.endswith("replica"))
    return sum(count for state, count in states.items() if state == "RUNNING")


def test_more_requests_under_way_start_a_second_replica(url: str) -> None:
    ask = {"model": MODEL, "prompt": "word " * 40, "max_tokens": 48, "ignore_eos": True}

    async def flood() -> None:
        async with httpx.AsyncClient(base_url=url, timeout=300) as http:
            clients = [asyncio.create_task(client(http)) for _ in range(40)]
            async with asyncio.timeout(300):
                # In a thread: clients that stop between connecting and asking are closed upon.
                while await asyncio.to_thread(num_replicas) < 2:
                    await asyncio.sleep(0.5)
            enough.set()
            await asyncio.gather(*clients)

    async def client(http: httpx.AsyncClient) -> None:
        while not enough.is_set():
            answer = await http.post("/v1/completions", json=ask)
            assert answer.status_code == 200, answer.text

    enough = asyncio.Event()
    asyncio.run(flood())
    assert num_replicas() == 2


def test_requests_prefer_the_replica_that_holds_their_adapter(url: str) -> None:
    assert num_replicas() == 2
    ask = {"model": "cold@v1", "prompt": "word", "max_tokens": 1}

    def holders() -> int:
        held = httpx.get(f"{url}/admin/status", timeout=60).json()["resident"]
        assert len(held) == 2
        return sum("cold@v1" in ids for ids in held)

    assert httpx.post(f"{url}/v1/completions", json=ask, timeout=300).status_code == 200
    assert holders() == 1
    time.sleep(3)  # the replica tells Serve within a second, and Serve its routers
    for _ in range(20):
        assert httpx.post(f"{url}/v1/completions", json=ask, timeout=300).status_code == 200
    assert holders() == 1
