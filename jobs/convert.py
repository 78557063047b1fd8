"""What `distillery convert` does: read a data set in one shape and file format, write another."""

from __future__ import annotations

from collections.abc import Sequence

from cluster.errors import ConfigError
from distill.formats.convert import Plan, Report, convert, open_source, problem_lines
from distill.formats.curated import LEFT_OUT
from distill.formats.shapes import Shape
from jobs.display import Display


def convert_files(
    source_uri: str,
    out: str,
    *,
    to: str | None,
    split: str | None,
    drop: Sequence[str],
    skip_bad: bool,
) -> None:
    """Convert `source_uri` to `out` and say what was read, written and left out."""
    if to is not None and to not in list(Shape):
        raise ConfigError(f"--to {to}: must be one of {', '.join(Shape)}.")
    source = open_source(source_uri)
    is_run = source.adapt is not None
    shape = Shape(to) if to else None
    plan = Plan(shape=shape, drop=tuple(drop), skip_bad=skip_bad)
    display = Display()
    num_files = f", {len(source.files)} files" if len(source.files) > 1 else ""
    display.say(f"reading {source.uri} ({source.container}{num_files})")
    with display.step("convert") as progress:

        def show(doing: str, done: int, total: int, rows: int) -> None:
            progress.update(done, total, f"{doing} {rows:,} rows")

        report = convert(source, out, plan, split=split, on_progress=show)
    for line in summary(report, plan):
        display.say(line)
    if is_run:
        display.say(f"  columns that stay in the run: {', '.join(LEFT_OUT)}")


def summary(report: Report, plan: Plan) -> list[str]:
    """Return what was done, a line each: totals, splits, shapes, and all that was left out."""
    rows_out = report.rows_out.total()
    lines = [
        f"✓ {report.rows_in:,} rows in, {rows_out:,} rows out → "
        f"{', '.join(report.outputs)} ({report.kind}, {report.shape})"
    ]
    if len(report.rows_out) > 1:
        shown = ", ".join(f"{name or '(none)'} {num:,}" for name, num in report.rows_out.items())
        lines.append(f"  splits: {shown}")
    shown = ", ".join(f"{shape} ({num:,})" for shape, num in report.shapes.most_common())
    lines.append(f"  recognised: {shown}")
    if report.skipped:
        lines.append(f"  left out because the jury did not accept them: {report.skipped:,} rows")
    for name, num in report.dropped.most_common():
        lines.append(f"  dropped {name}: from {num:,} rows")
    for name in plan.drop:
        if not report.dropped[name] and name != "extra":
            lines.append(f"  --drop {name}: no row has it")
    if report.problems:
        lines.append(f"  left out because they cannot be used: {report.problems.total():,} rows")
        lines += [f"    {line}" for line in problem_lines(report)]
    return lines
