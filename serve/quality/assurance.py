"""The way of one answer: checked, and where it fails repaired, retried or given by the teacher."""

from __future__ import annotations

import asyncio
import logging
import random
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, replace
from typing import Any, Protocol

from serve.quality.allowance import DailyBudget, Rate
from serve.quality.checks import Given, Refusal, TaskCheck, refusal
from serve.quality.config import QualityConfig
from serve.quota import Spent

log = logging.getLogger("ray.serve")

UNAVAILABLE = "unavailable"
"""The label of a teacher that did not answer."""


@dataclass(frozen=True, slots=True)
class TeacherAnswer:
    """What the teacher said, or `error`."""

    text: str = ""
    prompt_tokens: int = 0
    completion_tokens: int = 0
    usd: float = 0.0
    error: str = ""


class Teacher(Protocol):
    """Whoever answers in the student's place."""

    name: str

    def most_usd(self, messages: list[dict[str, str]]) -> float:
        """Most dollars that an answer can cost."""

    def usd_of(self, *, prompt_tokens: int, completion_tokens: int) -> float:
        """What an answer of so many tokens costs."""

    async def ask(self, messages: list[dict[str, str]]) -> TeacherAnswer:
        """Answer; a failure is an `error`, not an exception."""


class CountTeacher(Protocol):
    """Told what a teacher was paid for a request."""

    def __call__(self, *, tokens: int, usd: float) -> None:
        """Count it."""


def _nobody(*, tokens: int, usd: float) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Attempt:
    """An answer, and the replica's result that it came in."""

    given: Given
    result: Any = None


Ask = Callable[[dict[str, Any]], Awaitable[Attempt]]
"""Ask the student with changes to the request's fields. It may raise: the step then failed."""


@dataclass(frozen=True, slots=True)
class Assured:
    """What the client gets and why."""

    attempt: Attempt
    """The student's answer that is served, or the first one when the teacher's is."""
    answered_by: str = "student"
    """`student`, `repair`, `retry` or `teacher`."""
    reason: str = ""
    """Why the first answer was refused; empty when it passed."""
    passed: bool = True
    """Whether what is served passes."""
    teacher: TeacherAnswer | None = None
    """The teacher's answer, where it is served."""
    refused_text: str | None = None
    """The student's answer that was replaced."""
    steps: tuple[tuple[str, str], ...] = ()
    """Each step that was taken and its outcome: `passed`, a refusal's reason, `no_allowance`,
    `no_budget`, `unavailable`."""


