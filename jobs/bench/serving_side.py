"""One server of the serving benchmark in processes of its own: ours, Ray Serve LLM's, vLLM's.

The first command says which, and where; once it answers, requests are sent to its port by others.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from cluster import cpu_engine, processor
from jobs.bench.side import answer
from serve.config import ServeConfig
from serve.observe import Usage

MAX_MODEL_LEN = 1024
KV_CACHE_GB = 1
STARTUP_S = 600.0


def main() -> None:
    """Serve until standard input ends."""
    setup = json.loads(sys.stdin.readline())
    with SIDES[setup.pop("side")](**setup):
        answer({"ready": True})
        for line in sys.stdin:
            answer(COMMANDS[json.loads(line)["command"]]())


@contextmanager
def _ray() -> Iterator[None]:
    import ray

    from cluster.session import start_local_ray

    # Ray's sockets lie below this folder and a socket's path has at most 107 characters.
    with tempfile.TemporaryDirectory(prefix="dst-", ignore_cleanup_errors=True) as folder:
        start_local_ray(folder, num_cpus=8, object_store_memory=200 << 20)
        try:
            yield
        finally:
            ray.shutdown()


@contextmanager
def ours(*, model: str, port: int, registry: str, max_loras: int = 4) -> Iterator[None]:
    """Distillery's gateway and one replica."""
    from serve import app

    config = ServeConfig(
        port=port, max_model_len=MAX_MODEL_LEN, kv_cache_gb=KV_CACHE_GB, max_loras=max_loras
    )
    with _ray():
        app.deploy(config, base_model=model, registry_uri=registry, accelerator=None)
        try:
            yield
        finally:
            app.shutdown(config.app_name)


@contextmanager
def stock(*, model: str, port: int) -> Iterator[None]:
    """Ray Serve LLM as its documentation builds it, the same engine settings."""
    # What is ours to choose is not what it would come with.
    engine = cpu_engine.engine_arguments(kv_cache_gb=KV_CACHE_GB)
    engine.pop("ir_op_priority")
    with _ray():
        from ray import serve
        from ray.serve.llm import LLMConfig, build_openai_app

        config = LLMConfig(
            model_loading_config={"model_id": "base", "model_source": model},
            engine_kwargs={"max_model_len": MAX_MODEL_LEN, **engine},
            accelerator_config={"kind": "cpu"},
            runtime_env={"env_vars": cpu_engine.environment(kv_cache_gb=KV_CACHE_GB)},
        )
        serve.start(http_options={"host": "127.0.0.1", "port": port})
        serve.run(build_openai_app({"llm_configs": [config]}), route_prefix="/")
        try:
            yield
        finally:
            serve.shutdown()


@contextmanager
def bare(*, model: str, port: int) -> Iterator[None]:
    """VLLM's own OpenAI server, the same engine settings."""
    flags = [
        "--model", model, "--served-model-name", "base", "--port", str(port),
        "--host", "127.0.0.1", "--dtype", processor.dtype_name(None),
        "--max-model-len", str(MAX_MODEL_LEN), "--enforce-eager", "--no-enable-chunked-prefill",
    ]  # fmt: skip
    env = os.environ | cpu_engine.environment(kv_cache_gb=KV_CACHE_GB)
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", *flags]
    process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=sys.stderr)
    try:
        _wait_for(f"http://127.0.0.1:{port}/health", process)
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(timeout=30)
        process.kill()


def _wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + STARTUP_S
    while time.monotonic() < deadline and process.poll() is None:
        with suppress(OSError):
            urllib.request.urlopen(url, timeout=5)
            return
        time.sleep(0.5)
    raise SystemExit(f"nothing answers at {url}")


class InstantReplica:
    """Stands where a replica stands and answers at once: what is left is gateway and handle."""

    async def answer(self, *request: Any) -> tuple[int, Any, Usage]:
        """Answer a whole request."""
        return 200, INSTANT_ANSWER, Usage(prompt_tokens=93, completion_tokens=32)

    async def stream(self, *request: Any) -> AsyncIterator[Any]:
        """Answer a streamed one."""
        yield b"data: [DONE]\n\n"
        yield Usage(prompt_tokens=93, completion_tokens=32)

    def resident_adapters(self) -> list[str]:
        """It holds none."""
        return []


INSTANT_ANSWER = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 0,
        "model": "base",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "word " * 32},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 93, "completion_tokens": 32, "total_tokens": 125},
    }
).encode()


@contextmanager
def hop(*, port: int, registry: str) -> Iterator[None]:
    """The gateway in front of a replica that answers at once."""
    with _ray():
        from ray import serve

        from serve.app import gateway_deployment, http_options, proxy_location

        config = ServeConfig(port=port)
        serve.start(proxy_location=proxy_location(config), http_options=http_options(config))
        replica = serve.deployment(InstantReplica, name="replica", max_ongoing_requests=1000)
        gateway = gateway_deployment(accelerator=None).bind(
            replica.bind(), config=config, base_name="base", registry_uri=registry
        )
        serve.run(gateway, route_prefix="/", logging_config={"enable_access_log": False})
        try:
            yield
        finally:
            serve.shutdown()


def memory_mib() -> dict[str, float]:
    """Resident memory of the gateway, and of the replica with its engine, MiB."""
    import psutil

    found = {"gateway": 0.0, "replica": 0.0}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            title = " ".join(process.cmdline())
            if "EngineCore" in title or "ModelReplica" in title:
                found["replica"] += process.memory_info().rss / 2**20
            elif title.startswith("ray::Serve") and ":gateway" in title:
                found["gateway"] += process.memory_info().rss / 2**20
    return found


SIDES: dict[str, Any] = {"ours": ours, "stock": stock, "bare": bare, "hop": hop}
COMMANDS = {"memory_mib": memory_mib}


if __name__ == "__main__":
    main()
