"""All answers of one teacher to its prompts, as the journal or a recording holds them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import StageError
from cluster.storage import Store, digest_of, rows_table
from distill.batches import Progress
from distill.records import PROMPT
from distill.tasks.task import Task
from distill.teach.ask import Known, ask, budget_reached, request_keys
from distill.teach.compute import compute
from distill.teach.config import ModelTeacher, OneTeacher
from distill.teach.files import read_completions
from distill.teach.identity import parameters, teacher_name

SHARE = "prompts.parquet"
"""A member's prompts, in its own folder."""

Row = dict[str, Any]


@dataclass
class Found:
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

    def add(self, other: Found) -> None:
        """Take another teacher's in."""
        self.answers += other.answers
        self.failed += other.failed
        self.timings += other.timings
        # Two of one model read the same journal, and what this run paid is in both readings.
        known = {_line(row) for row in self.journal}
        self.journal += [row for row in other.journal if _line(row) not in known]
        self.keys |= other.keys
        self.stopped = self.stopped or other.stopped
        self.silent = self.silent or other.silent


def _line(row: Row) -> tuple[Any, ...]:
    """Identity of a line of the journal: a request may have several, of unlike latency."""
    return row["request_key"], row["payer"], row["latency_s"], row["error"]


def collect(
    task: Task,
    config: OneTeacher,
    prompts: Sequence[Row],
    *,
    store: Store,
    on_progress: Progress | None,
) -> Found:
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
        found = Found(answers=[{**row, "sample": 0} for row in answers], failed=failed)
    if prompts and not found.answers and found.stopped is None:
        errors = Counter(row["error"] for row in found.failed)
        found.silent = StageError(
            f"{name} answered none of {len(prompts)} prompts; the commonest error: "
            f"{commonest(errors)}. Mend it and run again, or leave it out."
        )
    return found


def _asked(
    task: Task,
    config: ModelTeacher,
    prompts: Sequence[Row],
    *,
    store: Store,
    on_progress: Progress | None,
) -> Found:
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
    found = Found(keys={row["request_key"] for row in wanted}, journal=known.of_interest)
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


def commonest(errors: Counter[str]) -> str:
    """Return the error that came most often, for a message."""
    return errors.most_common(1)[0][0] if errors else "none recorded"
