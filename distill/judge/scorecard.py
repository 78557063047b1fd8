"""A selection for people: `selection.md`, and `selection.html` that needs nothing beside it."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.storage import Store
from distill.evaluate.report import NONE, figure, page_environment
from distill.judge.selection import recurring_issues

SELECTION_FILE = "selection.json"
MARKDOWN_FILE = "selection.md"
PAGE_FILE = "selection.html"
TEMPLATE = "scorecard.html.j2"

PRACTICAL = {"latency_p50_s": "P50", "latency_p90_s": "P90", "usd_per_1k": "$ per 1,000"}
NUM_COLOURS = 8
MIN_RADAR = 3

# Stand-ins that matplotlib draws with; in the page each becomes the style sheet's variable, so
# that the charts follow its light and its dark colours.
_INK, _SOFT, _RULE = "#010101", "#020202", "#030303"
_COLOURS = tuple(f"#0400{n:02x}" for n in range(1, NUM_COLOURS + 1))
_VARIABLES = {
    _INK: "var(--ink)",
    _SOFT: "var(--soft)",
    _RULE: "var(--rule)",
    **{colour: f"var(--c{n})" for n, colour in enumerate(_COLOURS, start=1)},
}
_DASHES = ("-", "--", "-.", ":")

Row = dict[str, Any]


def write_selection(out: Store, selection: Row) -> None:
    """Write `selection.json`, `selection.md` and `selection.html`."""
    out.write_json(SELECTION_FILE, selection)
    out.write_bytes(MARKDOWN_FILE, markdown(selection).encode())
    out.write_bytes(PAGE_FILE, page(selection).encode())


def table(selection: Row) -> tuple[list[str], list[list[str]]]:
    """Column titles and rows of the scorecard, candidates best first, as text."""
    columns = ["candidate", "overall", *selection["dimensions"], *PRACTICAL.values()]
    rows = []
    for name, figures in selection["candidates"].items():
        dimensions = [figures["dimensions"][d]["score"] for d in selection["dimensions"]]
        rows.append(
            [
                name,
                score(figures, "overall"),
                *(f"{value:.3f}" for value in dimensions),
                *(figure(figures, column)[0] for column in PRACTICAL),
            ]
        )
    return columns, rows


def markdown(selection: Row) -> str:
    """The scorecard as Markdown: verdict, table, recurring issues, agreement, notes."""
    lines = [f"# Teacher selection on {selection['num_prompts']} prompts", ""]
    lines += [f"**{_plain(selection['verdict'])}**", ""]
    lines += _markdown_table(*table(selection))
    lines += ["", "Brackets hold 95% bootstrap intervals.", ""]
    issues = recurring_issues(selection["candidates"])
    if issues:
        lines += ["## Recurring issues (answers that have them)", ""]
        names = list(selection["candidates"])
        cells = [[tag, *(str(by[name]) for name in names)] for tag, by in issues]
        lines += [*_markdown_table(["issue", *names], cells), ""]
    for judge, pairs in selection.get("pairwise", {}).items():
        lines += [f"- {_plain(pairwise_sentence(selection, judge, pairs))}", ""]
    lines += ["## Agreement of the judges", ""]
    cells = [
        [name, *agreement_cells(part)]
        for name, part in selection["agreement"]["dimensions"].items()
    ]
    lines += [*_markdown_table(["dimension", "alpha", "judges", "answers"], cells), ""]
    lines += [f"- {_plain(note)}" for note in selection["notes"]]
    return "\n".join(lines) + "\n"


def page(selection: Row) -> str:
    """The scorecard as one HTML page with inline charts."""
    from markupsafe import Markup

    environment = page_environment(Path(__file__).parent)
    environment.globals |= {"score": score, "agreement_cells": agreement_cells}
    charts = [
        (title, Markup(svg))
        for title, svg in (
            ("Score by dimension", radar_chart(selection)),
            ("Overall score, with 95% intervals", overall_chart(selection)),
            ("P90 latency, seconds", practical_chart(selection, "latency_p90_s")),
            ("US dollars per 1,000 answers", practical_chart(selection, "usd_per_1k")),
        )
        if svg
    ]
    return environment.get_template(TEMPLATE).render(
        selection=selection,
        colours={name: f"c{n % NUM_COLOURS + 1}" for n, name in enumerate(_palette(selection))},
        practical=PRACTICAL,
        charts=charts,
        issues=recurring_issues(selection["candidates"]),
        pairwise=selection.get("pairwise", {}),
    )


def score(figures: Row, name: str) -> str:
    """A score with its interval, as text."""
    ends = figures.get(f"{name}_ci95")
    text = f"{figures[name]:.3f}"
    return f"{text} [{ends[0]:.3f}, {ends[1]:.3f}]" if ends else text


def agreement_cells(part: Row) -> list[str]:
    """Alpha with its interval, judges and answers of one dimension, as text."""
    alpha = NONE if part["alpha"] is None else score(part, "alpha")
    return [alpha, str(part["num_judges"]), str(part["num_answers"])]


def pairwise_sentence(selection: Row, judge: str, pairs: Row) -> str:
    """What one judge said of the first two, each pair asked in both orders."""
    rate, ends = figure(pairs, "win_rate")
    place, place_ends = figure(pairs, "first_position")
    biased = ", a position bias" if pairs["position_bias"] else ""
    return (
        f"{judge}, asked in both orders: {selection['winner']} won {pairs['first']} of "
        f"{pairs['num_pairs']} against {selection['runner_up']}, lost {pairs['second']}, "
        f"{pairs['tie']} ties, {pairs['inconsistent']} inconsistent, {pairs['failed']} failed; win "
        f"rate {rate} {ends}; the answer shown first was chosen {place} {place_ends}{biased}."
    )


def radar_chart(selection: Row) -> str:
    """Scores by dimension as `<svg>`; `""` below three dimensions, which make no shape."""
    names = selection["dimensions"]
    if len(names) < MIN_RADAR:
        return ""
    figure_, axes = _figure(5.2, 4.2, polar=True)
    angles = [2 * math.pi * k / len(names) for k in range(len(names))]
    for n, candidate in enumerate(_palette(selection)):
        dimensions = selection["candidates"][candidate]["dimensions"]
        values = [dimensions[name]["score"] for name in names]
        axes.plot(
            [*angles, angles[0]],
            [*values, values[0]],
            color=_COLOURS[n % NUM_COLOURS],
            linestyle=_DASHES[n % len(_DASHES)],
            linewidth=1.8,
        )
    axes.set_theta_offset(math.pi / 2)
    axes.set_theta_direction(-1)
    axes.set_ylim(0, 1)
    axes.set_yticks([0.25, 0.5, 0.75, 1.0])
    labels = [name.replace("_", " ") for name in names]
    axes.set_xticks(angles, labels, color=_INK, parse_math=False)
    axes.tick_params(axis="x", pad=9)
    axes.set_rlabel_position(180 / len(names))
    return _svg(figure_, "Radar chart of the score by dimension")


def overall_chart(selection: Row) -> str:
    """Overall scores with their intervals as horizontal bars, `<svg>`."""
    rows = [
        (name, figures["overall"], figures["overall_ci95"])
        for name, figures in selection["candidates"].items()
    ]
    return _bars(selection, rows, title="Bar chart of the overall score")


def practical_chart(selection: Row, name: str) -> str:
    """One practical figure of each candidate as bars, `<svg>`; `""` where nobody has it."""
    rows = [
        (candidate, figures[name], figures.get(f"{name}_ci95"))
        for candidate, figures in selection["candidates"].items()
        if figures[name] is not None
    ]
    return _bars(selection, rows, title=f"Bar chart of {PRACTICAL[name]}") if rows else ""


def _bars(
    selection: Row,
    rows: Sequence[tuple[str, float, list[float] | None]],
    *,
    title: str,
) -> str:
    place = {name: n for n, name in enumerate(_palette(selection))}
    figure_, axes = _figure(5.2, 0.7 + 0.42 * len(rows))
    for at, (name, value, ends) in enumerate(rows):
        axes.barh(at, value, height=0.6, color=_COLOURS[place[name] % NUM_COLOURS])
        if ends:
            reach = [[max(0.0, value - ends[0])], [max(0.0, ends[1] - value)]]
            axes.errorbar(value, at, xerr=reach, color=_INK, capsize=3, linewidth=1.2)
        axes.annotate(
            f"{value:.3g}", (max(value, ends[1] if ends else value), at), xytext=(6, 0),
            textcoords="offset points", va="center", color=_INK, fontsize=9,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [name for name, _, _ in rows], color=_INK, parse_math=False)
    axes.tick_params(axis="y", length=0)
    axes.invert_yaxis()
    axes.margins(x=0.15)  # room for the value behind the longest bar
    axes.set_xlim(left=0)
    axes.grid(axis="y", visible=False)
    return _svg(figure_, title)


def _figure(width_in: float, height_in: float, *, polar: bool = False) -> tuple[Any, Any]:
    from matplotlib.figure import Figure

    drawn = Figure(figsize=(width_in, height_in), layout="constrained")
    axes = drawn.add_subplot(projection="polar" if polar else None)
    axes.set_axisbelow(True)
    axes.grid(color=_RULE)
    axes.tick_params(colors=_SOFT, labelsize=9)
    for spine in axes.spines.values():
        spine.set_color(_RULE)
        spine.set_visible(polar)
    axes.patch.set_visible(False)
    drawn.patch.set_visible(False)
    return drawn, axes


def _svg(drawn: Any, title: str) -> str:
    import matplotlib

    text = io.StringIO()
    # Text stays text: it can be read aloud, searched, and takes the page's font. The salt keeps
    # the ids of two charts on a page apart, and the same in every run.
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": title}):
        drawn.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    body = text.getvalue()
    body = body[body.index("<svg") :]
    body = re.sub(r"<metadata>.*?</metadata>", "", body, flags=re.DOTALL)
    # Groups are numbered alike in every chart, and nothing refers to them.
    body = re.sub(r'<g id="[^"]*"', "<g", body)
    body = re.sub(r'(<svg\b[^>]*?) width="[^"]*"', r"\1", body, count=1)
    body = re.sub(r'(<svg\b[^>]*?) height="[^"]*"', r"\1", body, count=1)
    body = body.replace("<svg", f'<svg role="img" aria-label="{title}"', 1)
    for colour, variable in _VARIABLES.items():
        body = body.replace(colour, variable)
    return body


def _palette(selection: Row) -> list[str]:
    # By name, so that a candidate keeps its colour when the order changes.
    return sorted(selection["candidates"])


def _markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    lines = [columns, ["---"] * len(columns), *rows]
    return ["| " + " | ".join(_plain(cell) for cell in line) + " |" for line in lines]


def _plain(text: str) -> str:
    """Keep text from a file or a judge from being read as Markdown."""
    return " ".join(str(text).split()).replace("|", "\\|").replace("<", "&lt;")
