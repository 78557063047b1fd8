"""The gateway's side of the checks: which requests are checked, what the client and the log get."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from cluster.storage import Store
from serve.errors import refused_answer
from serve.live import LiveFigures
from serve.observe import MAX_LOGGED_CHARS, Usage
from serve.quality.allowance import DailyBudget
from serve.quality.answers import (
    body_of,
    in_place_of,
    is_checkable,
    text_of,
    unstreamed,
    variables_of,
)
from serve.quality.assurance import (
    UNAVAILABLE,
    Assurance,
    Assured,
    Attempt,
    CountTeacher,
    Teacher,
    TeacherAnswer,
)
from serve.quality.checks import Given, TaskCheck
from serve.quality.config import QualityConfig
from serve.quality.metrics import QualityMetrics
from serve.quota import DailyUsage
from serve.requests import prompt_messages

ANSWERED_BY_HEADER = "x-distillery-answered-by"
QUALITY_HEADER = "x-distillery-quality"
SYNC_S = 2.0
"""How often the dollars spent are written: a killed gateway forgets at most so much of them."""


@dataclass(frozen=True)
class QualityParts:
    """What `jobs` brings for one model name: it knows tasks and teachers, serving does not."""

    config: QualityConfig
    task_check: TaskCheck | None = None
    make_teacher: Callable[[], Teacher] | None = None
    """Called once in the gateway's process; it may import much and look for a key."""


@dataclass(frozen=True, slots=True)
class ReplicaAnswer:
    """A replica's response body and what it cost."""

    content: bytes
    usage: Usage


AskReplica = Callable[[dict[str, Any]], Awaitable[ReplicaAnswer]]


@dataclass(frozen=True, slots=True)
class Checked:
    """An answer on its way to the client."""

    content: bytes
    usage: Usage
    quality: str | None = None
    """`passed`, why the first answer was refused, or `None` when nobody looked."""
    answered_by: str = "student"
    refused_text: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    @property
    def is_pair(self) -> bool:
        """Whether it replaced another answer: material for the next training."""
        return self.refused_text is not None

    @property
    def log_fields(self) -> dict[str, Any]:
        """Columns of the request log."""
        return {
            "mean_logprob": self.usage.mean_logprob,
            "quality": self.quality,
            "answered_by": self.answered_by,
            "refused_completion": self.refused_text,
        }


