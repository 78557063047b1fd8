"""Fallback, routing, canaries, shadows and the admin API on a real engine, with a real teacher."""

from __future__ import annotations

from typing import Any

import httpx
import pytest
from deployment import QUESTION, RIGHT, Served
from routing import EASY, HARD

pytestmark = [pytest.mark.ray, pytest.mark.model]


def test_an_answer_that_fails_its_checks_is_the_teachers(served: Served) -> None:
    answer = served.ask("reconcile")
    assert answer.status_code == 200
    assert answer.headers["x-distillery-answered-by"] == "teacher"
    assert answer.headers["x-distillery-quality"] == "form"
    assert answer.headers["x-distillery-model"] == "reconcile@v1"
    body = answer.json()
    assert body["choices"][0]["message"]["content"] == RIGHT
    assert body["model"] == "litellm:openai/frontier"
    assert served.teacher.requests[-1]["messages"] == QUESTION


def test_a_stream_is_checked_before_its_first_event(served: Served) -> None:
    stream = served.openai.chat.completions.create(
        model="reconcile",
        messages=QUESTION,
        max_tokens=4,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    assert "".join(c.choices[0].delta.content or "" for c in chunks if c.choices) == RIGHT
    assert chunks[-1].usage.completion_tokens == len(RIGHT.split())


def test_a_model_without_checks_is_answered_as_ever(served: Served) -> None:
    answer = served.ask("plain")
    assert answer.status_code == 200
    assert "x-distillery-quality" not in answer.headers
    assert served.ask("tiny-llama").status_code == 200


def test_a_hard_prompt_goes_to_the_other_adapter_and_an_easy_one_stays(served: Served) -> None:
    easy, hard = (served.ask("routed", messages=messages) for messages in (EASY, HARD))
    assert "x-distillery-routed" not in easy.headers
    assert easy.headers["x-distillery-model"] == "routed@v1"
    assert hard.headers["x-distillery-routed"] == "difficulty"
    assert hard.headers["x-distillery-model"] == "plain@v1"
    asked = served.ask("plain", messages=HARD)
    assert hard.json()["choices"][0]["message"] == asked.json()["choices"][0]["message"]
    # Who names a version gets it, however hard the prompt is.
    named = served.ask("routed@v2", messages=HARD)
    assert named.headers["x-distillery-model"] == "routed@v2"

    def logged() -> list[dict[str, Any]]:
        return [row for row in served.logged() if row["difficulty"] is not None]

    served.wait_for(lambda: len(logged()) >= 2)
    by_prompt = {row["routed_to"]: row["difficulty"] for row in logged()}
    assert by_prompt[None] < 0.25 <= by_prompt["plain@v1"]


def test_once_the_days_dollars_are_spent_the_students_answer_is_served_and_marked(served: Served):
    asked = len(served.teacher.requests)
    answers = [served.ask("thrifty") for _ in range(20)]
    last = answers[-1].headers
    assert last["x-distillery-answered-by"] == "student"
    assert last["x-distillery-quality"] == "failed; form"
    assert 0 < len(served.teacher.requests) - asked < 20
    spent = served.registry.store / ".teacher-usage"
    served.wait_for(lambda: spent.exists() and spent.names())


def test_what_was_replaced_is_kept_for_retraining(served: Served) -> None:
    def pairs() -> list[dict[str, Any]]:
        return [row for row in served.logged() if row["refused_completion"] is not None]

    served.wait_for(pairs)
    row = pairs()[0]
    assert (row["completion"], row["answered_by"], row["quality"]) == (RIGHT, "teacher", "form")
    assert row["refused_completion"] != RIGHT
    asked = [r for r in served.logged() if r["answered_by"] == "student"]
    assert all(r["mean_logprob"] < 0 for r in asked if r["quality"])


def test_checks_and_fallbacks_are_counted(served: Served, ray_runtime: Any) -> None:
    def metrics() -> str:
        return httpx.get(f"http://127.0.0.1:{ray_runtime.metrics_port}/metrics").text

    for told in (
        "ray_distillery_fallbacks_total",
        'answered_by="teacher"',
        'answered_by="nobody"',
        "ray_distillery_teacher_usd_total",
    ):
        served.wait_for(lambda told=told: told in metrics())


def test_a_canary_within_its_bounds_is_promoted_and_the_old_version_leaves_memory(served: Served):
    bounds = {"min_samples": 20, "max_p90_ratio": 50.0, "max_more_errors": 0.5,
              "max_more_refused": 0.5, "max_more_fallbacks": 0.5}  # fmt: skip
    begun = served.act("canary", name="plain", version=2, weight=0.5, bounds=bounds)
    assert begun.status_code == 200, begun.text
    served.wait_for(lambda: served.status()["serving"]["splits"])
    seen = set()
    for number in range(400):
        answer = served.ask("plain", user=f"user-{number}", max_tokens=1)
        assert answer.status_code == 200
        seen.add(answer.headers["x-distillery-model"])
        if served.registry.aliases("plain")["prod"] == 2:
            break
    assert seen == {"plain@v1", "plain@v2"}
    move = served.registry.history("plain", "prod")[-1]
    assert (move["action"], move["version"], move["by"]) == ("promote", 2, "gateway")
    assert move["figures"]["requests"] >= 20
    served.wait_for(lambda: not any("plain@v1" in held for held in served.status()["resident"]))
    assert served.ask("plain").headers["x-distillery-model"] == "plain@v2"


def test_a_canary_out_of_its_bounds_is_rolled_back(served: Served) -> None:
    # No version is a hundred times as fast as the other.
    bounds = {"min_samples": 20, "max_p90_ratio": 0.01}
    served.act("canary", name="plain", version=1, weight=0.5, bounds=bounds)
    served.wait_for(lambda: served.status()["serving"]["splits"])
    for number in range(400):
        assert served.ask("plain", user=f"user-{number}", max_tokens=1).status_code == 200
        if not served.registry.splits("plain"):
            break
    move = served.registry.history("plain", "prod")[-1]
    assert (move["action"], move["by"]) == ("end-canary", "gateway")
    assert "slow" in move["figures"]["reason"]
    assert served.ask("plain").headers["x-distillery-model"] == "plain@v2"


def test_in_an_ab_test_a_user_stays_with_one_version(served: Served) -> None:
    served.act("canary", name="plain", version=1, mode="ab", weight=0.5)
    served.wait_for(lambda: served.status()["serving"]["splits"])
    by_user = {
        user: {served.ask("plain", user=user, max_tokens=1).headers["x-distillery-model"]
               for _ in range(4)}
        for user in map(str, range(12))
    }  # fmt: skip
    assert all(len(versions) == 1 for versions in by_user.values())
    assert {v for versions in by_user.values() for v in versions} == {"plain@v1", "plain@v2"}
    assert served.act("end", name="plain").status_code == 200
    served.wait_for(lambda: not served.status()["serving"]["splits"])


def test_a_shadow_answers_and_nobody_sees_it(served: Served) -> None:
    served.act("canary", name="plain", version=1, mode="shadow", weight=1.0)
    served.wait_for(lambda: served.status()["serving"]["splits"])
    answers = {served.ask("plain").headers["x-distillery-model"] for _ in range(10)}
    assert answers == {"plain@v2"}
    served.wait_for(lambda: served.status()["splits"]["plain"]["requests"] >= 1)

    def shadows() -> list[dict[str, Any]]:
        return [row for row in served.logged() if row["route"] == "shadow"]

    served.wait_for(shadows)
    assert {row["model_answered"] for row in shadows()} == {"plain@v1"}
    served.act("end", name="plain")
    served.wait_for(lambda: not served.status()["serving"]["splits"])


def test_a_pinned_version_stays_and_an_unloaded_one_goes(served: Served) -> None:
    assert served.act("pin", name="plain", version=1).json()["result"] == [1]
    served.wait_for(lambda: all("plain@v1" in held for held in served.status()["resident"]))
    assert served.act("unpin", name="plain", version=1).json()["result"] == []
    assert served.act("unload", name="plain", version=1).json()["result"] == 1
    assert not any("plain@v1" in held for held in served.status()["resident"])
    assert served.ask("plain@v1").status_code == 200


@pytest.mark.parametrize(
    ("action", "body", "status"),
    [
        ("promote", {"name": "plain", "version": 9}, 409),
        ("promote", {"name": "../etc", "version": 1}, 409),
        ("promote", {"name": "plain"}, 400),
        ("promote", {"name": "plain", "versoin": 1}, 400),
        ("canary", {"name": "plain", "version": 2}, 409),
        ("end", {"name": "plain"}, 409),
        ("explode", {"name": "plain"}, 404),
    ],
)
def test_what_cannot_be_done_is_said(served: Served, action, body, status) -> None:
    answer = served.act(action, **body)
    assert (answer.status_code, "Traceback" in answer.text) == (status, False)
    assert answer.json()["error"]["message"]
