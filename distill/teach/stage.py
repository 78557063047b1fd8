"""Have the prompts answered: by one teacher, or by several of which the jury keeps the best.

A model's answers go into a journal as they arrive (`ask.py`), which runs share; the run's own files
are made from it, in the order of the prompts, so that they are the same however often the work was
interrupted. What a program or a recording says costs nothing and is computed in batches.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.errors import StageError
from cluster.models import require_chat_template
from cluster.storage import Store, digest_of, rows_table
from distill.batches import Progress
from distill.config import JuryConfig
from distill.prompts.stage import Prompts
from distill.records import COMPLETION, PROMPT
from distill.tasks.task import Task
from distill.teach.ask import Known, ask, budget_reached, request_keys
from distill.teach.bill import bill, keep_bill
from distill.teach.choose import CANDIDATE, choose
from distill.teach.compute import compute
from distill.teach.config import (
    AnyTeacher,
    ModelTeacher,
    OneTeacher,
    ProgramTeacher,
    ReplayTeacher,
    SeveralTeachers,
    VLLMTeacher,
    gives_candidates,
    members_of,
)
from distill.teach.mixture import shares
from distill.teach.teacher import build_teacher, parameters, request_key, teacher_name
from distill.teach.terms import check_terms

ANSWERS, FAILED, TIMINGS = "completions/answers.parquet", "failed.parquet", "timings.parquet"
CANDIDATES = "candidates.parquet"
SHARE = "prompts.parquet"
"""A member's prompts, in its own folder."""
MOST_FAILED = 0.05
"""Share of a program's or a recording's prompts that may end without an answer."""

Row = dict[str, Any]

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


def check_teacher(config: AnyTeacher, task: Task) -> None:
    """Fail now on what would fail later: a missing key, price, file, function or permission."""
    for member in members_of(config):
        if isinstance(member, ModelTeacher):
            check_terms(member)
        if isinstance(member, ProgramTeacher):
            task.function(member.function)
        elif isinstance(member, VLLMTeacher):
            require_chat_template(member.model, field="teacher.model")
        else:
            build_teacher(member, task)


def read_completions(prompts: Sequence[Row], config: AnyTeacher, *, store: Store) -> list[Row]:
    """Answers on disk for these prompts and this teacher, in the prompts' order."""
    if not store.names("completions"):
        return []
    # A model's file was made for exactly these prompts; a program's may hold answers to prompts
    # that changed since.
    computed = config if isinstance(config, (ProgramTeacher, ReplayTeacher)) else None
    answered = {
        row["request_key" if computed else "example_id"]: row
        for row in store.read_rows("completions")
        if not row["error"]
    }
    timings = store.read_rows(TIMINGS) if store.exists(TIMINGS) else []
    latencies = {row["request_key"]: row["latency_s"] for row in timings}
    rows = []
    for prompt in prompts:
        key = request_key(prompt, computed) if computed else prompt["example_id"]
        found = answered.get(key)
        if found is not None:
            latency_s = latencies.get(found["request_key"], found["latency_s"])
            own = {name: prompt[name] for name in ("split", "example_id")}
            rows.append({**found, "latency_s": latency_s, **own})
    return rows


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
    found = _Found()
    rows = prompts.all_rows()
    for member, own in shares(rows, config):
        found.add(_collected(task, member, own, store=store, on_progress=on_progress))
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


@dataclass
class _Found:
    """What teachers said, and what there is to say about it.

    What differs from run to run (how long it took, how often it was retried) stands apart, so
    that the answers of an interrupted run are the same file as those of an undisturbed one.
    """

    answers: list[Row] = field(default_factory=list)
    failed: list[Row] = field(default_factory=list)
    timings: list[Row] = field(default_factory=list)
    journal: list[Row] = field(default_factory=list)
    keys: set[str] = field(default_factory=set)
    stopped: StageError | None = None
    """What to raise for a budget that ended first."""
    silent: StageError | None = None
    """What to raise for one of several teachers that answered nothing."""

    def add(self, other: _Found) -> None:
        """Take another teacher's in."""
        self.answers += other.answers
        self.failed += other.failed
        self.timings += other.timings
        self.journal += other.journal
        self.keys |= other.keys
        self.stopped = self.stopped or other.stopped
        self.silent = self.silent or other.silent


