"""What becomes of a student's answer that fails its checks, by example."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from typing import Any

import pytest

from cluster.storage import Store
from serve.observe import Usage
from serve.quality.allowance import DailyBudget, Rate
from serve.quality.answers import as_events, in_place_of, is_checkable, variables_of
from serve.quality.assurance import Assurance, Assured, Attempt, TeacherAnswer
from serve.quality.checks import Given, Refusal, refusal
from serve.quality.config import QualityConfig
from serve.quality.gate import QualityGate, QualityParts, ReplicaAnswer
from serve.quota import DailyUsage, Spent

QUESTION = [{"role": "user", "content": "Is it a duplicate?"}]
GOOD, BAD = '{"class": "A"}', "I think it is A"


def json_only(text: str, variables: dict[str, Any] | None) -> Refusal | None:
    try:
        json.loads(text)
    except ValueError:
        return Refusal("form", "not JSON")
    return None


class Frontier:
    """A teacher with a script."""

    name = "litellm:frontier"

    def __init__(self, *answers: TeacherAnswer, wait_s: float = 0.0):
        self.answers = list(answers)
        self.wait_s = wait_s
        self.asked: list[Any] = []

    def most_usd(self, messages: list[dict[str, str]]) -> float:
        return 0.05

    def usd_of(self, *, prompt_tokens: int, completion_tokens: int) -> float:
        return (prompt_tokens + completion_tokens) / 1000

    async def ask(self, messages: list[dict[str, str]]) -> TeacherAnswer:
        self.asked.append(messages)
        await asyncio.sleep(self.wait_s)
        return self.answers.pop(0)


def paid(text: str, usd: float = 0.02) -> TeacherAnswer:
    return TeacherAnswer(text, prompt_tokens=10, completion_tokens=5, usd=usd)


@pytest.fixture
def usage(tmp_path) -> DailyUsage:
    return DailyUsage(Store(str(tmp_path)))


def assurance(
    usage: DailyUsage, teacher: Frontier | None = None, check: Any = json_only, **fields: Any
) -> Assurance:
    config = QualityConfig(**fields)
    budget = DailyBudget(config.usd_per_day or 0.0, usage=usage, account="reconcile")
    return Assurance(config, budget=budget, task_check=check, teacher=teacher)


def assure(of: Assurance, text: str, *later: str | Exception, **given: Any) -> tuple[Assured, list]:
    """One answer's way; `later` are what the student says when it is asked again."""
    replies = list(later)
    changes: list[dict[str, Any]] = []

    async def ask(changed: dict[str, Any]) -> Attempt:
        changes.append(changed)
        reply = replies.pop(0)
        if isinstance(reply, Exception):
            raise reply
        return Attempt(Given(reply), result=reply)

    first = Attempt(Given(text, **given), result=text)
    seconds_left: Callable[[], float] = lambda: 1.0  # noqa: E731
    return (
        asyncio.run(of.assure(QUESTION, first, ask=ask, seconds_left=seconds_left)),
        changes,
    )


def test_an_answer_that_passes_is_served_as_it_is(usage):
    assured, asked = assure(assurance(usage, on_failure=["repair", "retry"]), GOOD)
    assert (assured.answered_by, assured.reason, assured.steps) == ("student", "", ())
    assert not asked


def test_a_repair_shows_the_student_its_answer_and_what_is_wrong(usage):
    assured, (changed,) = assure(assurance(usage, on_failure=["repair"]), BAD, GOOD)
    assert (assured.answered_by, assured.reason, assured.refused_text) == ("repair", "form", BAD)
    assert assured.attempt.result == GOOD
    said, complaint = changed["messages"][1:]
    assert said == {"role": "assistant", "content": BAD}
    assert "not JSON" in complaint["content"]


def test_what_is_said_of_an_answer_stays_out_of_the_servers_log(usage, caplog):
    def quotes(text: str, variables: dict[str, Any] | None) -> Refusal | None:
        if text.startswith("Yours"):
            raise ValueError(text)
        return None if text == GOOD else Refusal("form", "'jane@example.com' is no class")

    caplog.set_level("INFO", logger="ray.serve")
    of = assurance(usage, check=quotes, on_failure=["repair"])
    first = Attempt(Given("jane@example.com"))
    complaints: list[str] = []

    async def ask(changed: dict[str, Any]) -> Attempt:
        complaints.append(changed["messages"][-1]["content"])
        return Attempt(Given("Yours, jane@example.com"))

    asyncio.run(of.assure(QUESTION, first, ask=ask, request_id="order-17"))
    assert "jane@example.com" in complaints[0]
    assert "jane@example.com" not in caplog.text
    assert "the answer to order-17 was refused: form" in caplog.text
    # Where the check broke is told all the same.
    assert "the task's check failed (ValueError)" in caplog.text
    assert "in quotes" in caplog.text


