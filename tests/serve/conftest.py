"""A Ray of the tests' own, and a registry with random adapters for the tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import loopback
import pytest
from serving_ray import RayRuntime, serving_ray

from cluster.models import model_digest
from cluster.registry import AdapterManifest, Registry

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


@pytest.fixture(scope="session")
def free_port() -> Callable[[], int]:
    """Function that returns an unused port."""
    return loopback.free_port


@pytest.fixture(scope="module")
def ray_runtime() -> Iterator[RayRuntime]:
    """A Ray of the module's own."""
    with serving_ray() as runtime:
        yield runtime


@pytest.fixture(scope="session")
def adapters(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Folders of random adapters: `one`, `two`, `three` of rank 8, `wide` of rank 64."""
    folder = tmp_path_factory.mktemp("adapters")
    specs = {"one": (8, 1), "two": (8, 2), "three": (8, 3), "wide": (64, 4)}
    subprocess.run(
        [
            sys.executable,
            str(HERE / "random_adapter.py"),
            str(tiny_model),
            *(f"{rank}:{seed}:{folder / name}" for name, (rank, seed) in specs.items()),
        ],
        check=True,
        cwd=ROOT,
        capture_output=True,
    )
    return {name: folder / name for name in specs}


Publish = Callable[..., AdapterManifest]


@pytest.fixture(scope="session")
def publish(tiny_model: Path) -> Publish:
    """Publish a folder as the next version of a name: `publish(registry, "reconcile", folder)`."""
    digest = model_digest(tiny_model)

    def run(
        registry: Registry, name: str, folder: Path, *, base_digest: str = digest
    ) -> AdapterManifest:
        config = json.loads((folder / "adapter_config.json").read_text())
        manifest = AdapterManifest(
            name=name,
            base_model="tiny-llama",
            base_digest=base_digest,
            rank=config["r"],
            alpha=config["lora_alpha"],
            target_modules=sorted(config["target_modules"]),
            task="test",
            task_digest="0" * 64,
            dataset_digest="0" * 64,
            teacher="none",
            train={},
            gates=[],
        )
        return registry.publish(folder, manifest)

    return run
