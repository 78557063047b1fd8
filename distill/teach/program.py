"""A Python function as a teacher: rules that are known to be right, and no model."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from typing import Any

from distill.tasks.task import Task
from distill.teach.answer import Answer
from distill.teach.config import ProgramTeacher


class ProgramTeacherRunner:
    """Calls `function(variables)`; a string is the answer, anything else becomes JSON."""

    def __init__(self, config: ProgramTeacher, task: Task, *, name: str):
        """Load the function from the task folder."""
        self.name = name
        self._function = task.function(config.function)

    def answer(self, rows: Sequence[dict[str, Any]]) -> list[Answer]:
        """Answer each row; an exception of the function becomes that row's error."""
        return [self._one(json.loads(row["variables"])) for row in rows]

    def _one(self, variables: dict[str, Any]) -> Answer:
        start = time.perf_counter()
        try:
            answer = self._function(variables)
        except Exception as error:
            return Answer(error=f"{type(error).__name__}: {error}")
        text = answer if isinstance(answer, str) else json.dumps(answer, ensure_ascii=False)
        return Answer(completion=text, latency_s=time.perf_counter() - start)