def _collected(
    task: Task,
    config: OneTeacher,
    prompts: Sequence[Row],
    *,
    store: Store,
    on_progress: Progress | None,
) -> _Found:
    """All answers of one teacher: every sample of every prompt, in that order."""
    name = teacher_name(config, task)
    if isinstance(config, ModelTeacher):
        found = _asked(task, config, prompts, store=store, on_progress=on_progress)
    else:
        # Each in a folder of its own: one teacher's files are not another's.
        own = store / f"teachers/{digest_of(parameters(config))[:12]}"
        own.write_table(SHARE, rows_table(prompts, PROMPT))
        done = compute(task, config, prompts=[SHARE], store=own, on_progress=on_progress)
        answers = read_completions(prompts, config, store=own)
        failed = [
            {"teacher": name, "sample": 0, "failure": "refused", "error": error}
            for error, count in done.errors.items()
            for _ in range(count)
        ]
        found = _Found(answers=[{**row, "sample": 0} for row in answers], failed=failed)
    if prompts and not found.answers and found.stopped is None:
        errors = Counter(row["error"] for row in found.failed)
        found.silent = StageError(
            f"{name} answered none of {len(prompts)} prompts; the commonest error: "
            f"{_commonest(errors)}. Mend it and run again, or take it out of teacher.members."
        )
    return found


def _asked(
    task: Task,
    config: ModelTeacher,
    prompts: Sequence[Row],
    *,
    store: Store,
    on_progress: Progress | None,
) -> _Found:
    wanted = [
        {**prompt, "request_key": key, "sample": sample}
        for sample in range(config.samples)
        for prompt, key in zip(
            prompts, request_keys(prompts, config, task, sample=sample), strict=True
        )
    ]
    asked = ("request_key", "example_id", "messages", "sample")
    known: Known = ask(
        [{name: row[name] for name in asked} for row in wanted],
        config,
        task,
        store=store,
        on_progress=on_progress,
    )
    found = _Found(keys={row["request_key"] for row in wanted}, journal=known.of_interest)
    said = {"teacher": teacher_name(config, task), "temperature": config.temperature}
    for row in wanted:
        about = {
            **said,
            "example_id": row["example_id"],
            "seed": None if config.seed is None else config.seed + row["sample"],
        }
        key = row["request_key"]
        if key in known.answered:
            found.answers.append({**row, **known.answered[key], **about})
        elif key in known.failed:
            found.failed.append({**row, **known.failed[key], **about})
    # In the order of the requests, not of the journal's files.
    of_requests = dict.fromkeys(row["request_key"] for row in wanted)
    found.timings = [known.answered[key] for key in of_requests if key in known.answered]
    if known.unasked:
        found.stopped = budget_reached(config, known, total=len(of_requests))
    return found


def _check_failures(
    asked: int, answered: int, errors: Counter[str], *, config: AnyTeacher, task: Task
) -> None:
    models = [member for member in members_of(config) if isinstance(member, ModelTeacher)]
    allowed = max((member.max_failed_fraction for member in models), default=MOST_FAILED)
    failed = asked - answered
    if failed > allowed * asked:
        raise StageError(
            f"{failed} of {asked} prompts have no answer from "
            f"{teacher_name(config, task)}; the commonest error: {_commonest(errors)}. "
            "What was answered is kept; a rerun asks for the rest."
        )


def _commonest(errors: Counter[str]) -> str:
    return errors.most_common(1)[0][0] if errors else "none recorded"
