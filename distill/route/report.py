"""`routing.json` for the server, `routing.html` for people."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.storage import Store
from distill.evaluate.charts import Axis, Line, Mark, line_chart
from distill.evaluate.report import page_environment

JSON_FILE = "routing.json"
PAGE_FILE = "routing.html"
TEMPLATE = "route.html.j2"
SHOWN_POINTS = 12

Row = dict[str, Any]


def write_report(store: Store, found: Row) -> None:
    """Write both files into the run folder."""
    from markupsafe import Markup

    store.write_json(JSON_FILE, found)
    page = (
        page_environment(Path(__file__).parent)
        .get_template(TEMPLATE)
        .render(
            found=found,
            sentence=sentence(found),
            points=shown_points(found),
            curve_chart=Markup(curve_chart(found)),
            bins_chart=Markup(bins_chart(found)),
        )
    )
    store.write_bytes(PAGE_FILE, page.encode())


def sentence(found: Row) -> str:
    """Say in one sentence what to do."""
    if not found["recommended"]:
        return f"no routing: {found['reason']}"
    point = found["picked"]
    usd = point["usd_per_1k"]
    price = "" if usd is None else f", ${usd:.4g} per 1,000 requests"
    low, high = (100 * end for end in point["gain_ci95"])
    return (
        f"send {point['share']:.1%} to {found['to']} (threshold {point['threshold']:.4g}): "
        f"accuracy {point['accuracy']:.1%}{price}, {100 * point['gain']:+.1f} points "
        f"[{low:+.1f}, {high:+.1f}] beside as many sent blindly; {found['reason']}"
    )


def shown_points(found: Row) -> list[Row]:
    """Return the curve's ends, the picked point and some between, by share."""
    curve = found["curve"]
    if not curve:
        return []
    step = max(1, len(curve) // SHOWN_POINTS)
    picked = found["picked"]["threshold"]
    kept = [
        {**point, "is_picked": point["threshold"] == picked}
        for number, point in enumerate(curve)
        if number % step == 0 or number == len(curve) - 1 or point["threshold"] == picked
    ]
    return sorted(kept, key=lambda point: point["share"])


def curve_chart(found: Row) -> str:
    """Return an SVG of accuracy over dollars, or over the share where dollars are not known."""
    curve = found["curve"]
    if not curve:
        return ""
    priced = curve[0]["usd_per_1k"] is not None
    across = "usd_per_1k" if priced else "share"

    def points(value: Any) -> list[tuple[float, float]]:
        return [(point[across], value(point)) for point in curve]

    picked = found["picked"]
    return line_chart(
        [
            Line("by difficulty", "student", points(lambda p: p["accuracy"])),
            Line("95% interval, low", "base", points(lambda p: p["accuracy_ci95"][0])),
            Line("95% interval, high", "base", points(lambda p: p["accuracy_ci95"][1])),
            Line("as many at random", "teacher", points(lambda p: p["random_accuracy"])),
        ],
        x=Axis("dollars per 1,000 requests" if priced else f"share sent to {found['to']}"),
        y=Axis("accuracy"),
        title=f"Accuracy by what is sent to {found['to']}: the student alone on the left",
        marks=[Mark(picked[across], "picked", picked["rule"])],
    )


def bins_chart(found: Row) -> str:
    """Return an SVG of observed over predicted rates of wrong answers."""
    if not found["worth"]:
        return ""
    bins = found["worth"]["bins"]
    seen = sorted((part["predicted"], part["observed"]) for part in bins)
    most = max(max(pair) for pair in seen)
    return line_chart(
        [
            Line("observed", "student", seen, dots=True),
            Line("as predicted", "base", [(0.0, 0.0), (most, most)]),
        ],
        x=Axis("predicted share of wrong answers"),
        y=Axis("observed share"),
        title="Calibration in bins of equally many prompts",
    )