def test_a_retry_is_sampled_and_only_the_first_that_passes_counts(usage):
    of = assurance(usage, on_failure=["repair", "retry"], retry_temperature=0.9)
    assured, (_, retried) = assure(of, BAD, "still prose", GOOD)
    assert assured.steps == (("repair", "form"), ("retry", "passed"))
    assert retried["temperature"] == 0.9


def test_the_teacher_answers_when_the_student_cannot(usage):
    teacher = Frontier(paid(GOOD))
    of = assurance(usage, teacher, on_failure=["retry", "teacher"], usd_per_day=1.0)
    assured, _ = assure(of, BAD, "again prose")
    assert assured.answered_by == "teacher"
    assert assured.teacher is not None
    assert assured.teacher.text == GOOD
    assert assured.refused_text == BAD
    assert of.budget.spent_usd == pytest.approx(0.02)
    assert teacher.asked == [QUESTION]


def test_a_teacher_that_is_wrong_too_is_paid_and_not_served(usage):
    of = assurance(usage, Frontier(paid(BAD)), on_failure=["teacher"], usd_per_day=1.0)
    assured, _ = assure(of, BAD)
    assert (assured.passed, assured.answered_by, assured.teacher) == (False, "student", None)
    assert assured.steps == (("teacher", "form"),)
    assert of.budget.spent_usd == pytest.approx(0.02)


def test_the_days_dollars_are_never_passed_even_by_requests_at_the_same_time(usage):
    teacher = Frontier(*[paid(GOOD, usd=0.05)] * 50, wait_s=0.01)
    of = assurance(
        usage, teacher, on_failure=["teacher"], usd_per_day=0.5, max_teacher_rate=1.0,
        teacher_burst=100,
    )  # fmt: skip

    async def nobody(changes: dict[str, Any]) -> Attempt:
        raise AssertionError

    async def all_at_once() -> list[Assured]:
        first = Attempt(Given(BAD))
        return await asyncio.gather(*(of.assure(QUESTION, first, ask=nobody) for _ in range(50)))

    outcomes = [assured.steps[0][1] for assured in asyncio.run(all_at_once())]
    assert outcomes.count("passed") == len(teacher.asked) == 10
    assert outcomes.count("no_budget") == 40
    assert of.budget.spent_usd == pytest.approx(0.5)


def test_what_was_spent_today_survives_the_gateway(usage, tmp_path):
    usage.add("reconcile", Spent(usd=0.97))
    asyncio.run(usage.sync())
    reborn = DailyUsage(Store(str(tmp_path)))
    asyncio.run(reborn.sync())
    of = assurance(reborn, Frontier(paid(GOOD)), on_failure=["teacher"], usd_per_day=1.0)
    assured, _ = assure(of, BAD)
    assert assured.steps == (("teacher", "no_budget"),)


def test_a_new_day_has_its_own_dollars(tmp_path):
    clock = [1_000_000.0]
    usage = DailyUsage(Store(str(tmp_path)), now=lambda: clock[0])
    budget = DailyBudget(1.0, usage=usage, account="reconcile")
    assert budget.reserve(0.9)
    budget.settle(0.9, Spent(usd=0.9))
    assert not budget.reserve(0.2)
    clock[0] += 86_400
    assert budget.reserve(0.2)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.5])
def test_the_teachers_share_of_all_answers_is_bounded(share):
    rate = Rate(share, burst=5)
    taken = 0
    for answers in range(1, 2001):
        rate.answered()
        taken += rate.take()
        assert taken <= share * answers + (5 if share else 0)
    assert taken >= share * 2000 - 1


def test_a_teacher_that_is_down_or_slow_costs_no_answer(usage):
    down = Frontier(TeacherAnswer(error="APIConnectionError: refused"))
    of = assurance(usage, down, on_failure=["teacher"], usd_per_day=1.0)
    assured, _ = assure(of, BAD)
    assert (assured.passed, assured.steps) == (False, (("teacher", "unavailable"),))
    assert of.budget.spent_usd == 0
    slow = Frontier(paid(GOOD), wait_s=30)
    of = assurance(usage, slow, on_failure=["teacher"], usd_per_day=1.0)
    assured, _ = assure(of, BAD)
    assert assured.steps == (("teacher", "unavailable"),)
    # The provider may charge for what nobody waited for.
    assert of.budget.spent_usd == pytest.approx(0.05)


@pytest.mark.parametrize("first", ["student", "teacher"])
def test_a_client_that_leaves_during_the_teachers_answer_pays_for_it(tmp_path, first):
    section = QualityConfig(on_failure=["teacher"], usd_per_day=1.0, max_teacher_rate=1.0)
    parts = QualityParts(section, json_only, lambda: Frontier(paid(GOOD), wait_s=30))
    paid_usd: list[float] = []

    def on_teacher(*, tokens: int, usd: float) -> None:
        paid_usd.append(usd)

    async def leave() -> None:
        gate = QualityGate({"reconcile": parts}, state=Store(str(tmp_path)))
        labels = {"adapter": "reconcile", "version": "v1", "route": "chat"}
        asked: Any = (labels, "chat", {"messages": QUESTION})
        if first == "teacher":
            way: Any = gate.taught(*asked, request_id="r", seconds_left=60.0, on_teacher=on_teacher)
        else:
            way = gate.checked(
                *asked, ReplicaAnswer(b"{}", Usage(text=BAD)), ask=None, request_id="r",
                seconds_left=lambda: 60.0, on_teacher=on_teacher,
            )  # fmt: skip
        async with asyncio.timeout(0.1):
            await way

    with pytest.raises(TimeoutError):
        asyncio.run(leave())
    # The provider's meter runs on: the most that the answer can cost.
    assert paid_usd == [0.05]


