"""What serving's quality checks take from the distillation side: the task's checks, the teacher."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from cluster.errors import ConfigError
from distill.tasks.task import Task, load_task
from distill.teach.config import LiteLLMTeacher
from jobs.config import RunConfig
from serve.quality.assurance import Teacher, TeacherAnswer
from serve.quality.checks import Refusal
from serve.quality.config import QualityConfig
from serve.quality.gate import QualityParts

PASSING_SCORE = 1.0


def quality_parts(config: RunConfig) -> dict[str, QualityParts]:
    """Return the parts of `serve.quality`; ConfigError names the section that cannot be used.

    A missing key or price of a teacher shows here, before an engine is started.
    """
    parts = {}
    for name, section in config.serve.quality.items():
        folder = str(load_task(section.task or config.task.folder).folder)
        make_teacher = None
        routing = config.serve.routing.get(name)
        if "teacher" in section.on_failure or (routing is not None and routing.is_teacher):
            make_teacher = MakeTeacher(folder, _teacher_of(name, section, config))
            make_teacher()
        parts[name] = QualityParts(section, TaskChecks(folder, verify=section.verify), make_teacher)
    return parts


def _teacher_of(name: str, section: QualityConfig, config: RunConfig) -> LiteLLMTeacher:
    if section.teacher:
        try:
            return TypeAdapter(LiteLLMTeacher).validate_python(section.teacher)
        except ValidationError as error:
            problem = error.errors(include_url=False)[0]
            where = ".".join(["serve.quality", name, "teacher", *map(str, problem["loc"])])
            raise ConfigError(f"{where}: {problem['msg']}.") from None
    if isinstance(config.teacher, LiteLLMTeacher):
        return config.teacher
    raise ConfigError(
        f"serve.quality.{name}.on_failure or serve.routing.{name}.to has `teacher`, but the run's "
        f"teacher is of kind {config.teacher.kind!r}, which cannot answer a request. Give "
        f'[serve.quality.{name}.teacher] kind = "litellm" and model = "…", or leave it out.'
    )


@dataclass(frozen=True)
class TaskChecks:
    """The task's parser and schema, then its verifier where the prompt's variables are known."""

    folder: str
    verify: bool

    def __call__(self, text: str, variables: dict[str, Any] | None) -> Refusal | None:
        """Return why the answer does not pass."""
        task = _task(self.folder)
        parsed = task.parse(text)
        if parsed.answer is None:
            return Refusal("form", parsed.problem)
        if self.verify and task.spec.verify and variables is not None:
            score, reason = task.verified(variables, parsed.answer)
            if score < PASSING_SCORE:
                return Refusal("verifier", reason or f"it scores {score:g}")
        return None


@dataclass(frozen=True)
class MakeTeacher:
    """Makes the teacher in the process that will ask it."""

    folder: str
    config: LiteLLMTeacher

    def __call__(self) -> Teacher:
        """Make it; PrerequisiteError without its key, ConfigError without a price."""
        return _StandIn(_task(self.folder), self.config)


class _StandIn:
    """A LiteLLM teacher that answers a request in the student's place."""

    def __init__(self, task: Task, config: LiteLLMTeacher):
        # LiteLLM takes seconds to import: only where a teacher is asked.
        from distill.teach.identity import teacher_name
        from distill.teach.litellm import LiteLLMTeacherRunner

        self.name = teacher_name(config, task)
        self._runner = LiteLLMTeacherRunner(config, task, name=self.name)

    def most_usd(self, messages: list[dict[str, str]]) -> float:
        return self._runner.most_usd({"messages": messages})

    def usd_of(self, *, prompt_tokens: int, completion_tokens: int) -> float:
        return self._runner.usd_of(prompt_tokens=prompt_tokens, completion_tokens=completion_tokens)

    async def ask(self, messages: list[dict[str, str]]) -> TeacherAnswer:
        answer = await self._runner.ask({"messages": messages})
        return TeacherAnswer(
            text=answer.completion,
            prompt_tokens=answer.prompt_tokens,
            completion_tokens=answer.completion_tokens,
            usd=answer.cost_usd,
            error=answer.error,
        )


@cache
def _task(folder: str) -> Task:
    return load_task(Path(folder))
