"""Who a teacher is, and what decides whether two requests are the same one."""

from __future__ import annotations

from typing import Any

from cluster.storage import digest_of
from distill.tasks.task import Task
from distill.teach.config import (
    AnyTeacher,
    LiteLLMTeacher,
    OneTeacher,
    ProgramTeacher,
    SeveralTeachers,
    VLLMTeacher,
)


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
