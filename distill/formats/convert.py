"""Convert a data set: rows in from any container and shape, rows out in one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.errors import ConfigError, DataError
from distill.formats.columns import Columns
from distill.formats.curated import find_run, is_run
from distill.formats.files import DataFile, Source, find, shown
from distill.formats.reading import SHOWN_CHARS, BadRow, read_batches
from distill.formats.row_reader import read
from distill.formats.row_writer import write
from distill.formats.shapes import Shape, drop, recognise
from distill.formats.writing import (
    datasets_writer,
    file_writer,
    output_kind,
    refuse_existing,
    row_text,
)

# Of each problem: unreadable lines differ from each other, rows of a wrong shape seldom do.
UNREADABLE_SHOWN = 20
MISSHAPEN_SHOWN = 3
PROBLEMS_SHOWN = 20
DEFAULT_SPLIT = "train"
Row = dict[str, Any]
Progress = Callable[[str, int, int, int], None]
"""Called with what is being done, bytes done, bytes in all, and rows so far."""


@dataclass(frozen=True)
class Plan:
    """What to do with each row."""

    shape: Shape | None = None
    """None: the shape that the first row has."""
    drop: tuple[str, ...] = ()
    """Parts to leave out, see `shapes.drop`."""
    skip_bad: bool = False
    """Leave out rows that cannot be read or held, and count them."""


@dataclass
class Report:
    """What was done. `skipped` are the rows that a run's jury refused.

    `problems` counts the rows that cannot be used by what is wrong, `examples` has the first of
    each.
    """

    container: str
    kind: str = ""
    shape: Shape | None = None
    rows_in: int = 0
    rows_out: Counter[str] = field(default_factory=Counter)
    shapes: Counter[str] = field(default_factory=Counter)
    dropped: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[BadRow]] = field(default_factory=dict)
    skipped: int = 0
    outputs: list[str] = field(default_factory=list)


def open_source(uri: str) -> Source:
    """Find the rows behind a path or URI, which may be a run's folder."""
    return find_run(uri) if is_run(uri) else find(uri)


def convert(
    source: Source,
    out: str,
    plan: Plan,
    *,
    split: str | None = None,
    on_progress: Progress = lambda *_: None,
) -> Report:
    """Write the rows of a source to `out` and return what was done.

    `out` is a file (its suffix says which), or a `datasets` folder if it has no suffix. With
    `{split}` in its name each split gets a file. Raises DataError with every problem counted and
    the first of them shown, unless the plan skips them; then nothing is written.
    """
    kind = output_kind(out)
    if kind == "datasets" and "{split}" in out:
        raise ConfigError(f"{shown(out)}: a datasets folder holds all splits; leave {{split}} out.")
    names = _chosen(source, split=split, out=out, many=kind == "datasets" or "{split}" in out)
    targets = {name: out.replace("{split}", name or DEFAULT_SPLIT) for name in names}
    report = Report(
        source.container, kind, outputs=list(dict.fromkeys(map(shown, targets.values())))
    )
    for target in targets.values():
        refuse_existing(target)
    # Everything is looked at before anything is written: all problems come out at once, and the
    # Arrow formats need the types of all columns first. The splits of a datasets folder share them.
    shared = Columns()
    columns = {name: shared if kind == "datasets" else Columns() for name in names}
    checked = Report(source.container, kind)
    for name in names:
        for rows in _converted(source, plan, checked, name, doing="check", tell=on_progress):
            if kind in ("parquet", "datasets"):
                columns[name].observe(rows)
    _raise_if_bad(source, plan, checked)
    settled = replace(plan, shape=checked.shape)
    schemas = {name: columns[name].schema() for name in names}
    if kind == "datasets":
        schemas = schemas if len(names) > 1 else {"": schemas[names[0]]}
        with datasets_writer(out, schemas=schemas) as append:
            for name in names:
                key = name if name in schemas else ""
                for rows in _converted(source, settled, report, name, tell=on_progress):
                    append(key, rows)
        return report
    for name in names:
        with file_writer(targets[name], kind=kind, schema=schemas[name]) as append_rows:
            for rows in _converted(source, settled, report, name, tell=on_progress):
                append_rows(rows)
    return report


