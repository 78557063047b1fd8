"""Hard prompts on their way through the gateway: who answers, what is said, counted and logged."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import pytest
from gateway_path import BAD, GOOD, Frontier, Served
from routing import EASY, HARD, predictor_of

from cluster.difficulty import Predictor
from cluster.errors import ConfigError
from cluster.registry import Split
from serve.config import ServeConfig
from serve.errors import not_ready, refused_model
from serve.request_log import SCHEMA
from serve.routes import Alias


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return predictor_of("reconcile", base_model="tiny")


def test_a_hard_prompt_goes_to_the_larger_adapter_and_an_easy_one_stays(tmp_path, predictor):
    served = Served(tmp_path, predictor, "large")
    easy, hard = served.ask(EASY), served.ask(HARD)
    assert "x-distillery-routed" not in easy.headers
    assert easy.headers["x-distillery-model"] == "reconcile@v1"
    assert hard.headers["x-distillery-routed"] == "difficulty"
    assert hard.headers["x-distillery-model"] == "large@v1"
    assert served.counted == [("student", "easy"), ("large", "hard")]
    first, second = served.kept.rows
    assert (first["routed_to"], second["routed_to"]) == (None, "large@v1")
    assert first["difficulty"] == predictor.probability(EASY) < 0.25
    assert second["difficulty"] == predictor.probability(HARD) >= 0.25
    assert set(second) <= set(SCHEMA.names)


def test_it_streams_from_there(tmp_path, predictor):
    served = Served(tmp_path, predictor, "large@v1")
    answer = served.ask(HARD, stream=True)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.headers["x-distillery-routed"] == "difficulty"
    assert served.replicas.asked == ["large@v1"]


def test_a_stream_whose_client_leaves_before_it_begins_is_over(tmp_path, predictor):
    served = Served(tmp_path, predictor, "large")
    body = json.dumps({"model": "reconcile", "messages": EASY, "stream": True}).encode()
    scope = {
        "type": "http", "method": "POST", "path": "/chat", "query_string": b"", "headers": [],
        "asgi": {"version": "3.0", "spec_version": "2.4"},
    }  # fmt: skip

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": body}

    async def send(message: Any) -> None:
        raise asyncio.CancelledError

    async def leave() -> None:
        with pytest.raises(asyncio.CancelledError):
            await served.app(scope, receive, send)
        await asyncio.sleep(0.01)

    asyncio.run(leave())
    assert [row["status"] for row in served.kept.rows] == [499]


def test_a_client_that_names_a_version_gets_it(tmp_path, predictor):
    served = Served(tmp_path, predictor, "large")
    answer = served.ask(HARD, model="reconcile@v2")
    assert answer.headers["x-distillery-model"] == "reconcile@v2"
    assert served.counted == []
    assert served.kept.rows[0]["difficulty"] is None


@pytest.mark.parametrize("to", ["nobody", "large@v7", "large@stable"])
def test_the_student_answers_where_nobody_serves_the_destination(tmp_path, predictor, to):
    served = Served(tmp_path, predictor, to)
    answer = served.ask(HARD)
    assert answer.headers["x-distillery-model"] == "reconcile@v1"
    assert "x-distillery-routed" not in answer.headers
    assert served.counted == [("student", "not_there")]


@pytest.mark.parametrize(
    "error", [refused_model("large@v2", reason="rank"), not_ready("All slots are pinned.")]
)
def test_a_destination_that_no_replica_can_hold_costs_no_answer(tmp_path, predictor, error):
    served = Served(tmp_path, predictor, "large@v2", refuses={"large@v2": error})
    answer = served.ask(HARD)
    assert (answer.status_code, served.replicas.asked) == (200, ["large@v2", "reconcile@v1"])
    assert served.counted == [("student", "not_there")]
    assert served.kept.rows[0]["routed_to"] is None


def test_the_teacher_answers_a_hard_prompt_at_once(tmp_path, predictor):
    teacher = Frontier()
    served = Served(tmp_path, predictor, "teacher", teacher=teacher)
    answer = served.ask(HARD)
    body = answer.json()
    assert body["choices"][0]["message"]["content"] == GOOD
    assert (body["model"], body["object"]) == ("litellm:frontier", "chat.completion")
    assert body["usage"]["total_tokens"] == 39
    assert answer.headers["x-distillery-routed"] == "difficulty"
    assert answer.headers["x-distillery-answered-by"] == "teacher"
    assert served.replicas.asked == []
    (row,) = served.kept.rows
    assert (row["answered_by"], row["routed_to"], row["completion"]) == ("teacher", "teacher", GOOD)
    # Past the log's sampling: it is what the student should learn next.
    assert served.kept.always == [True]
    served.ask(EASY)
    assert (teacher.asked, served.kept.always) == (1, [True, False])


def test_a_stream_to_the_teacher_is_one_burst(tmp_path, predictor):
    served = Served(tmp_path, predictor, "teacher", teacher=Frontier())
    answer = served.ask(HARD, stream=True)
    lines = answer.text.strip().split("\n\n")
    assert lines[-1] == "data: [DONE]"
    assert json.loads(lines[0].removeprefix("data: "))["choices"][0]["delta"]["content"] == GOOD


@pytest.mark.parametrize(
    ("teacher", "quality", "reason"),
    [
        (Frontier(), {"max_teacher_rate": 0.0}, "no_allowance"),
        (Frontier(error="overloaded"), {"max_teacher_rate": 1.0}, "unavailable"),
        (Frontier(BAD), {"max_teacher_rate": 1.0}, "form"),
    ],
)
def test_the_student_answers_where_the_teacher_may_not_or_cannot(
    tmp_path, predictor, teacher, quality, reason
):
    served = Served(tmp_path, predictor, "teacher", teacher=teacher, quality=quality)
    answer = served.ask(HARD)
    assert answer.headers["x-distillery-model"] == "reconcile@v1"
    assert answer.headers["x-distillery-answered-by"] == "student"
    assert "x-distillery-routed" not in answer.headers
    assert served.counted == [("student", reason)]


def test_the_days_dollars_hold_for_hard_prompts_too(tmp_path, predictor):
    teacher = Frontier()
    served = Served(tmp_path, predictor, "teacher", teacher=teacher,
                    quality={"max_teacher_rate": 1.0, "teacher_burst": 100})  # fmt: skip
    for _ in range(60):
        served.ask(HARD)
    # $0.02 each, and $0.05 has to be left of the dollar.
    assert teacher.asked == 48
    assert served.counted.count(("student", "no_budget")) == 12


def test_several_answers_are_the_students(tmp_path, predictor):
    served = Served(tmp_path, predictor, "teacher", teacher=Frontier())
    served.ask(HARD, n=2)
    assert served.counted == [("student", "several_answers")]


@pytest.mark.parametrize("to", ["large", "teacher"])
def test_canaries_and_shadows_see_no_rerouted_request(tmp_path, predictor, to):
    served = Served(tmp_path, predictor, to, teacher=Frontier())
    alias = Alias("reconcile", "prod")
    since = "2026-01-01T00:00:00+00:00"
    served.table.splits[alias] = Split(version=2, mode="canary", weight=1.0, since=since)
    served.ask(HARD)
    assert served.splits.status() == {}
    assert [routed.split for routed in served.kept.copied] == [None]
    easy = served.ask(EASY)
    assert easy.headers["x-distillery-model"] == "reconcile@v2"
    assert served.splits.status()["reconcile"]["version"] == 2


@pytest.mark.parametrize("messages", [[], ["x"], [{"role": "user"}], [{"content": 3}]])
def test_whatever_the_engine_will_refuse_reaches_it(tmp_path, predictor, messages):
    served = Served(tmp_path, replace(predictor, threshold=1.0), "large")
    assert served.ask(messages).status_code == 200


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"routing": {"reconcile": {"predictor": "r.json", "to": "reconcile@v2"}}},
         r"serve\.routing\.reconcile\.to 'reconcile@v2' names the student itself"),
        ({"routing": {"reconcile": {"predictor": "r.json", "to": "teacher"}}},
         r"to is 'teacher' and none is configured; give \[serve\.quality\.reconcile\] usd_per_day"),
        ({"routing": {"reconcile": {"predictor": "r.json", "to": "x", "threshold": 0}}},
         r"greater than 0"),
    ],
)  # fmt: skip
def test_a_route_that_leads_nowhere_is_refused_as_configuration(fields, said):
    with pytest.raises((ConfigError, ValueError), match=said):
        ServeConfig.model_validate(fields)
