"""The one seam between the stage that asks and whoever answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from cluster.storage import digest_of
from distill.config import LiteLLMTeacher, ProgramTeacher, ReplayTeacher
from distill.tasks.task import Task

AnyTeacher = ProgramTeacher | LiteLLMTeacher | ReplayTeacher


@dataclass(frozen=True)
class Answer:
    """One answer, or the error that stands in its place."""

    completion: str = ""
    error: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    latency_s: float = 0.0
    cost_usd: float = 0.0


class Teacher(Protocol):
    """Whoever answers: a program, a model behind an API, a recording."""

    name: str
    """Who it is, as records and manifests show it."""

    def answer(self, rows: Sequence[dict[str, Any]]) -> list[Answer]:
        """Answer prompt rows (`distill.records.PROMPT`), one answer a row, in order.

        A row that cannot be answered gets an `Answer` with `error`; nothing is raised for it.
        """


def teacher_name(config: AnyTeacher, task: Task) -> str:
    """Name of a teacher as records show it."""
    if isinstance(config, ProgramTeacher):
        return f"program:{task.name}/{config.function}"
    if isinstance(config, LiteLLMTeacher):
        return f"litellm:{config.model}"
    return f"replay:{config.file}"


def request_key(row: dict[str, Any], config: AnyTeacher) -> str:
    """Digest of everything that can change an answer: prompt, teacher and its parameters.

    How fast it is asked, how often a failure is retried and what it costs do not count.
    """
    parameters = config.model_dump(
        exclude={"concurrency", "timeout_s", "max_retries", "price", "api_key_env"}
    )
    return digest_of([row["messages"], row["variables"], parameters])


def build_teacher(config: AnyTeacher, task: Task) -> Teacher:
    """Make the teacher, in the worker that asks it."""
    name = teacher_name(config, task)
    if isinstance(config, ProgramTeacher):
        from distill.teach.program import ProgramTeacherRunner

        return ProgramTeacherRunner(config, task, name=name)
    if isinstance(config, LiteLLMTeacher):
        from distill.teach.litellm import LiteLLMTeacherRunner

        return LiteLLMTeacherRunner(config, name=name)
    from distill.teach.replay import ReplayTeacherRunner

    return ReplayTeacherRunner(config, task, name=name)
