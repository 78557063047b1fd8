"""The deployment that both modules ask; the later one finds it as the earlier one left it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import loopback
import pytest
from deployment import Served, deployed
from serving_ray import RayRuntime, serving_ray


@pytest.fixture(scope="package")
def ray_runtime() -> Iterator[RayRuntime]:
    """The package's Ray."""
    with serving_ray() as runtime:
        yield runtime


@pytest.fixture(scope="package")
def served(
    ray_runtime: RayRuntime,
    tiny_model: Path,
    adapters: dict[str, Path],
    publish: Any,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    """Checks, a teacher, routing, canaries: `deployment.Served` says which name has which."""
    with deployed(
        tmp_path_factory.mktemp("policed"),
        port=loopback.free_port(),
        base_model=tiny_model,
        adapters=adapters,
        publish=publish,
    ) as served:
        yield served
