"""Every TOML file that comes with Distillery can be run as it stands."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.config import load_run_config

ROOT = Path(__file__).parents[2]
RUNS = sorted((ROOT / "jobs" / "runs").glob("*.toml"))


@pytest.mark.parametrize("path", RUNS, ids=lambda path: path.stem)
def test_parses_and_opens_with_the_command_that_runs_it(path: Path) -> None:
    load_run_config([path])
    first = path.read_text().splitlines()[0]
    assert first.startswith("# ")
    assert f"jobs/runs/{path.name}" in first


def test_the_gpu_run_differs_from_the_demo_in_configuration_only() -> None:
    demo = load_run_config([ROOT / "jobs/runs/demo.toml"])
    h100 = load_run_config([ROOT / "jobs/runs/h100.toml"])
    assert demo.cluster.accelerator is None
    assert h100.cluster.accelerator == "H100"
    assert h100.train.workers == 2
    assert h100.task == demo.task
