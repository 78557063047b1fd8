"""The Grafana dashboards: what the code makes is what is in the repository, and it can exist."""

from __future__ import annotations

import importlib.util
import json
import re
from itertools import pairwise
from pathlib import Path

import pytest

from cluster import metrics
from cluster.monitoring import dashboards
from cluster.monitoring.grafana_json import GRID_COLUMNS, Dashboard, render

# Metrics that are not ours, and the file that defines each under its own name.
RAYS = {
    "serve_deployment_replica_healthy": "ray/serve/_private/deployment_state.py",
    "node_cpu_utilization": "ray/dashboard/modules/reporter/reporter_agent.py",
    "node_gpus_utilization": "ray/dashboard/modules/reporter/reporter_agent.py",
    "node_mem_used": "ray/dashboard/modules/reporter/reporter_agent.py",
    "node_gram_used": "ray/dashboard/modules/reporter/reporter_agent.py",
    "data_output_rows": "ray/data/_internal/stats.py",
    "data_current_bytes": "ray/data/_internal/stats.py",
    "data_spilled_bytes": "ray/data/_internal/stats.py",
    "data_cpu_usage_cores": "ray/data/_internal/stats.py",
    "data_gpu_usage_cores": "ray/data/_internal/stats.py",
    "vllm:num_requests_running": "vllm/v1/metrics/loggers.py",
    "vllm:num_requests_waiting": "vllm/v1/metrics/loggers.py",
    "vllm:kv_cache_usage_perc": "vllm/v1/metrics/loggers.py",
}
OURS = {
    value
    for value in vars(metrics).values()
    if isinstance(value, str) and value.startswith("distillery_")
} | {name for name, _ in metrics.TRAIN_GAUGES.values()}
each = pytest.mark.parametrize("dashboard", dashboards.ALL, ids=lambda d: d.uid)


def expressions(dashboard: Dashboard) -> list[str]:
    queries = [query.expr for panel in dashboard.panels for query in panel.queries]
    return queries + [metric for _, metric in dashboard.variables]


def recorded() -> set[str]:
    found: set[str] = set()
    for file in ("rules.yml", "alerts.yml"):
        text = (Path(dashboards.__file__).parent / file).read_text()
        found |= set(re.findall(r"record: (\S+)", text))
    return found


def test_the_files_are_what_the_code_makes() -> None:
    made = dashboards.files()
    assert {path.name for path in dashboards.FOLDER.iterdir()} == made.keys()
    for name, text in made.items():
        fix = "run `python -m cluster.monitoring.dashboards`"
        assert (dashboards.FOLDER / name).read_text() == text, fix
        assert json.loads(text)["schemaVersion"] >= 39


@each
def test_every_metric_of_a_query_exists(dashboard: Dashboard) -> None:
    known = OURS | {f"ray_{name}" for name in OURS}
    known |= {f"{name}_bucket" for name in known}
    known |= {f"ray_{name.replace(':', '_')}" for name in RAYS} | {"ALERTS"} | recorded()
    for expression in expressions(dashboard):
        names = re.findall(r"\b(?:ray_\w+|distillery[:_][\w:]+|ALERTS)\b", expression)
        assert names or "vector" in expression
        assert set(names) <= known, expression


def test_what_ray_and_vllm_define_is_still_called_so() -> None:
    for name, file in RAYS.items():
        package, _, rest = file.partition("/")
        spec = importlib.util.find_spec(package)
        assert spec is not None
        assert spec.submodule_search_locations
        text = (Path(spec.submodule_search_locations[0]) / rest).read_text()
        assert f'"{name}"' in text, (name, file)


@each
def test_panels_have_titles_of_their_own_and_do_not_overlap(dashboard: Dashboard) -> None:
    made = render(dashboard)
    titles = [panel["title"] for panel in made["panels"]]
    assert len(set(titles)) == len(titles)
    taken: set[tuple[int, int]] = set()
    for panel in made["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= GRID_COLUMNS
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken
        taken |= cells
    ids = [panel["id"] for panel in made["panels"]]
    assert all(a < b for a, b in pairwise(ids))


@each
def test_a_variable_of_a_query_is_one_of_the_dashboards(dashboard: Dashboard) -> None:
    used = {name for e in expressions(dashboard) for name in re.findall(r"\$(\w+)", e)}
    assert used == {name for name, _ in dashboard.variables}


def test_training_shows_every_gauge_that_a_run_exports() -> None:
    shown = " ".join(expressions(dashboards.TRAINING))
    for name, _ in metrics.TRAIN_GAUGES.values():
        assert f"ray_{name}" in shown


def test_data_shows_every_gauge_of_the_monitor() -> None:
    shown = " ".join(expressions(dashboards.DATA))
    for name in OURS:
        if name.startswith("distillery_monitor_"):
            assert name in shown