def test_a_replica_that_fails_at_a_retry_leaves_the_first_answer(usage):
    assured, _ = assure(assurance(usage, on_failure=["retry"]), BAD, RuntimeError("replica died"))
    assert (assured.passed, assured.attempt.result) == (False, BAD)
    assert assured.steps == (("retry", "unavailable"),)


def test_a_broken_check_refuses_nothing(usage):
    def broken(text: str, variables: dict[str, Any] | None) -> Refusal | None:
        raise KeyError("typo")

    assured, _ = assure(assurance(usage, check=broken, on_failure=["retry"]), BAD)
    assert assured.passed


@pytest.mark.parametrize(
    ("given", "fields", "reason"),
    [
        (Given(GOOD, "length"), {}, "truncated"),
        (Given(GOOD, "length"), {"allow_truncated": True}, None),
        (Given("  "), {}, "length"),
        (Given(GOOD), {"max_chars": 5}, "length"),
        (Given(GOOD, mean_logprob=-0.9), {"min_mean_logprob": -0.5}, "confidence"),
        (Given(GOOD, mean_logprob=-0.1), {"min_mean_logprob": -0.5}, None),
        (Given(GOOD), {"min_mean_logprob": -0.5}, None),
        (Given(BAD), {}, "form"),
    ],
)
def test_checks_have_reasons(given, fields, reason):
    found = refusal(given, QualityConfig(**fields), json_only)
    assert (found.reason if found else None) == reason


def test_a_teacher_without_a_budget_is_refused_as_configuration():
    with pytest.raises(ValueError, match="usd_per_day"):
        QualityConfig(on_failure=["teacher"])


@pytest.mark.parametrize(
    ("route", "payload", "checkable"),
    [
        ("chat", {"messages": QUESTION}, True),
        ("chat", {"messages": QUESTION, "n": 2}, False),
        ("chat", {"messages": QUESTION, "tools": [{"type": "function"}]}, False),
        ("completions", {"prompt": "1 + 1 ="}, True),
        ("completions", {"prompt": ["a", "b"]}, False),
        ("completions", {"prompt": "1 + 1 =", "echo": True}, False),
    ],
)
def test_only_single_answers_in_text_are_checked(route, payload, checkable):
    assert is_checkable(route, payload) is checkable


def test_variables_come_as_openais_metadata():
    assert variables_of({"metadata": {"variables": '{"id": 7}'}}) == {"id": 7}
    for metadata in (None, "x", {}, {"variables": "not JSON"}, {"variables": "[1]"}):
        assert variables_of({"metadata": metadata}) is None


CHAT = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 1,
    "model": "reconcile@v3",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": BAD, "tool_calls": []},
            "logprobs": None,
            "finish_reason": "length",
        }
    ],
    "usage": {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15},
}


def test_the_teachers_words_take_the_students_place():
    body = json.loads(
        in_place_of(json.dumps(CHAT).encode(), "chat", paid(GOOD), model="litellm:frontier")
    )
    (choice,) = body["choices"]
    assert (choice["message"]["content"], choice["finish_reason"]) == (GOOD, "stop")
    assert (body["model"], body["usage"]["total_tokens"]) == ("litellm:frontier", 15)


def test_a_held_stream_is_a_stream_to_the_client():
    asked = {"stream_options": {"include_usage": True}}
    lines = as_events(json.dumps(CHAT).encode(), "chat", asked).decode().split("\n\n")
    assert lines[-2:] == ["data: [DONE]", ""]
    first, last, usage = (json.loads(line.removeprefix("data: ")) for line in lines[:-2])
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": BAD}
    assert last["choices"][0]["finish_reason"] == "length"
    assert usage["usage"] == CHAT["usage"]
    assert {part["object"] for part in (first, last, usage)} == {"chat.completion.chunk"}


def test_an_answer_of_several_choices_counts_as_unchecked_when_it_was_streamed(tmp_path):
    parts = QualityParts(QualityConfig(hold_streams=False), json_only)
    gate = QualityGate({"reconcile": parts}, state=Store(str(tmp_path)))
    labels = {"adapter": "reconcile", "version": "v1", "route": "chat"}

    def look(**fields: Any) -> Any:
        payload = {"messages": QUESTION, **fields}
        return asyncio.run(gate.looked_at(labels, "chat", payload, Usage(text=BAD)))

    assert look().quality == "form"
    assert look(n=2) is None
    assert look(tools=[{"type": "function"}]) is None
