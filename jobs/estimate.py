"""`distillery run FILE --dry-run`: prompts, tokens, dollars and hours before a cent is spent."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.prices import api_price
from cluster.storage import Store
from distill.config import PromptsConfig
from distill.prompts.config import EvolInstruct, FromTask, SelfInstruct
from distill.prompts.split import SPLITS
from distill.prompts.stage import make_prompts
from distill.tasks.task import Task
from distill.teach.answer import is_final
from distill.teach.ask import cache_folder, request_keys
from distill.teach.config import LiteLLMTeacher, OneTeacher, members_of
from distill.teach.estimate import Estimate, estimate
from distill.teach.identity import teacher_name
from distill.teach.journal import read_journal
from distill.teach.mixture import shares
from distill.train.deepspeed_settings import DEEPSPEED, deepspeed_settings
from jobs.config import RunConfig
from jobs.display import Display
from jobs.preflight import check_input
from jobs.run import Run, stages_until


def print_estimate(config: RunConfig, *, until: str = "deploy", again: bool = False) -> None:
    """Check what a run up to `until` reads, and print what its answers would take.

    Raises what would stop the run before its first stage, but for what this machine lacks (keys,
    weights, memory). Nothing is written.
    """
    stages = stages_until(until)
    run = Run(config, Display())
    check_input(run, run.unfinished(stages, again=again), here=False)
    print_estimates(estimate_run(run))
    if "train" in stages:
        print_deepspeed(run)


def print_estimates(found: Iterable[tuple[str, Estimate | None]]) -> None:
    """Print a table for each teacher; `None`: it is no model behind an API."""
    console = Console()
    for name, estimated in found:
        if estimated is None:
            console.print(f"{name} is asked nothing over the network and costs nothing.")
            continue
        table = Table(title=f"asking {name}", title_justify="left", show_header=False)
        several = f", {estimated.samples} answers each" if estimated.samples > 1 else ""
        shown = {
            "prompts": f"{estimated.prompts:,}{several}",
            "answers on disk": f"{estimated.known:,}",
            "tokens in": f"about {estimated.input_tokens:,}",
            "tokens out": (
                f"about {estimated.output_tokens:,}, at most {estimated.most_output_tokens:,}"
            ),
            "dollars": (
                "price not known: give [teacher.price]"
                if estimated.usd is None
                else f"about {estimated.usd:,.2f}, at most {estimated.most_usd:,.2f}, repairs apart"
            ),
            "hours": f"about {estimated.hours:,.2f}",
            "based on": estimated.basis,
        }
        for heading, text in shown.items():
            table.add_row(heading, escape(text))
        console.print(table)


def print_deepspeed(run: Run) -> None:
    """Print what DeepSpeed will be given, `[train.deepspeed]` merged in."""
    config = run.config
    settings = deepspeed_settings(config.train.for_hardware(config.cluster.accelerator))
    run.display.say(
        f"DeepSpeed's settings, which a training leaves in {DEEPSPEED}; [train.deepspeed] is "
        f"merged over them:\n{json.dumps(settings, indent=2)}"
    )


def estimate_run(run: Run) -> list[tuple[str, Estimate | None]]:
    """Estimate each of a run's teachers by name; nothing for one that is no model behind an API.

    The prompts are made in any case: what is wrong with them is raised here.
    """
    teacher = run.config.teacher
    paid = any(isinstance(member, LiteLLMTeacher) for member in members_of(teacher))
    rows = task_prompts(run.task, run.config.prompts, splits=SPLITS if paid else ())
    if not paid:
        return [(teacher_name(teacher, run.task), None)]
    return [
        (teacher_name(member, run.task), estimate_teacher(run.task, member, own, store=run.store))
        for member, own in shares(rows, teacher)
    ]


def task_prompts(
    task: Task, config: PromptsConfig, *, splits: Sequence[str] = ("train",)
) -> list[dict[str, Any]]:
    """Return the prompts, in memory, without those that a model has yet to write."""
    grown = isinstance(config.make, (SelfInstruct, EvolInstruct))
    own = config.model_copy(update={"make": FromTask()}) if grown else config
    with tempfile.TemporaryDirectory(prefix="distillery-estimate-") as folder:
        prompts = make_prompts(task, own, store=Store(folder))
        sizes = prompts.sizes
        return [row for split in splits if sizes.get(split) for row in prompts.rows(split)]


def estimate_teacher(
    task: Task, teacher: OneTeacher, rows: list[dict[str, Any]], *, store: Store
) -> Estimate | None:
    """Estimate what one teacher would take for `rows`; `None` if it is no model behind an API."""
    if not isinstance(teacher, LiteLLMTeacher):
        return None
    earlier = list(read_journal(cache_folder(teacher, store=store)))
    known = {row["request_key"] for row in earlier if is_final(row)}
    missing = [
        row
        for sample in range(teacher.samples)
        for row, key in zip(rows, request_keys(rows, teacher, task, sample=sample), strict=True)
        if key not in known
    ]
    price = api_price(teacher.model)
    if teacher.price is not None:
        price = teacher.price.as_token_price("[teacher.price]")
    return estimate(rows, teacher, missing=missing, earlier=earlier, price=price)
