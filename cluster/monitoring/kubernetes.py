"""The rules as the Prometheus operator takes them: `python -m cluster.monitoring.kubernetes`.

Writes `k8s/base/prometheusrule.yaml` from `rules.yml` and `alerts.yml`; a test compares them.
"""

from __future__ import annotations

from pathlib import Path

import yaml

HERE = Path(__file__).parent
SOURCES = ("rules.yml", "alerts.yml")
FILE = HERE.parents[1] / "k8s" / "base" / "prometheusrule.yaml"
HEAD = """\
# Recorded P90s and alerts, made from cluster/monitoring/{rules,alerts}.yml: change those and run
# `python -m cluster.monitoring.kubernetes`.
"""


def prometheus_rule() -> str:
    """Return the manifest's text."""
    groups = [
        group for name in SOURCES for group in yaml.safe_load((HERE / name).read_text())["groups"]
    ]
    manifest = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "distillery", "labels": {"release": "prometheus"}},
        "spec": {"groups": groups},
    }
    return HEAD + yaml.safe_dump(manifest, sort_keys=False, width=100)


if __name__ == "__main__":
    FILE.write_text(prometheus_rule(), encoding="utf-8")
