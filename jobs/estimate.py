"""`distillery run FILE --dry-run`: prompts, tokens, dollars and hours before a cent is spent."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from cluster.prices import TokenPrice, api_price
from distill.config import LiteLLMTeacher
from distill.prompts.source import read_prompts
from distill.prompts.split import build_rows, split_rows
from distill.teach.estimate import Estimate, estimate
from distill.teach.journal import read_journal
from distill.teach.stage import cache_folder, key_of
from distill.teach.teacher import teacher_name
from jobs.config import RunConfig
from jobs.display import Display
from jobs.run import Run


def print_estimate(config: RunConfig) -> None:
    """Make the prompts in memory and print what answering them would take; nothing is written."""
    run = Run(config, Display())
    console = Console()
    found = estimate_run(run)
    name = teacher_name(config.teacher, run.task)
    if found is None:
        console.print(f"{name} is asked nothing over the network and costs nothing.")
        return
    table = Table(title=f"asking {name}", title_justify="left", show_header=False)
    shown = {
        "prompts": f"{found.prompts:,}",
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


def estimate_run(run: Run) -> Estimate | None:
    """Estimate a run's teacher; nothing for one that is no model behind an API."""
    teacher, prompts = run.config.teacher, run.config.prompts
    if not isinstance(teacher, LiteLLMTeacher):
        return None
    sizes = {"train": prompts.train, "validation": prompts.validation, "test": prompts.test}
    read = read_prompts(run.task, sizes=sizes, seed=prompts.seed, skip_bad=prompts.skip_bad)
    split = split_rows(
        build_rows(run.task, read),
        sizes=sizes,
        disjoint=run.task.spec.prompts.disjoint,
        seed=prompts.seed,
    )
    rows = [row for members in split.rows.values() for row in members]
    earlier = list(read_journal(cache_folder(teacher, store=run.store)))
    known = {row["request_key"] for row in earlier if not row["error"]}
    missing = [row for row in rows if key_of(row, teacher, run.task) not in known]
    price = api_price(teacher.model)
    if teacher.price is not None:
        own = teacher.price
        price = TokenPrice(own.input_usd_per_mtok, own.output_usd_per_mtok, "[teacher.price]")
    return estimate(rows, teacher, missing=missing, earlier=earlier, price=price)
