"""Prometheus's own tools on the rules, the alerts and the example configurations."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from cluster import metrics

MONITORING = Path(metrics.__file__).parent / "monitoring"


def run(program: str, *arguments: str) -> str:
    """Run a checking tool; skips the test where it is not installed."""
    if shutil.which(program) is None:
        package = {"amtool": "prometheus-alertmanager"}.get(program, "prometheus")
        pytest.skip(f"{program} is not installed: apt-get install {package}")
    done = subprocess.run([program, *arguments], cwd=MONITORING, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
@pytest.mark.parametrize("file", sorted(path.name for path in (MONITORING / "tests").glob("*.yml")))
def test_every_rule_says_what_its_cases_expect(file: str) -> None:
    assert "SUCCESS" in run("promtool", "test", "rules", f"tests/{file}")


def test_prometheus_takes_its_configuration() -> None:
    assert "2 rule files found" in run("promtool", "check", "config", "prometheus.yml")


def test_alertmanager_takes_its_example() -> None:
    assert "SUCCESS" in run("amtool", "check-config", "alertmanager.yml")


def test_every_alert_has_a_case() -> None:
    import yaml

    rules = yaml.safe_load((MONITORING / "alerts.yml").read_text())
    alerts = {
        rule["alert"] for group in rules["groups"] for rule in group["rules"] if "alert" in rule
    }
    fired = set()
    for path in (MONITORING / "tests").glob("alerts*.yml"):
        for case in yaml.safe_load(path.read_text())["tests"]:
            fired |= {t["alertname"] for t in case["alert_rule_test"] if t.get("exp_alerts")}
    assert alerts == fired
