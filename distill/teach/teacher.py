"""The one seam between the stage that asks and whoever answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Protocol

from cluster.storage import digest_of
from distill.tasks.task import Task
from distill.teach.config import (
    AnyTeacher,
    LiteLLMTeacher,
    OneTeacher,
    ProgramTeacher,
    ReplayTeacher,
    SeveralTeachers,
    VLLMTeacher,
)


@dataclass(frozen=True)
class Answer:
    """One answer, or the error that stands in its place."""

    completion: str = ""
    rationale: str = ""
    """Reasoning that came before the answer, where it was asked for."""
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


def journal_row(row: dict[str, Any], answer: Answer, *, teacher: str, payer: str) -> dict[str, Any]:
    """Return the journal's line of an answer to a request.

    `payer` is the run that pays for it; a row that is no request for an answer has its `stage`.
    """
    return {
        "request_key": row["request_key"],
        "example_id": row["example_id"],
        "teacher": teacher,
        "payer": payer,
        "stage": row.get("stage", "answers"),
        **asdict(answer),
    }


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
    if isinstance(config, SeveralTeachers):
        names = ", ".join(teacher_name(member, task) for member in config.members)
        return f"{config.combine.replace('_', '-')}({names})"
    if isinstance(config, ProgramTeacher):
        return f"program:{task.name}/{config.function}"
    if isinstance(config, (LiteLLMTeacher, VLLMTeacher)):
        return f"{config.kind}:{config.model}"
    return f"replay:{config.file}"


# What only says how fast an answer comes, how often a failure is retried, or who pays.
NEUTRAL = {
    "concurrency", "requests_per_minute", "tokens_per_minute", "timeout_s", "max_retries", "price",
    "api_key_env", "budget_usd", "accept_teacher_terms", "max_failed_fraction", "cache",
    "replicas", "batch_size",
}  # fmt: skip


def parameters(config: AnyTeacher) -> dict[str, Any]:
    """The settings of a teacher that can change an answer."""
    found = config.model_dump(mode="json", exclude=NEUTRAL)
    if isinstance(config, SeveralTeachers):
        found["members"] = [parameters(member) for member in config.members]
    return found


def request_key(
    row: dict[str, Any], config: OneTeacher, *, output_digest: str = "", sample: int = 0
) -> str:
    """Digest of everything that can change an answer: prompt, teacher and its parameters.

    `output_digest` stands for the form that is asked for: a model is shown the schema, and an
    answer that does not fit is repaired. `sample` tells several answers of one model apart.
    """
    asked_with = parameters(config)
    # How many samples are taken changes none of them.
    asked_with.pop("samples", None)
    if not asked_with.get("reasoning"):
        asked_with.pop("reasoning", None)
    asked = [row["messages"], row["variables"], asked_with]
    if output_digest:
        asked.append(output_digest)
    return digest_of([*asked, sample] if sample else asked)


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
