"""The closing tables of a run, and what to do next."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from distill.teach.bill import FILE as BILL_FILE
from jobs.run import STAGES, Run


def print_summary(run: Run, *, arguments: Sequence[str]) -> None:
    """Print stages, models (once evaluated), where things lie, and the two commands."""
    print_stages(run)
    if run.store.exists("evaluation.json"):
        print_models(run)
    if run.store.exists(BILL_FILE):
        paid = bill_sentence(run.read_json(BILL_FILE), file=run.shown(BILL_FILE))
        if paid:
            run.display.say(paid)
    if run.store.exists("dataset.html"):
        run.display.say(f"dataset  {run.shown('dataset.html')}")
    if run.store.exists("report.html"):
        run.display.say(f"report   {run.shown('report.html')}")
    if run.store.exists("adapter"):
        run.display.say(f"adapter  {run.shown('adapter')}")
    if run.finished("publish"):
        command = command_name()
        flags = shlex.join(arguments)
        run.display.say(f"\nserve it   {command} serve {flags}")
        run.display.say(f"ask it     {command} ask {flags}")


def print_stages(run: Run) -> None:
    """Print rows in, rows out and seconds of each finished stage."""
    rows = []
    total_s = 0.0
    for stage in STAGES:
        result = run.finished(stage)
        if result is not None:
            total_s += result.seconds
            rows.append([stage, result.rows_in, result.rows_out, f"{result.seconds:.0f}"])
    rows.append(["all", "", "", f"{total_s:.0f}"])
    run.display.table("stages", ["stage", "rows in", "rows out", "seconds"], rows)


def print_models(run: Run) -> None:
    """Print what base, student and teacher reached on the held-out prompts."""
    report = run.read_json("evaluation.json")
    rows = []
    for name, model in report["models"].items():
        ratio = report["transfer_ratio"] if name == "student" else None
        rows.append(
            [
                name,
                percent(model.get("schema_valid")),
                percent(model.get("accuracy")) + interval(model.get("accuracy_ci95")),
                "" if ratio is None else f"{ratio:.3f}",
                seconds(model.get("latency_p90_s")),
                "–" if model.get("usd_per_1k") is None else f"{model['usd_per_1k']:.4f}",
            ]
        )
    run.display.table(
        f"models, {report['num_prompts']} held-out prompts",
        ["model", "valid", "accuracy (95% interval)", "transfer ratio", "P90", "$/1k requests"],
        rows,
    )


def bill_sentence(bill: dict[str, Any], *, file: str) -> str:
    """What was paid by stage, and the file that says more; nothing if nothing was."""
    parts = {name: part["usd"] for name, part in bill["stages"].items()}
    if not any(usd is None or usd > 0 for usd in parts.values()):
        return ""
    shown = ", ".join(
        f"{name} {'not known' if usd is None else f'${usd:.4f}'}" for name, usd in parts.items()
    )
    return f"paid     ${bill['usd']:.4f} ({shown}), {file}"


def percent(value: float | None) -> str:
    """A share as a percentage, or a dash."""
    return "–" if value is None else f"{value:.1%}"


def interval(bounds: list[float] | None) -> str:
    """An interval in brackets, or nothing."""
    return "" if not bounds else f" ({bounds[0]:.1%}–{bounds[1]:.1%})"


def seconds(value: float | None) -> str:
    """A latency; under a millisecond is a program, not a model."""
    if value is None:
        return "–"
    return f"{value:.2f} s" if value >= 0.01 else "< 0.01 s"


def command_name() -> str:
    """How a person types `distillery` here: its path, unless their own shell finds it.

    `make` and we ourselves put the environment on the PATH of our processes, and not on theirs:
    an environment of which nobody's shell knows counts as not there.
    """
    beside = Path(sys.executable).with_name("distillery")
    found = shutil.which("distillery")
    activated = os.environ.get("VIRTUAL_ENV") == sys.prefix
    if not beside.exists() or activated or (found and Path(found) != beside):
        return "distillery"
    return str(beside.relative_to(Path.cwd()) if beside.is_relative_to(Path.cwd()) else beside)
