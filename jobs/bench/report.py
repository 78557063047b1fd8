"""How every benchmark reports: a table for a person, `build/bench/<name>.json` for a machine."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rich.console import Console
from rich.table import Table

FOLDER = Path("build/bench")


@dataclass(frozen=True, kw_only=True)
class Case:
    """One measured figure; `ok` is `None` where there is no target."""

    case: str
    figure: float
    unit: str
    target: str = ""
    ok: bool | None = None


def at_least(case: str, figure: float, *, unit: str, target: float) -> Case:
    """Return a case that is met from `target` up."""
    return Case(case=case, figure=figure, unit=unit, target=f">= {target:g}", ok=figure >= target)


def at_most(case: str, figure: float, *, unit: str, target: float) -> Case:
    """Return a case that is met up to `target`."""
    return Case(case=case, figure=figure, unit=unit, target=f"<= {target:g}", ok=figure <= target)


def for_comparison(case: str, figure: float, *, unit: str) -> Case:
    """Return a case without a target."""
    return Case(case=case, figure=figure, unit=unit)


def report(name: str, cases: Sequence[Case]) -> int:
    """Print the cases and write `build/bench/<name>.json`; 0 if no target was missed, 1 otherwise.

    The file holds a list of `{case, figure, unit, target, ok}`.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps([asdict(case) for case in cases], indent=2) + "\n")
    table = Table(box=None, pad_edge=False)
    for heading in ("case", "figure", "unit", "target", ""):
        table.add_column(heading, justify="right" if heading == "figure" else "left")
    verdicts = {True: "[green]ok[/]", False: "[red]missed[/]", None: ""}
    for case in cases:
        table.add_row(case.case, f"{case.figure:.4g}", case.unit, case.target, verdicts[case.ok])
    console = Console()
    console.print(table)
    console.print(f"written to {path}")
    return int(any(case.ok is False for case in cases))
