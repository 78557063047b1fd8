"""`monitor.json` for machines, `monitor.html` for people, and gauges for Prometheus."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

from cluster import metrics as names
from cluster.errors import PrerequisiteError
from cluster.storage import Store
from distill.evaluate.charts import Axis, Line, line_chart
from distill.evaluate.report import page_environment
from distill.monitor.monitor import SEVERITY

JSON_FILE = "monitor/monitor.json"
PAGE_FILE = "monitor/monitor.html"
TEMPLATE = "monitor.html.j2"
TESTS = {
    "ks": "Kolmogorov–Smirnov",
    "chi2": "χ²",
    "permutation": "permutation of the means",
}
WORDS = {
    "none": "no drift",
    "moderate": "moderate drift",
    "major": "major drift",
    "not_enough_rows": "not enough rows",
}
MOST_BINS = 12

Row = dict[str, Any]


def write_report(store: Store, report: Row, *, title: str) -> None:
    """Write both files into the run folder."""
    from markupsafe import Markup

    store.write_json(JSON_FILE, report)
    page = (
        page_environment(Path(__file__).parent)
        .get_template(TEMPLATE)
        .render(
            title=title,
            report=report,
            sentence=sentence(report),
            words=WORDS,
            tests=TESTS,
            most_bins=MOST_BINS,
            chart=Markup(validity_chart(report["validity"])),
        )
    )
    store.write_bytes(PAGE_FILE, page.encode())


def sentence(report: Row) -> str:
    """Say in one sentence what was found."""
    counted = (
        f"{report['num_compared']} requests against {report['num_reference']} held-out prompts"
    )
    if report["verdict"] == "not_enough_rows":
        return f"not enough rows for a verdict: {counted}, at least " \
               f"{report['settings']['min_rows']} of each are needed"  # fmt: skip
    if report["verdict"] == "none":
        return f"no drift: {counted}, {_num_judged(report)} signals"
    found = ", ".join(f"{d['signal']} ({d['change']})" for d in report["drifted"])
    return f"{report['verdict']} drift: {counted}; {found}"


def validity_chart(validity: Row) -> str:
    """Return an SVG of the share of valid answers with its interval, by hour or day."""
    periods = validity["periods"]
    if len(periods) < 2:
        return ""
    start = datetime.fromisoformat(periods[0]["start"])
    per_unit = 3600 if validity["unit"] == "hour" else 86400

    def points(value: Any) -> list[tuple[float, float]]:
        return [
            ((datetime.fromisoformat(p["start"]) - start).total_seconds() / per_unit, value(p))
            for p in periods
        ]

    return line_chart(
        [
            Line("share of valid answers", "student", points(lambda p: p["share"]), dots=True),
            Line("95% interval, low", "base", points(lambda p: p["ci95"][0])),
            Line("95% interval, high", "base", points(lambda p: p["ci95"][1])),
        ],
        x=Axis(f"{validity['unit']}s since {start:%Y-%m-%d %H:%M} UTC"),
        y=Axis("share of valid answers"),
        title=f"Share of answers that the task's parser accepts, by {validity['unit']}",
    )


def write_metrics(path: str | Path, report: Row, *, adapter: str, now: datetime) -> None:
    """Write a file for node exporter's textfile collector; it appears whole or not at all.

    A signal without enough rows has no gauge, and neither has the drift of all.
    """
    from prometheus_client import CollectorRegistry, Gauge, write_to_textfile

    registry = CollectorRegistry()

    def gauge(name: str, text: str, labels: tuple[str, ...] = names.MONITOR_LABELS) -> Gauge:
        return Gauge(name, text, labels, registry=registry)

    drift = gauge(names.MONITOR_DRIFT, "Drift of production: 0 none, 1 moderate, 2 major.")
    if report["verdict"] in SEVERITY:
        drift.labels(adapter).set(SEVERITY[report["verdict"]])
    labels = names.MONITOR_SIGNAL_LABELS
    psi = gauge(names.MONITOR_PSI, "Population stability index of a signal.", labels)
    p_value = gauge(names.MONITOR_P_VALUE, "p-value, corrected for all signals.", labels)
    for signal in report["signals"]:
        if signal["verdict"] in SEVERITY:
            psi.labels(adapter, signal["name"]).set(signal["psi"])
            p_value.labels(adapter, signal["name"]).set(signal["p_adjusted"])
    gauge(names.MONITOR_ROWS, "Requests in the window.").labels(adapter).set(report["num_rows"])
    if report["validity"]["current"]:
        valid = gauge(names.MONITOR_VALID_RATIO, "Share of answers that the parser accepts.")
        valid.labels(adapter).set(report["validity"]["current"]["share"])
    gauge(names.MONITOR_TIME, "When the monitor ran.").labels(adapter).set(now.timestamp())
    try:
        write_to_textfile(str(path), registry)
    except OSError as error:
        raise PrerequisiteError(
            f"--metrics {path}: cannot be written: {error.strerror}. Give a file in a folder that "
            "exists, such as node exporter's --collector.textfile.directory."
        ) from None


def _num_judged(report: Row) -> int:
    return sum(signal["verdict"] in SEVERITY for signal in report["signals"])
