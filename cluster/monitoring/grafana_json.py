"""The few parts of Grafana's dashboard JSON that our dashboards use.

Source: Grafana's "Dashboard JSON model", schema version 39 (Grafana 11); older ones migrate it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

Json = dict[str, Any]

SCHEMA_VERSION = 39
GRID_COLUMNS = 24
DATASOURCE: Json = {"type": "prometheus", "uid": "${datasource}"}


@dataclass(frozen=True)
class Query:
    """One PromQL expression and how its series are named."""

    expr: str
    legend: str = "__auto"


@dataclass(frozen=True)
class Panel:
    """A graph over time, or one figure."""

    title: str
    queries: tuple[Query, ...]
    unit: str = "short"
    """Grafana's id of a unit: `s`, `percentunit`, `reqps`, `currencyUSD`."""
    text: str = ""
    """What a reader cannot know from the title."""
    kind: Literal["timeseries", "stat"] = "timeseries"
    most: float | None = None
    """A line at this value: more is bad."""

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows on the grid."""
        return (4, 4) if self.kind == "stat" else (12, 8)


@dataclass(frozen=True)
class Dashboard:
    """Panels in reading order; `variables` are names and the metrics whose labels they list."""

    uid: str
    title: str
    panels: tuple[Panel, ...]
    variables: tuple[tuple[str, str], ...] = ()


def stat(title: str, expr: str, unit: str = "short", text: str = "") -> Panel:
    """Return a panel of one figure."""
    return Panel(title, (Query(expr, title),), unit=unit, text=text, kind="stat")


def graph(
    title: str, *queries: Query, unit: str = "short", text: str = "", most: float | None = None
) -> Panel:
    """Return a graph over time."""
    return Panel(title, queries, unit=unit, text=text, most=most)


def render(dashboard: Dashboard) -> Json:
    """Return the JSON that Grafana imports; its Prometheus is chosen on the page."""
    return {
        "uid": dashboard.uid,
        "title": dashboard.title,
        "tags": ["distillery"],
        "schemaVersion": SCHEMA_VERSION,
        "editable": True,
        "timezone": "browser",
        "refresh": "10s",
        "time": {"from": "now-1h", "to": "now"},
        "templating": {
            "list": [_datasource(), *(_variable(n, metric) for n, metric in dashboard.variables)]
        },
        "panels": _laid_out(dashboard.panels),
    }


def _laid_out(panels: Sequence[Panel]) -> list[Json]:
    """Fill rows from the left, a new one where a panel does not fit or is of another height."""
    found, x, y, height = [], 0, 0, 0
    for number, panel in enumerate(panels, start=1):
        width, rows = panel.size
        if x + width > GRID_COLUMNS or (height and rows != height):
            x, y = 0, y + height
        height = rows
        found.append(_panel(panel, number, {"x": x, "y": y, "w": width, "h": rows}))
        x += width
    return found


def _panel(panel: Panel, number: int, place: Json) -> Json:
    defaults: Json = {"unit": panel.unit, "min": 0}
    if panel.most is not None:
        steps = [{"color": "green", "value": None}, {"color": "red", "value": panel.most}]
        defaults |= {
            "thresholds": {"mode": "absolute", "steps": steps},
            "custom": {"thresholdsStyle": {"mode": "dashed"}},
        }
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.text,
        "datasource": DATASOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": defaults, "overrides": []},
        "options": _options(panel),
        "targets": [
            {
                "refId": chr(ord("A") + index),
                "datasource": DATASOURCE,
                "expr": query.expr,
                "legendFormat": query.legend,
            }
            for index, query in enumerate(panel.queries)
        ],
    }


def _options(panel: Panel) -> Json:
    if panel.kind == "stat":
        return {"reduceOptions": {"calcs": ["lastNotNull"], "fields": "", "values": False}}
    return {
        "legend": {"displayMode": "list", "placement": "bottom", "showLegend": True},
        "tooltip": {"mode": "multi", "sort": "desc"},
    }


def _datasource() -> Json:
    return {"name": "datasource", "label": "Prometheus", "type": "datasource",
            "query": "prometheus"}  # fmt: skip


def _variable(name: str, metric: str) -> Json:
    query = f"label_values({metric}, {name})"
    return {
        "name": name,
        "type": "query",
        "datasource": DATASOURCE,
        "query": {"query": query, "refId": name},
        "definition": query,
        "refresh": 2,
        "sort": 1,
        "includeAll": False,
        "multi": False,
    }
