"""The checklist of a task definition: what an item is, and what the items look at."""

from __future__ import annotations

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
class PromptSample:
    """Prompts and answers of a task, as far as they can be read."""

    prompts: list[dict[str, Any]] = field(default_factory=list)
    """Records of the task's file, or generated ones; not necessarily all."""
    total: int | None = None
    """How many the file holds; `None`: a generator makes as many as are asked for."""
    problem: str = ""
    """Why they cannot be read; empty if they can."""
    answers: list[str] = field(default_factory=list)
    """Recorded answers, where a run beside the task replays them."""


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
