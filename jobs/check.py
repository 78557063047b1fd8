"""`distillery check`: is this task ready to be distilled, and should it be?"""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.config import read_toml
from cluster.errors import DistilleryError
from distill.prompts.grid import grid_size
from distill.prompts.source import read_prompts
from distill.tasks.checklist import PromptSample, Recording
from distill.tasks.checkup import Checkup, check_up
from distill.tasks.task import Task, load_task
from distill.teach.config import ReplayTeacher
from distill.teach.replay import read_recording, replay_file

# Enough to see strata, repeats and lengths; a large file is looked at evenly.
LOOKED_AT = 1000
MARKS = {"pass": "[green]ok[/]", "warn": "[yellow]--[/]", "fail": "[red]no[/]"}
ADVICE = {
    "distil": "distil it",
    "prompt": "do not distil: prompt a model",
    "retrieve": "do not distil: look the facts up",
    "compute": "compute the break-even first",
}


def check_task(folder: str, *, as_json: bool = False) -> int:
    """Print the check-up of a task folder or a bundled task's name.

    Returns the exit code: 0, or 2 when an item failed.
    """
    task = load_task(folder)
    checkup = check_up(task, read_sample(task))
    if as_json:
        print(json.dumps(asdict(checkup), indent=2, ensure_ascii=False))
    else:
        console = Console(highlight=False)
        # Where the output is a file, rich would fold everything into 80 columns.
        render(checkup, console if console.is_terminal else Console(highlight=False, width=100))
    return 2 if checkup.failed else 0


def read_sample(task: Task) -> PromptSample:
    """Read or generate some of the task's prompts, and the answers that its run.toml replays.

    What cannot be read becomes the sample's `problem`: that is a finding, not the end.
    """
    recording = recording_of(task)
    answers = _texts(recording)
    try:
        source = task.spec.prompts
        size = grid_size(task) if source.grid else None
        sizes = {"train": LOOKED_AT if size is None else min(LOOKED_AT, size)}
        skip_bad = bool(_section_of_run(task, "prompts").get("skip_bad", False))
        prompts = list(read_prompts(task, sizes=sizes, seed=0, skip_bad=skip_bad))
    # A generator is the user's own code: whatever it raises is what there is to report.
    except Exception as error:
        name = "" if isinstance(error, DistilleryError) else f"{type(error).__name__}: "
        return PromptSample(problem=f"{name}{error}", answers=answers, recording=recording)
    total = None if source.generator else size or len(prompts)
    return PromptSample(prompts=_evenly(prompts), total=total, answers=answers, recording=recording)


def render(checkup: Checkup, console: Console) -> None:
    """Print the graded items, what to write, the complexity, the expectations and the advice."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", "item", "found in the definition"):
        table.add_column(heading, overflow="fold")
    for item in checkup.items:
        table.add_row(MARKS[item.verdict], item.id, f"{item.question} {escape(item.evidence)}")
    console.print(f"[bold]{escape(checkup.task)}[/bold]")
    console.print(table)
    for verdict, colour in (("fail", "red"), ("warn", "yellow")):
        for item in (item for item in checkup.items if item.verdict == verdict):
            console.print(f"\n[{colour}]{item.id}[/]: {escape(item.evidence)}")
            console.print(f"  to do: {escape(item.advice)}")
    complexity = checkup.complexity
    console.print(f"\n[bold]complexity {complexity.level} of 4, {complexity.name}[/bold]")
    for reason in complexity.reasons:
        console.print(f"  level {reason.level}: {escape(reason.text)}")
    _render_expectations(checkup, console)
    _render_recommendation(checkup, console)
    if checkup.recommendation.advice == "distil" and checkup.failed:
        console.print(f"  mend first: {', '.join(item.id for item in checkup.failed)}")
    failed, warned = len(checkup.failed), sum(i.verdict == "warn" for i in checkup.items)
    passed = len(checkup.items) - failed - warned
    console.print(f"\n{passed} passed, {warned} to look at, {failed} failed")


def _render_expectations(checkup: Checkup, console: Console) -> None:
    console.print("\n[bold]to expect[/bold] (rules of thumb of others, no promise)")
    table = Table(box=None, pad_edge=False)
    for heading in ("what", "figure", "source"):
        table.add_column(heading, overflow="fold")
    for row in checkup.expectations:
        table.add_row(escape(row.label), escape(row.text), f"[dim]{escape(row.source)}[/dim]")
    console.print(table)


def _render_recommendation(checkup: Checkup, console: Console) -> None:
    recommendation = checkup.recommendation
    console.print(f"\n[bold]advice: {ADVICE[recommendation.advice]}[/bold]")
    for reason in recommendation.reasons:
        side = "because" if reason.supports else "against it"
        console.print(f"  {side}: {escape(reason.text)} [dim]({escape(reason.source)})[/dim]")
    if recommendation.unknown:
        names = ", ".join(recommendation.unknown)
        console.print(f"  could change it, once stated in \\[deployment]: {names}")


def recorded_answers(task: Task) -> list[str]:
    """Return answers of the replay teacher in the run.toml beside the task, if there is one."""
    return _texts(recording_of(task))


def recording_of(task: Task) -> Recording | None:
    """Read what the replay teacher in the run.toml beside the task would say.

    `None` where there is no such teacher.
    """
    teacher = _section_of_run(task, "teacher")
    if teacher.get("kind") != "replay":
        return None
    file = str(teacher.get("file", ""))
    try:
        return Recording(file, read_recording(replay_file(ReplayTeacher(file=file), task)))
    except DistilleryError as error:
        return Recording(file, problem=str(error))


def _section_of_run(task: Task, name: str) -> dict[str, Any]:
    """Return a section of the run.toml beside the task; empty where there is none."""
    run = task.folder / "run.toml"
    section = read_toml(run).get(name, {}) if run.is_file() else {}
    return section if isinstance(section, dict) else {}


def _texts(recording: Recording | None) -> list[str]:
    return _evenly([row["completion"] for row in recording.answers.values()]) if recording else []


def _evenly(values: list[Any]) -> list[Any]:
    count = min(LOOKED_AT, len(values))
    return [values[index * len(values) // count] for index in range(count)]
