"""The gateway's request path without Ray or a model: who is asked is a list of names."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import httpx
from fastapi import FastAPI, Request

from cluster.difficulty import Predictor
from cluster.registry import Registry
from cluster.storage import Store
from serve.admit import Door
from serve.completions import Completions
from serve.config import ServeConfig
from serve.errors import ApiError, internal
from serve.live import LiveFigures
from serve.metrics import GatewayMetrics
from serve.observe import Usage
from serve.quality.assurance import TeacherAnswer
from serve.quality.checks import Refusal
from serve.quality.config import QualityConfig
from serve.quality.gate import QualityGate, QualityParts, ReplicaAnswer
from serve.routes import Alias, RouteTable
from serve.routing.config import RoutingConfig
from serve.routing.router import Router, RoutingParts
from serve.split.running import Splits

GOOD, BAD = '{"class": "A"}', "I think it is A"


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

    def __init__(self, *, refuses: dict[str, ApiError], breaks: bool, hangs: bool):
        self.asked: list[str] = []
        self.refuses = refuses
        self.breaks = breaks
        self.hangs = hangs

    async def answer(self, call: Any, payload: Any, *, logprobs: bool) -> ReplicaAnswer:
        name = call.target.served_name
        self.asked.append(name)
        if name in self.refuses:
            raise self.refuses[name]
        if self.hangs:
            await asyncio.sleep(60)
        body = {
            "id": "chatcmpl-1", "created": 1, "model": name,
            "choices": [{"index": 0, "message": {"role": "assistant", "content": GOOD},
                         "finish_reason": "stop"}],
            "usage": {"prompt_tokens": 9, "completion_tokens": 6, "total_tokens": 15},
        }  # fmt: skip
        return ReplicaAnswer(json.dumps(body).encode(), Usage(9, 6, text=GOOD))

    async def begin_stream(self, call: Any) -> Any:
        self.asked.append(call.target.served_name)

        return b"data: {}\n\n", Events(self._rest(call.request_id))

    async def _rest(self, request_id: str) -> Any:
        if self.breaks:
            yield 500, internal(request_id).as_dict()
        yield Usage(9, 6, text=GOOD)

    def known_error(self, error: Exception, call: Any) -> ApiError:
        if isinstance(error, ApiError):
            return error
        raise error


class Events:
    """As Serve's handle gives them."""

    def __init__(self, events: Any):
        self.events = events
        self.is_cancelled = False

    def __aiter__(self) -> Any:
        return self.events

    def cancel(self) -> None:
        self.is_cancelled = True


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
                 quality: dict[str, Any] | None = None, refuses: dict[str, ApiError] | None = None,
                 breaks: bool = False, hangs: bool = False):  # fmt: skip
        self.table = RouteTable("base")
        self.table.known = {"reconcile": {1: 0, 2: 0}, "large": {1: 0, 2: 0}}
        self.table.live = {Alias("reconcile", "prod"): 1, Alias("large", "prod"): 1}
        self.replicas = FakeReplicas(refuses=refuses or {}, breaks=breaks, hangs=hangs)
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

    def ask(
        self, messages: Any, leave_after_s: float | None = None, **fields: Any
    ) -> httpx.Response:
        async def post() -> httpx.Response:
            transport = httpx.ASGITransport(self.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://gateway") as client:
                body = {"model": "reconcile", "messages": messages, **fields}
                async with asyncio.timeout(leave_after_s):
                    return await client.post("/chat", json=body)

        return asyncio.run(post())


def json_only(text: str, variables: Any) -> Refusal | None:
    return None if text.startswith("{") else Refusal("form", "not JSON")
