"""Have the prompts answered: by one teacher, or by several of which the jury keeps the best.

A model's answers go into a journal as they arrive (`ask.py`), which runs share; the run's own files
are made from it, in the order of the prompts, so that they are the same however often the work was
interrupted. What a program or a recording says costs nothing and is computed in batches.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from cluster.errors import StageError
from cluster.models import require_chat_template
from cluster.storage import Store, rows_table
from distill.batches import Progress
from distill.config import JuryConfig
from distill.prompts.stage import Prompts
from distill.records import COMPLETION
from distill.tasks.task import Task
from distill.teach.bill import bill, keep_bill
from distill.teach.choose import CANDIDATE, choose
from distill.teach.collect import Found, collect, commonest
from distill.teach.compute import compute
from distill.teach.config import (
    AnyTeacher,
    LiteLLMTeacher,
    ModelTeacher,
    ProgramTeacher,
    ReplayTeacher,
    SeveralTeachers,
    VLLMTeacher,
    gives_candidates,
    members_of,
)
from distill.teach.files import ANSWERS, CANDIDATES, FAILED, TIMINGS
from distill.teach.identity import teacher_name
from distill.teach.mixture import shares
from distill.teach.teacher import build_teacher
from distill.teach.terms import check_terms

MOST_FAILED = 0.05
"""Share of a program's or a recording's prompts that may end without an answer."""

_FAILED = pa.schema(
    [
        ("example_id", pa.string()),
        ("teacher", pa.string()),
        ("sample", pa.int64()),
        ("failure", pa.string()),
        ("error", pa.string()),
    ]
)
_TIMINGS = pa.schema(
    [
        ("request_key", pa.string()),
        ("latency_s", pa.float64()),
        ("requests", pa.int64()),
        ("retried", pa.list_(pa.string())),
    ]
)


def check_teacher(config: AnyTeacher, task: Task, *, here: bool = True) -> None:
    """Fail now on what would fail later: a missing key, price, file, function or permission.

    Without `here` nothing is looked for that only the machine which asks must have: keys, weights.
    """
    for member in members_of(config):
        if isinstance(member, ModelTeacher):
            check_terms(member)
        if isinstance(member, ProgramTeacher):
            task.function(member.function)
        elif isinstance(member, VLLMTeacher):
            if here:
                require_chat_template(member.model, field="teacher.model")
        elif isinstance(member, LiteLLMTeacher) and not here:
            from distill.teach.litellm import token_prices

            token_prices(member)
        else:
            build_teacher(member, task)


def generate(
    task: Task,
    config: AnyTeacher,
    *,
    prompts: Prompts,
    store: Store,
    jury: JuryConfig | None = None,
    on_progress: Progress | None = None,
) -> Generated:
    """Answer the prompts that have no answer yet; `read_completions` reads the answers.

    Where a prompt gets several answers, the `jury` chooses; all of them are in
    `candidates.parquet`. An answer on disk is never asked for again. StageError, with the
    commonest error, when more rows failed than the teacher's `max_failed_fraction` (0.05 of a
    program or a recording), when one of several teachers answered nothing, or when the budget
    ended first.
    """
    if isinstance(config, (ProgramTeacher, ReplayTeacher)):
        done = compute(task, config, prompts=prompts.files, store=store, on_progress=on_progress)
        _check_failures(prompts.total, done.answered, done.errors, config=config, task=task)
        return Generated(done.answered, done.cost_usd)
    found = Found()
    rows = prompts.all_rows()
    for member, own in shares(rows, config):
        found.add(collect(task, member, own, store=store, on_progress=on_progress))
    answers = found.answers
    if gives_candidates(config) and found.stopped is None:
        judged = choose(
            task, jury or JuryConfig(), candidates=answers, store=store, on_progress=on_progress
        )
        store.write_table(CANDIDATES, rows_table(judged, CANDIDATE))
        answers = [row for row in judged if row["chosen"]]
    places = {row["example_id"]: place for place, row in enumerate(rows)}
    answers.sort(key=lambda row: places[row["example_id"]])
    # Answers of other prompts, or of another teacher, are in the cache and not in this run.
    store.remove("completions")
    store.write_table(FAILED, rows_table(found.failed, _FAILED))
    store.write_table(TIMINGS, rows_table(found.timings, _TIMINGS))
    payer = Path(store.root).name
    keep_bill(store, "answers", bill(found.journal, keys=found.keys, payer=payer))
    if found.stopped is not None:
        raise found.stopped
    store.write_table(
        ANSWERS, rows_table([{**row, "latency_s": None} for row in answers], COMPLETION)
    )
    if found.silent is not None and isinstance(config, SeveralTeachers):
        raise found.silent
    errors = Counter(row["error"] for row in found.failed)
    _check_failures(len(rows), len(answers), errors, config=config, task=task)
    return Generated(len(answers), sum(row["cost_usd"] for row in found.answers))


@dataclass(frozen=True)
class Generated:
    """What a teacher made of the prompts."""

    answered: int
    """Prompts with an answer."""
    cost_usd: float
    """What all answers cost when they were made, those that were not chosen among them."""


def _check_failures(
    asked: int, answered: int, errors: Counter[str], *, config: AnyTeacher, task: Task
) -> None:
    models = [member for member in members_of(config) if isinstance(member, ModelTeacher)]
    allowed = max((member.max_failed_fraction for member in models), default=MOST_FAILED)
    failed = asked - answered
    if failed > allowed * asked:
        raise StageError(
            f"{failed} of {asked} prompts have no answer from "
            f"{teacher_name(config, task)}; the commonest error: {commonest(errors)}. "
            "What was answered is kept; a rerun asks for the rest."
        )
