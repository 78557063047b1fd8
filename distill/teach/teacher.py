"""The one seam between the stage that asks and whoever answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
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
    cached_tokens: int = 0
    """Of the prompt's, those that the provider had kept and charged less for."""
    completion_tokens: int = 0
    latency_s: float = 0.0
    cost_usd: float = 0.0
    requests: int = 1
    """Requests that were answered: two when the first answer was repaired."""
    failure: str = ""
    """What kind of error: the last retry's reason, `refused` or `empty`."""
    retried: tuple[str, ...] = ()
    """The reason of each retry."""

    def with_usage(
        self, *, prompt_tokens: int, cached_tokens: int, completion_tokens: int, cost_usd: float
    ) -> Answer:
        """Return this answer with what the provider counted."""
        return replace(
            self,
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            completion_tokens=completion_tokens,
            cost_usd=cost_usd,
        )

    def followed_by(self, again: Answer, *, kept: Answer) -> Answer:
        """Return `kept`'s text with the tokens, seconds and dollars of both requests."""
        return replace(
            kept,
            prompt_tokens=self.prompt_tokens + again.prompt_tokens,
            cached_tokens=self.cached_tokens + again.cached_tokens,
            completion_tokens=self.completion_tokens + again.completion_tokens,
            latency_s=self.latency_s + again.latency_s,
            cost_usd=self.cost_usd + again.cost_usd,
            requests=self.requests + again.requests,
            retried=self.retried + again.retried,
        )


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


# What only says how fast an answer comes, how often a failure is retried, or who pays.
NEUTRAL = {
    "concurrency", "requests_per_minute", "tokens_per_minute", "timeout_s", "max_retries", "price",
    "api_key_env", "budget_usd", "accept_teacher_terms", "max_failed_fraction", "cache",
}  # fmt: skip


def request_key(row: dict[str, Any], config: AnyTeacher, *, output_digest: str = "") -> str:
    """Digest of everything that can change an answer: prompt, teacher and its parameters.

    `output_digest` stands for the form that is asked for: a model is shown the schema, and an
    answer that does not fit is repaired. A program's answer depends on the variables, a model's
    on the messages alone.
    """
    parameters = config.model_dump(exclude=NEUTRAL)
    asked = [row["messages"], row["variables"], parameters]
    return digest_of([*asked, output_digest] if output_digest else asked)


def build_teacher(config: AnyTeacher, task: Task) -> Teacher:
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
