"""Hard prompts on their way through the gateway: who answers, what is said, counted and logged."""

from __future__ import annotations

import asyncio
import json
from dataclasses import replace
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from routing import learned, questions

from cluster.difficulty import Model, Predictor, Scorer
from cluster.errors import ConfigError
from cluster.registry import Registry, Split
from cluster.storage import Store
from serve.admit import Door
from serve.completions import Completions
from serve.config import ServeConfig
from serve.errors import ApiError, refused_model
from serve.live import LiveFigures
from serve.metrics import GatewayMetrics
from serve.observe import Usage
from serve.quality.assurance import TeacherAnswer
from serve.quality.checks import Refusal
from serve.quality.config import QualityConfig
from serve.quality.gate import QualityGate, QualityParts, ReplicaAnswer
from serve.request_log import SCHEMA
from serve.routes import Alias, RouteTable
from serve.routing.config import RoutingConfig
from serve.routing.router import Router, RoutingParts
from serve.split.running import Splits

EASY, HARD = (
    next(row["messages"] for row in questions(200, seed=11) if row["hard"] is hard)
    for hard in (False, True)
)
GOOD, BAD = '{"class": "A"}', "I think it is A"


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    found = learned(questions(500, seed=1))
    return Predictor(
        scorer=Scorer(Model.model_validate(found["model"])),
        threshold=0.25,
        task="reconcile",
        task_digest="0" * 64,
        adapter="reconcile",
        base_model="tiny",
        reason="",
    )


class Frontier:
    """A teacher that says one thing."""

    name = "litellm:frontier"

    def __init__(self, text: str = GOOD, error: str = ""):
        self.answer = TeacherAnswer(text, prompt_tokens=30, completion_tokens=9, usd=0.02,
                                    error=error)  # fmt: skip
        self.asked = 0

    def most_usd(self, messages: Any) -> float:
        return 0.05

    def usd_of(self, *, prompt_tokens: int, completion_tokens: int) -> float:
        return 0.02

    async def ask(self, messages: Any) -> TeacherAnswer:
        self.asked += 1
        return self.answer


class FakeReplicas:
    """Answers with the name of the version that was asked."""

    def __init__(self, refuses: str = ""):
        self.asked: list[str] = []
        self.refuses = refuses

    async def answer(self, call: Any, payload: Any, *, logprobs: bool) -> ReplicaAnswer:
        name = call.target.served_name
        self.asked.append(name)
        if name == self.refuses:
            raise refused_model(name, reason="rank 64 is above 16")
        body = {
            "id": "chatcmpl-1", "created": 1, "model": name,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": GOOD},
                         "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15},
        }  # fmt: skip
        return ReplicaAnswer(json.dumps(body).encode(), Usage(9, 6, text=GOOD))

    async def begin_stream(self, call: Any) -> Any:
        self.asked.append(call.target.served_name)

        async def rest() -> Any:
            yield Usage(9, 6, text=GOOD)

        return b"data: {}\n\n", rest()

    def known_error(self, error: Exception, call: Any) -> ApiError:
        raise error


class Kept:
    """A request log and shadows, as lists."""

    def __init__(self) -> None:
        self.rows: list[Any] = []
        self.always: list[bool] = []
        self.copied: list[Any] = []

    def add(self, make_row: Any, *, always: bool = False) -> None:
        self.rows.append(make_row())
        self.always.append(always)

    def copy(self, routed: Any, route: str, payload: Any) -> None:
        self.copied.append(routed)


class Served:
    """The gateway's request path without Ray: `reconcile` v1 and v2, `large` v1 and a broken v2."""

    def __init__(self, tmp_path: Any, predictor: Predictor, to: str, *, teacher: Any = None,
                 quality: dict[str, Any] | None = None, refuses: str = ""):  # fmt: skip
        self.table = RouteTable("base")
        self.table.known = {"reconcile": {1: 0, 2: 0}, "large": {1: 0, 2: 0}}
        self.table.live = {Alias("reconcile", "prod"): 1, Alias("large", "prod"): 1}
        self.replicas = FakeReplicas(refuses)
        self.kept = Kept()
        self.counted: list[tuple[str, str]] = []
        parts = {}
        if teacher is not None:
            section = QualityConfig(usd_per_day=1.0, **(quality or {"max_teacher_rate": 1.0}))
            parts = {"reconcile": QualityParts(section, json_only, lambda: teacher)}
        router = Router(
            {"reconcile": RoutingParts(RoutingConfig(predictor="r.json", to=to), predictor)},
            table=self.table,
        )
        router._metrics = self  # type: ignore[assignment]
        config = ServeConfig()
        live = LiveFigures()
        self.splits = Splits(Registry(str(tmp_path / "registry")), self.table)
        completions = Completions(
            config,
            replicas=self.replicas,  # type: ignore[arg-type]
            door=Door(config, price=None),
            table=self.table,
            watcher=None,  # type: ignore[arg-type]
            metrics=GatewayMetrics(live=live),
            quality=QualityGate(parts, state=Store(str(tmp_path / "spent")), live=live),
            router=router,
            splits=self.splits,
            shadows=self.kept,  # type: ignore[arg-type]
            request_log=self.kept,  # type: ignore[arg-type]
        )
        self.app = FastAPI()

        @self.app.post("/chat")
        async def chat(request: Request) -> Any:
            return await completions.complete("chat", request)

    def routed(self, adapter: str, *, destination: str, reason: str) -> None:
        assert adapter == "reconcile"
        self.counted.append((destination, reason))

    def ask(self, messages: Any, **fields: Any) -> httpx.Response:
        async def post() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                body = {"model": "reconcile", "messages": messages, **fields}
                return await client.post("/chat", json=body)

        return asyncio.run(post())


def json_only(text: str, variables: Any) -> Refusal | None:
    return None if text.startswith("{") else Refusal("form", "not JSON")


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


def test_a_destination_that_no_replica_can_hold_costs_no_answer(tmp_path, predictor):
    served = Served(tmp_path, predictor, "large@v2", refuses="large@v2")
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
    served.table.splits[alias] = Split(version=2, mode="canary", weight=1.0, since="2026-01-01T00:00:00+00:00")  # fmt: skip  # noqa: E501
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
