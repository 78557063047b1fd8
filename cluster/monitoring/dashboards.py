"""The Grafana dashboards, made by code: `python -m cluster.monitoring.dashboards` writes the JSON.

Each of `grafana/*.json` can be imported by hand or provisioned. A test compares them with what this
makes, and runs every query of those of serving against a real Prometheus under real load.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from cluster.monitoring.grafana_json import render
from cluster.monitoring.run_dashboards import DATA, TRAINING
from cluster.monitoring.serving_dashboards import ADAPTER, COST, OVERVIEW

FOLDER = Path(__file__).parent / "grafana"
SERVING = (OVERVIEW, ADAPTER, COST)
ALL = (*SERVING, TRAINING, DATA)


def files() -> dict[str, str]:
    """Return each file's name and text."""
    return {
        f"{dashboard.uid.removeprefix('distillery-')}.json": json.dumps(
            render(dashboard), indent=2, ensure_ascii=False
        )
        + "\n"
        for dashboard in ALL
    }


def main() -> None:
    """Write the files."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in files().items():
        (FOLDER / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:]:
        raise SystemExit("usage: python -m cluster.monitoring.dashboards")
    main()
