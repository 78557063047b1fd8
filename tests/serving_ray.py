"""A Ray for serving: its metrics can be scraped, and are a second old at most."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import loopback
from local_ray import local_ray


@dataclass(frozen=True)
class RayRuntime:
    """Where the tests' Ray answers Prometheus."""

    metrics_port: int


@contextmanager
def serving_ray() -> Iterator[RayRuntime]:
    """Ray with 8 logical CPUs and metrics every second, stopped at the end."""
    port = loopback.free_port()
    with local_ray(
        object_store_mib=200,
        _metrics_export_port=port,
        _system_config={"metrics_report_interval_ms": 1000},
    ):
        yield RayRuntime(metrics_port=port)
