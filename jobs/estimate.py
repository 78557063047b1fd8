"""`distillery run FILE --dry-run`: prompts, tokens, dollars and hours before a cent is spent."""

from __future__ import annotations

import tempfile
from typing import Any

from rich.console import Console
from rich.table import Table

from cluster.prices import api_price
from cluster.storage import Store
from distill.prompts.config import FromTask
from distill.prompts.stage import make_prompts
from distill.teach.ask import cache_folder, request_keys
from distill.teach.config import LiteLLMTeacher, members_of
from distill.teach.estimate import Estimate, estimate
from distill.teach.journal import read_journal
from distill.teach.mixture import shares
from distill.teach.teacher import teacher_name
from jobs.config import RunConfig
from jobs.display import Display
from jobs.run import Run


def print_estimate(config: RunConfig) -> None:
    """Make the prompts in memory and print what answering them would take; nothing is written."""
    run = Run(config, Display())
    console = Console()
    for name, found in estimate_run(run):
        if found is None:
            console.print(f"{name} is asked nothing over the network and costs nothing.")
            continue
        table = Table(title=f"asking {name}", title_justify="left", show_header=False)
        several = f", {found.samples} answers each" if found.samples > 1 else ""
        shown = {
            "prompts": f"{found.prompts:,}{several}",
            "answers on disk": f"{found.known:,}",
            "tokens in": f"about {found.input_tokens:,}",
            "tokens out": f"about {found.output_tokens:,}, at most {found.most_output_tokens:,}",
            "dollars": (
                "price not known: give [teacher.price]"
                if found.usd is None
                else f"about {found.usd:,.2f}, at most {found.most_usd:,.2f}, repairs apart"
            ),
            "hours": f"about {found.hours:,.2f}",
            "based on": found.basis,
        }
        for heading, text in shown.items():
            table.add_row(heading, text)
        console.print(table)


def estimate_run(run: Run) -> list[tuple[str, Estimate | None]]:
    """Estimate each of a run's teachers by name; nothing for one that is no model behind an API."""
    prompts = run.config.prompts
    teacher = run.config.teacher
    if not any(isinstance(member, LiteLLMTeacher) for member in members_of(teacher)):
        return [(teacher_name(teacher, run.task), None)]
    # Those of the task: what a model has yet to write cannot be counted.
    own = prompts.model_copy(update={"make": FromTask()})
    with tempfile.TemporaryDirectory(prefix="distillery-estimate-") as folder:
        rows = make_prompts(run.task, own, store=Store(folder)).all_rows()
    return [
        (
            teacher_name(member, run.task),
            _estimate(run, member, own) if isinstance(member, LiteLLMTeacher) else None,
        )
        for member, own in shares(rows, teacher)
    ]


def _estimate(run: Run, teacher: LiteLLMTeacher, rows: list[dict[str, Any]]) -> Estimate:
    earlier = list(read_journal(cache_folder(teacher, store=run.store)))
    known = {row["request_key"] for row in earlier if not row["error"]}
    missing = [
        row
        for sample in range(teacher.samples)
        for row, key in zip(rows, request_keys(rows, teacher, run.task, sample=sample), strict=True)
        if key not in known
    ]
    price = api_price(teacher.model)
    if teacher.price is not None:
        price = teacher.price.as_token_price("[teacher.price]")
    return estimate(rows, teacher, missing=missing, earlier=earlier, price=price)
