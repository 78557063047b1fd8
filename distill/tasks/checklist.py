"""The checklist of a task definition: what an item is, and what the items look at."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from distill.tasks.complexity import Complexity
from distill.tasks.spec import Deployment
from distill.tasks.task import Task

Verdict = Literal["pass", "warn", "fail"]


@dataclass(frozen=True)
class Item:
    """One graded question."""

    id: str
    """`<group>.<name>`; the groups are input, output, success, deployment and edge."""
    question: str
    verdict: Verdict
    evidence: str
    """What the definition says."""
    advice: str = ""
    """What to write; empty when it passes."""


@dataclass(frozen=True)
class Recording:
    """The answers that a run beside the task replays."""

    file: str
    answers: Mapping[str, dict[str, Any]] = field(default_factory=dict)
    """Records by id (`distill.teach.replay.read_recording`)."""
    problem: str = ""
    """Why they cannot be read; empty if they can."""


@dataclass(frozen=True)
class PromptSample:
    """Prompts and answers of a task, as far as they can be read."""

    prompts: list[dict[str, Any]] = field(default_factory=list)
    """Records of the task's file, or generated ones; not necessarily all."""
    total: int | None = None
    """How many the file holds; `None`: a generator makes as many as are asked for."""
    problem: str = ""
    """Why they cannot be read; empty if they can."""
    answers: list[str] = field(default_factory=list)
    """Texts of recorded answers, not necessarily all."""
    recording: Recording | None = None
    """All of them with their ids, where a run beside the task replays them."""


@dataclass(frozen=True)
class Evidence:
    """All that the items look at."""

    task: Task
    deployment: Deployment
    sample: PromptSample
    rows: list[dict[str, Any]]
    """The sample's distinct prompts, rendered (`distill.prompts.split.build_rows`)."""
    problem: str
    """Why there are no rows; empty if there are."""
    complexity: Complexity