class Assurance:
    """One model's checks, steps and allowances; made once a gateway process."""

    def __init__(
        self,
        config: QualityConfig,
        *,
        budget: DailyBudget,
        task_check: TaskCheck | None = None,
        teacher: Teacher | None = None,
    ):
        self.config = config
        self._task_check = task_check
        self._teacher = teacher
        self._rate = Rate(config.max_teacher_rate, burst=config.teacher_burst)
        self.budget = budget

    @property
    def wants_logprob(self) -> bool:
        """Whether a check reads the mean log-probability."""
        return self.config.min_mean_logprob is not None

    async def check(self, given: Given) -> Refusal | None:
        """Return why an answer is refused, or `None`; the task's check runs beside the loop."""
        self._rate.answered()
        return await self._refusal(given)

    async def teach(
        self,
        messages: list[dict[str, str]],
        *,
        variables: dict[str, Any] | None,
        seconds_left: float,
        on_teacher: CountTeacher = _nobody,
    ) -> tuple[TeacherAnswer | None, str]:
        """Ask the teacher first, within the same rate and budget; its answer and the outcome.

        Only an outcome `passed` may be served; whatever the answer cost is counted.
        """
        answer, outcome = await self._ask_teacher(
            messages, variables, seconds_left=seconds_left, on_teacher=on_teacher
        )
        if outcome == "passed":
            # Of a student's answer it is `check` that says so.
            self._rate.answered()
        return answer, outcome

    async def assure(
        self,
        messages: list[dict[str, str]],
        first: Attempt,
        *,
        ask: Ask,
        route: str = "chat",
        seconds_left: Callable[[], float] = lambda: 120.0,
        on_teacher: CountTeacher = _nobody,
        request_id: str = "",
    ) -> Assured:
        """Check `first` and take the configured steps until an answer passes.

        `messages` are the request's; `ask` reaches the same student again; `seconds_left` says
        how long the client waits yet; `on_teacher` is told what the teacher was paid, whether its
        answer passed, or anybody waited for it, or not. The log has `request_id`.
        """
        refused = await self.check(first.given)
        if refused is None:
            return Assured(first)
        # The detail quotes the answer, and only the request log masks personal data.
        log.info("the answer to %s was refused: %s", request_id, refused.reason)
        taken: list[tuple[str, str]] = []
        for step in self.config.on_failure:
            if step == "teacher":
                answer, outcome = await self._ask_teacher(
                    messages,
                    first.given.variables,
                    seconds_left=seconds_left(),
                    on_teacher=on_teacher,
                )
                attempt = first
            else:
                answer = None
                attempt, outcome = await self._ask_student(
                    step, messages, first, refused, ask=ask, route=route
                )
            taken.append((step, outcome))
            if outcome == "passed":
                return Assured(
                    attempt,
                    answered_by=step,
                    reason=refused.reason,
                    teacher=answer,
                    refused_text=first.given.text,
                    steps=tuple(taken),
                )
        return Assured(first, reason=refused.reason, passed=False, steps=tuple(taken))

    async def _ask_student(
        self,
        step: str,
        messages: list[dict[str, str]],
        first: Attempt,
        refused: Refusal,
        *,
        ask: Ask,
        route: str,
    ) -> tuple[Attempt, str]:
        if step == "repair" and route == "chat":
            changes: dict[str, Any] = {"messages": repair_messages(messages, first, refused)}
        else:
            # A text prompt has no turns to show the answer in: it is sampled once more.
            changes = {
                "temperature": self.config.retry_temperature,
                "seed": random.getrandbits(31),
            }
        try:
            attempt = await ask(changes)
        except Exception as error:
            # The client has an answer already, if not a good one: a failed step costs it nothing.
            log.warning("%s of a refused answer failed: %s", step, error)
            return first, UNAVAILABLE
        attempt = replace(attempt, given=replace(attempt.given, variables=first.given.variables))
        again = await self._refusal(attempt.given)
        return attempt, again.reason if again else "passed"

    async def _ask_teacher(
        self,
        messages: list[dict[str, str]],
        variables: dict[str, Any] | None,
        *,
        seconds_left: float,
        on_teacher: CountTeacher,
    ) -> tuple[TeacherAnswer | None, str]:
        if self._teacher is None:
            return None, UNAVAILABLE
        if not self._rate.take():
            return None, "no_allowance"
        most_usd = self._teacher.most_usd(messages)
        if not self.budget.reserve(most_usd):
            self._rate.give_back()
            return None, "no_budget"
        # A client that leaves, or a deadline, ends the wait while the provider's meter may run on.
        answer = TeacherAnswer(usd=most_usd, error="no answer within the request's deadline")
        try:
            async with asyncio.timeout(seconds_left):
                answer = await self._teacher.ask(messages)
        except TimeoutError:
            pass
        finally:
            tokens = answer.prompt_tokens + answer.completion_tokens
            self.budget.settle(most_usd, Spent(requests=1, tokens=tokens, usd=answer.usd))
            on_teacher(tokens=tokens, usd=answer.usd)
        if answer.error:
            log.warning("the teacher did not answer: %s", answer.error)
            return answer, UNAVAILABLE
        # How sure the student was says nothing about the teacher's answer.
        given = Given(answer.text, variables=variables)
        again = await self._refusal(given)
        return answer, again.reason if again else "passed"

    async def _refusal(self, given: Given) -> Refusal | None:
        try:
            return await asyncio.to_thread(refusal, given, self.config, self._task_check)
        except Exception as error:
            # Where, and not the exception's own words: they may quote the answer.
            log.error(
                "the task's check failed (%s); the answer is taken as it is\n%s",
                type(error).__name__,
                "".join(traceback.format_tb(error.__traceback__)),
            )
            return None


def repair_messages(
    messages: list[dict[str, str]], first: Attempt, refused: Refusal
) -> list[dict[str, str]]:
    """Return the dialogue that shows the student its answer and what is wrong with it."""
    complaint = (
        f"That answer cannot be used: {refused.detail}. Answer the question again, in the "
        "required form and with nothing else."
    )
    return [
        *messages,
        {"role": "assistant", "content": first.given.text},
        {"role": "user", "content": complaint},
    ]
