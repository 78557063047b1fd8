"""`distillery monitor`: a run's folder and a log in, a report, gauges and an exit code out."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from production import asked, log_row, write_log
from prometheus_client.parser import text_string_to_metric_families
from threadpoolctl import threadpool_limits

from cluster.errors import ConfigError, DriftError
from cluster.storage import rows_table
from distill.evaluate.stage import SCHEMA
from distill.prompts.stage import make_prompts
from distill.tasks.task import load_task
from jobs.config import load_run_config
from jobs.display import Display
from jobs.monitor import monitor_run, take_options
from jobs.run import Run

ROOT = Path(__file__).parents[2]
TASK = load_task("reconcile")


@pytest.fixture(autouse=True)
def _one_thread():
    with threadpool_limits(1):
        yield


@pytest.fixture
def flags(tmp_path):
    """A run of the smoke configuration that was evaluated, its student as good as its teacher."""
    overrides = [
        "--run.root", str(tmp_path / "runs"), "--serve.request_log", str(tmp_path / "log"),
        "--prompts.test", "120", "--monitor.permutations", "99",
    ]  # fmt: skip
    config = load_run_config([ROOT / "jobs/runs/smoke.toml"], overrides=overrides)
    run = Run(config, Display())
    make_prompts(TASK, config.prompts, store=run.store)
    answer = TASK.function("rules:answer")
    rows = [
        {
            "example_id": prompt["example_id"],
            "completion": answer(json.loads(prompt["variables"])),
            "error": "",
        }
        for prompt in run.store.read_rows("prompts/test.parquet")
    ]
    run.store.write_table("predictions/student.parquet", rows_table(rows, SCHEMA))
    return overrides


def gauges(path):
    return {
        (sample.name, sample.labels.get("signal", "")): sample.value
        for family in text_string_to_metric_families(path.read_text())
        for sample in family.samples
    }


def test_quiet_traffic_ends_well_with_a_report_and_gauges(tmp_path, flags):
    write_log(tmp_path / "log", [log_row(n, r) for n, r in enumerate(asked(TASK, 200, seed=5))])
    metrics = tmp_path / "distillery.prom"
    monitor_run(
        [ROOT / "jobs/runs/smoke.toml"], overrides=flags, since="2026-05-01", metrics=str(metrics)
    )
    (folder,) = (tmp_path / "runs").glob("smoke-*/monitor")
    report = json.loads((folder / "monitor.json").read_text())
    assert report["verdict"] == "none"
    assert report["since"] == "2026-05-01T00:00:00+00:00"
    page = (folder / "monitor.html").read_text()
    assert "no drift" in page
    assert "<svg" in page
    assert "http" not in page.replace("http-equiv", "")
    found = gauges(metrics)
    assert found["distillery_monitor_drift", ""] == 0
    assert found["distillery_monitor_rows", ""] == 200
    assert found["distillery_monitor_valid_ratio", ""] == 1
    assert found["distillery_monitor_psi", "answer.classification"] < 0.1


@pytest.mark.slow
def test_drift_exits_4_and_names_the_signals(tmp_path, flags):
    rows = asked(TASK, 200, seed=5, keep=lambda v: v["scenario"] == "duplicate")
    write_log(tmp_path / "log", [log_row(n, row) for n, row in enumerate(rows)])
    done = subprocess.run(
        [sys.executable, "-m", "jobs.monitor", "--config", "jobs/runs/smoke.toml", *flags,
         "--metrics", str(tmp_path / "distillery.prom")],
        cwd=ROOT, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert "answer.classification (major)" in done.stderr
    assert "Traceback" not in done.stderr
    assert gauges(tmp_path / "distillery.prom")["distillery_monitor_drift", ""] == 2


def test_only_a_major_change_fails_where_that_is_configured(tmp_path, flags):
    usual = asked(TASK, 300, seed=5)
    more = asked(TASK, 110, seed=6, keep=lambda v: v["scenario"] in ("stale", "two_currencies"))
    write_log(tmp_path / "log", [log_row(n, row) for n, row in enumerate([*usual, *more])])
    file = ROOT / "jobs/runs/smoke.toml"
    with pytest.raises(DriftError, match="moderate drift"):
        monitor_run([file], overrides=flags)
    monitor_run([file], overrides=[*flags, "--monitor.fail_at", "major"])


def test_an_empty_window_says_that_there_are_not_enough_rows(tmp_path, flags, capsys):
    write_log(tmp_path / "log", [log_row(n, r) for n, r in enumerate(asked(TASK, 200, seed=5))])
    monitor_run([ROOT / "jobs/runs/smoke.toml"], overrides=flags, until="2026-04-01")
    assert "not enough rows for a verdict: 0 requests" in capsys.readouterr().out


def test_without_a_log_the_field_to_set_is_named(flags):
    with pytest.raises(ConfigError, match=r"set serve\.request_log"):
        monitor_run([ROOT / "jobs/runs/smoke.toml"], overrides=[*flags, "--serve.request_log", ""])


def test_options_are_taken_off_the_command_line():
    rest, found = take_options(
        ["--config", "a", "--since=7d", "--until", "1d"], ("--since", "--until")
    )
    assert rest == ["--config", "a"]
    assert found == {"since": "7d", "until": "1d"}
    with pytest.raises(ConfigError, match="a value must follow"):
        take_options(["--since"], ("--since",))
