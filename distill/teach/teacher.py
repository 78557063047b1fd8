"""The one seam between the stage that asks and whoever answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

from distill.tasks.task import Task
from distill.teach.answer import Answer
from distill.teach.config import LiteLLMTeacher, ProgramTeacher, ReplayTeacher
from distill.teach.identity import teacher_name


class Teacher(Protocol):
    """Whoever answers: a program, a model behind an API, a recording."""

    name: str
    """Who it is, as records and manifests show it."""

    def answer(self, rows: Sequence[dict[str, Any]]) -> list[Answer]:
        """Answer prompt rows (`distill.records.PROMPT`), one answer a row, in order.

        A row that cannot be answered gets an `Answer` with `error`; nothing is raised for it.
        """


def build_teacher(config: ProgramTeacher | LiteLLMTeacher | ReplayTeacher, task: Task) -> Teacher:
    """Make the teacher, in the worker that asks it."""
    name = teacher_name(config, task)
    if isinstance(config, ProgramTeacher):
        from distill.teach.program import ProgramTeacherRunner

        return ProgramTeacherRunner(config, task, name=name)
    if isinstance(config, LiteLLMTeacher):
        from distill.teach.litellm import LiteLLMTeacherRunner

        return LiteLLMTeacherRunner(config, task, name=name)
    from distill.teach.replay import ReplayTeacherRunner

    return ReplayTeacherRunner(config, task, name=name)