class QualityGate:
    """The assurances of all models; made once a gateway process, blocking.

    `state` keeps what the teacher cost each day, across restarts.
    """

    def __init__(
        self, parts: Mapping[str, QualityParts], *, state: Store, live: LiveFigures | None = None
    ):
        self._metrics = QualityMetrics(live or LiveFigures()) if parts else None
        self._usage = DailyUsage(state)
        self._following: asyncio.Task[None] | None = None
        self._assurances: dict[str, Assurance] = {}
        self._teachers: dict[str, Teacher] = {}
        for name, of in parts.items():
            teacher = of.make_teacher() if of.make_teacher else None
            self._assurances[name] = Assurance(
                of.config,
                budget=DailyBudget(of.config.usd_per_day or 0.0, usage=self._usage, account=name),
                task_check=of.task_check,
                teacher=teacher,
            )
            if teacher is not None:
                self._teachers[name] = teacher

    async def start(self) -> None:
        """Read what was spent today, then keep it written."""
        if self._teachers:
            await self._usage.sync()
            self._following = asyncio.create_task(self._follow())

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(SYNC_S)
            await self._usage.sync()

    async def close(self) -> None:
        """Write what was spent and stop."""
        if self._following is not None:
            self._following.cancel()
            await self._usage.sync()

    def wants_logprob(self, adapter: str) -> bool:
        """Whether a check of this model reads the mean log-probability."""
        assurance = self._assurances.get(adapter)
        return assurance is not None and assurance.wants_logprob

    def holds(self, adapter: str, route: str, payload: dict[str, Any]) -> bool:
        """Whether a streamed request is answered whole, checked, and then sent as events."""
        assurance = self._assurances.get(adapter)
        return (
            assurance is not None and assurance.config.hold_streams and is_checkable(route, payload)
        )

    async def checked(
        self,
        labels: dict[str, str],
        route: str,
        payload: dict[str, Any],
        first: ReplicaAnswer,
        *,
        request_id: str,
        ask: AskReplica,
        seconds_left: Callable[[], float],
        on_teacher: CountTeacher,
    ) -> Checked:
        """Check a replica's answer and take the model's steps if it fails.

        `on_teacher` is told what the teacher was paid, if it was asked. ApiError (502) when nothing
        passes and the model is to refuse then.
        """
        assurance = self._assurances.get(labels["adapter"])
        if assurance is None or not is_checkable(route, payload):
            return Checked(first.content, first.usage)
        variables = variables_of(payload)

        async def again(changes: dict[str, Any]) -> Attempt:
            answer = await ask(unstreamed(payload) | changes)
            return Attempt(given_of(answer, route), result=answer)

        given = replace(given_of(first, route), variables=variables)
        assured = await assurance.assure(
            prompt_messages(payload),
            Attempt(given, result=first),
            ask=again,
            route=route,
            seconds_left=seconds_left,
            on_teacher=self._paid(labels["adapter"], on_teacher),
            request_id=request_id,
        )
        self._count(labels, assured)
        if not assured.passed and assurance.config.otherwise == "refuse":
            raise refused_answer(assured.reason)
        return self._served(labels["adapter"], route, assured)

    async def taught(
        self,
        labels: dict[str, str],
        route: str,
        payload: dict[str, Any],
        *,
        request_id: str,
        seconds_left: float,
        on_teacher: CountTeacher,
    ) -> tuple[Checked | None, str]:
        """Have the teacher answer before any student is asked, where it may.

        Returns the answer, or `None` and why there is none: `several_answers`, `no_allowance`,
        `no_budget`, `unavailable`, or the check that the teacher's answer failed.
        """
        if not is_checkable(route, payload):
            return None, "several_answers"
        adapter = labels["adapter"]
        assurance = self._assurances.get(adapter)
        if assurance is None:
            return None, UNAVAILABLE
        answer, outcome = await assurance.teach(
            prompt_messages(payload),
            variables=variables_of(payload),
            seconds_left=seconds_left,
            on_teacher=self._paid(adapter, on_teacher),
        )
        if answer is None or outcome != "passed":
            return None, outcome
        name = self._teachers[adapter].name
        return Checked(
            body_of(route, answer, model=name, request_id=request_id),
            usage_of(answer),
            quality=outcome,
            answered_by="teacher",
            headers={ANSWERED_BY_HEADER: "teacher", QUALITY_HEADER: outcome},
        ), outcome

    async def looked_at(
        self, labels: dict[str, str], route: str, payload: dict[str, Any], usage: Usage
    ) -> Checked | None:
        """Check an answer that nobody can replace any more: it is counted and logged."""
        assurance = self._assurances.get(labels["adapter"])
        if assurance is None or not is_checkable(route, payload):
            return None
        given = Given(
            usage.text, usage.finish_reason, usage.mean_logprob, variables=variables_of(payload)
        )
        refused = await assurance.check(given)
        outcome = refused.reason if refused else "passed"
        assert self._metrics is not None
        self._metrics.checked(labels, outcome)
        return Checked(b"", usage, quality=outcome)

    def _paid(self, adapter: str, on_teacher: CountTeacher) -> CountTeacher:
        """Have the metrics told what the caller is told."""
        metrics = self._metrics
        assert metrics is not None

        def count(*, tokens: int, usd: float) -> None:
            metrics.spent(adapter, usd)
            on_teacher(tokens=tokens, usd=usd)

        return count

    def _served(self, adapter: str, route: str, assured: Assured) -> Checked:
        answer: ReplicaAnswer = assured.attempt.result
        content, usage = answer.content, answer.usage
        if assured.teacher is not None:
            name = self._teachers[adapter].name
            content = in_place_of(content, route, assured.teacher, model=name)
            usage = usage_of(assured.teacher)
        quality = assured.reason or "passed"
        return Checked(
            content,
            usage,
            quality=quality,
            answered_by=assured.answered_by,
            refused_text=assured.refused_text,
            headers={
                ANSWERED_BY_HEADER: assured.answered_by,
                QUALITY_HEADER: quality if assured.passed else f"failed; {quality}",
            },
        )

    def _count(self, labels: dict[str, str], assured: Assured) -> None:
        assert self._metrics is not None
        adapter = labels["adapter"]
        self._metrics.checked(labels, assured.reason or "passed")
        for step, outcome in assured.steps:
            self._metrics.step(labels, step=step, outcome=outcome)
        if assured.reason:
            self._metrics.fell_back(
                labels,
                reason=assured.reason,
                answered_by=assured.answered_by if assured.passed else "nobody",
            )
        teacher = self._teachers.get(adapter)
        if teacher is not None and assured.teacher is None:
            usage: Usage = assured.attempt.result.usage
            saved = teacher.usd_of(
                prompt_tokens=usage.prompt_tokens, completion_tokens=usage.completion_tokens
            )
            self._metrics.saved(adapter, saved)


def usage_of(answer: TeacherAnswer) -> Usage:
    """Return what the teacher says its answer was."""
    return Usage(
        prompt_tokens=answer.prompt_tokens,
        completion_tokens=answer.completion_tokens,
        text=answer.text,
        finish_reason="stop",
    )


def given_of(answer: ReplicaAnswer, route: str) -> Given:
    """Return a replica's answer as the checks see it."""
    usage = answer.usage
    # The usage keeps no more text than the log shows.
    whole = len(usage.text) < MAX_LOGGED_CHARS
    text = usage.text if whole else text_of(answer.content, route)
    return Given(text, usage.finish_reason, usage.mean_logprob)
