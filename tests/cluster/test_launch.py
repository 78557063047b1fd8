"""The `ray up` files, checked by Ray's own launcher code."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

LAUNCH = Path(__file__).parents[2] / "cluster" / "launch"
FILES = sorted(LAUNCH.glob("*.yaml"))


def load(path: Path) -> dict[str, Any]:
    return yaml.safe_load(path.read_text())


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_ray_up_accepts_the_file(path: Path) -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    validate_config(prepare_config(load(path)))
    assert path.read_text().startswith(f"# ray up cluster/launch/{path.name}\n")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_nodes_export_metrics_where_prometheus_looks_and_the_dashboard_stays_private(
    path: Path,
) -> None:
    config = load(path)
    head = " ".join(config["head_start_ray_commands"])
    worker = " ".join(config["worker_start_ray_commands"])
    assert "--metrics-export-port=8080" in head
    assert "--metrics-export-port=8080" in worker
    assert "--dashboard-host=127.0.0.1" in head


def test_an_h100_node_is_known_before_the_first_one_runs() -> None:
    config = load(LAUNCH / "aws-h100.yaml")
    assert config["available_node_types"]["h100"]["resources"]["accelerator_type:H100"] == 1
    assert config["available_node_types"]["head"]["resources"]["CPU"] == 0