def _chosen(source: Source, *, split: str | None, out: str, many: bool) -> list[str]:
    """Return the splits to write; several never run together into one file unasked."""
    known = source.splits
    if split is not None:
        if split not in known:
            names = ", ".join(filter(None, known)) or "none"
            raise ConfigError(f"--split {split}: {source.uri} has the splits: {names}.")
        return [split]
    if len(known) > 1 and not many:
        raise ConfigError(
            f"{source.uri} has the splits {', '.join(map(repr, known))}, {shown(out)} is one file: "
            "choose one with --split, put {split} into the name of OUT, or give a name without a "
            "suffix for a datasets folder."
        )
    if not known:
        raise DataError(f"{source.uri}: holds no data file.")
    if len(known) > 1 and "" in known:
        stray = next(file.name for file in source.files if not file.split)
        raise ConfigError(
            f"{source.uri}: {stray} names no split while others do; choose one with --split."
        )
    return known


def _converted(
    source: Source, plan: Plan, report: Report, split: str, *, tell: Progress, doing: str = "write"
) -> Iterator[list[Row]]:
    """Yield the converted rows of a split in batches, and count into the report."""
    files = [file for file in source.files if file.split == split]
    total = sum(file.size_bytes for file in files)
    before = 0
    for file in files:
        for batch in read_batches(source, file):
            for bad in batch.bad:
                _count_bad(report, bad, shown=UNREADABLE_SHOWN)
            report.rows_in += len(batch.rows) + len(batch.bad)
            rows = []
            for where, raw in batch.rows:
                try:
                    row = _convert_row(source, raw, plan, report, file)
                except DataError as error:
                    bad = BadRow(where, str(error), repr(raw)[:SHOWN_CHARS])
                    _count_bad(report, bad, shown=MISSHAPEN_SHOWN)
                    continue
                if row is not None:
                    rows.append(row)
            report.rows_out[split] += len(rows)
            tell(doing, before + batch.read_bytes, total, report.rows_in)
            yield rows
        before += file.size_bytes


def _convert_row(
    source: Source, raw: Row, plan: Plan, report: Report, file: DataFile
) -> Row | None:
    adapted = source.adapt(raw) if source.adapt else raw
    if adapted is None:
        report.skipped += 1
        return None
    found = recognise(adapted)
    record = read(adapted, found)
    dropped = drop(record, plan.drop)
    target = report.shape or plan.shape or found
    row = write(record, target)
    if report.kind in ("json", "jsonl") and file.kind in ("parquet", "arrow"):
        # Arrow holds values that JSON does not: found here it is this row's problem.
        row_text(row)
    report.shape = target
    report.shapes[found] += 1
    report.dropped.update(dropped)
    return row


def _count_bad(report: Report, bad: BadRow, *, shown: int) -> None:
    report.problems[bad.problem] += 1
    examples = report.examples.setdefault(bad.problem, [])
    if len(examples) < shown:
        examples.append(bad)


def problem_lines(report: Report) -> list[str]:
    """Say what is wrong with the rows that cannot be used, the commonest first, with examples."""
    lines: list[str] = []
    for problem, num in report.problems.most_common(PROBLEMS_SHOWN):
        lines.append(f"{num:,} {'row' if num == 1 else 'rows'}: {problem}")
        lines += [f"  {bad.where}: {bad.text}" for bad in report.examples[problem]]
    more = len(report.problems) - PROBLEMS_SHOWN
    return lines + [f"… and {more:,} more kinds of problem"] * (more > 0)


def _raise_if_bad(source: Source, plan: Plan, report: Report) -> None:
    lines = "".join(f"\n  {line}" for line in problem_lines(report))
    num_bad = report.problems.total()
    if num_bad and not plan.skip_bad:
        raise DataError(
            f"{source.uri}: {num_bad:,} of {report.rows_in:,} rows cannot be converted, nothing "
            f"was written:{lines}\nMend them, or keep the others with --skip-bad."
        )
    if not report.rows_out.total():
        raise DataError(f"{source.uri}: no row is left to write.{lines}")
