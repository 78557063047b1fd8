"""Have the picked requests answered by the teacher, within a budget, and keep what passes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from cluster.storage import Store
from distill.batches import Progress
from distill.config import CurateConfig, JudgeVerify, JuryConfig
from distill.curate.stage import curate_rows
from distill.judge.stage import accepted, score
from distill.records import PROMPT
from distill.relabel.pick import Pick
from distill.tasks.task import Task
from distill.teach.ask import Known, cache_folder, request_keys
from distill.teach.bill import bill, keep_bill
from distill.teach.collect import Found, collect
from distill.teach.config import (
    AnyTeacher,
    LiteLLMTeacher,
    ModelTeacher,
    OneTeacher,
    SeveralTeachers,
)

Row = dict[str, Any]


@dataclass(frozen=True)
class Taught:
    """What the teacher made of the picks."""

    accepted: list[Row]
    """Answers (`distill.records.COMPLETION`) that passed every check."""
    rejected: Counter[str]
    """Answers that did not, by check."""
    failed: int
    """Prompts that ended with an error in place of an answer."""
    unasked: int
    """Prompts that the budget left."""
    usd: float
    """What was paid for this version so far, earlier attempts included."""
    note: str
    """Why asking stopped, or nothing."""


def teacher_for(config: AnyTeacher, *, budget_usd: float) -> OneTeacher:
    """Return the teacher as it is asked here: one answer a prompt, within the budget.

    ConfigError for several teachers at once: a budget is one teacher's.
    """
    if isinstance(config, SeveralTeachers):
        raise ConfigError(
            "relabel asks one teacher, and [teacher] kind is 'several': set [relabel.teacher] to "
            "the one whose answers you want."
        )
    if isinstance(config, LiteLLMTeacher):
        return config.model_copy(update={"samples": 1, "budget_usd": budget_usd})
    if isinstance(config, ModelTeacher):
        return config.model_copy(update={"samples": 1})
    return config


def teach(
    task: Task,
    teacher: OneTeacher,
    picks: Sequence[Pick],
    *,
    curate: CurateConfig,
    jury: JuryConfig,
    store: Store,
    on_progress: Progress | None = None,
) -> Taught:
    """Ask about every pick that is not answered yet, check the answers, return what passed.

    `store` is the folder of this version's work: its name pays, `bill.json` has what it cost, and
    an answer that any run has in the same cache is not asked for again. Needs a connected Ray.
    """
    prompts = [{name: one.row[name] for name in PROMPT.names} for one in picks]
    found, note = _collected(task, teacher, prompts, store=store, on_progress=on_progress)
    entry = bill(found.journal, keys=found.keys, payer=Path(store.root).name)
    keep_bill(store, "answers", entry)
    if found.silent is not None:
        raise found.silent
    kept, rejected = _checked(task, found.answers, curate=curate, jury=jury, store=store)
    return Taught(
        accepted=kept,
        rejected=rejected,
        failed=len(found.failed),
        unasked=len(picks) - len(found.answers) - len(found.failed),
        usd=entry["usd"],
        note=note or (str(found.stopped) if found.stopped else ""),
    )


def _collected(
    task: Task,
    teacher: OneTeacher,
    prompts: Sequence[Row],
    *,
    store: Store,
    on_progress: Progress | None,
) -> tuple[Found, str]:
    """Collect all answers, or those on disk where the budget pays for no further one."""
    try:
        return collect(task, teacher, prompts, store=store, on_progress=on_progress), ""
    except ConfigError as error:
        if not isinstance(teacher, LiteLLMTeacher):
            raise
        keys = request_keys(prompts, teacher, task)
        known = Known.read(
            cache_folder(teacher, store=store), set(keys), payer=Path(store.root).name
        )
        here = [p for p, key in zip(prompts, keys, strict=True) if key in known.answered]
        if not here:
            raise
        return collect(task, teacher, here, store=store, on_progress=None), str(error)


def _checked(
    task: Task, answers: Sequence[Row], *, curate: CurateConfig, jury: JuryConfig, store: Store
) -> tuple[list[Row], Counter[str]]:
    """Run the run's own checks and jury over the answers."""
    curated = curate_rows(answers, curate, task=task)
    rejected = Counter(row["reason"] for row in curated.rejected)
    rows = curated.kept
    executes = any(isinstance(judge, JudgeVerify) for judge in jury.judges)
    if executes and task.spec.verify:
        # A verifier without variables would fail, and an answer nobody checked is no teacher's.
        rows = [row for row in rows if row["variables"] != "{}"]
        rejected["cannot_be_verified"] = len(curated.kept) - len(rows)
    if rows:
        score(task, jury, records=rows, store=store)
        kept = accepted(rows, jury, store=store)
        rejected["jury"] = len(rows) - len(kept)
        rows = kept
    return rows, Counter({reason: count for reason, count in rejected.items() if count})
