"""One real deployment with everything that decides about an answer: checks, teacher, routing."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
from openai_server import OpenAIServer, openai_server
from routing import predictor_of

from cluster.registry import Registry
from cluster.storage import Store
from distill.tasks.task import load_task
from distill.teach.config import LiteLLMTeacher
from jobs.quality import MakeTeacher, TaskChecks
from serve import app
from serve.config import ServeConfig
from serve.quality.config import QualityConfig
from serve.quality.gate import QualityParts
from serve.routing.config import RoutingConfig
from serve.routing.router import RoutingParts

QUESTION = [{"role": "user", "content": "Bank: ACME USD 12.50; ERP: none"}]
RIGHT = json.dumps(
    {
        "classification": "MISSING_ENTRY",
        "confidence": 0.9,
        "standard": "IAS 7",
        "reason": "There is no entry for it.",
        "action": "post_entry",
    }
)
SLO_S = 0.002
"""No answer is so fast."""
DOLLARS = {"reconcile": 0.005, "thrifty": 0.002}


class Served:
    """The deployment under test.

    `reconcile` and `thrifty` have checks and a teacher, each its dollars a day; hard prompts to
    `routed` go to `plain`, and `plain` and `trial` have neither.
    """

    def __init__(self, url: str, registry: Registry, log: str, teacher: OpenAIServer):
        self.url = url
        self.registry = registry
        self.log = Store(log)
        self.teacher = teacher
        self.http = httpx.Client(base_url=url, timeout=180)
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def ask(self, model: str, **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": QUESTION, "max_tokens": 4, "temperature": 0}
        return self.http.post("/v1/chat/completions", json=body | {"ignore_eos": True} | fields)

    def act(self, action: str, **body: Any) -> httpx.Response:
        return self.http.post(f"/admin/adapters/{action}", json=body)

    def status(self) -> dict[str, Any]:
        return dict(self.http.get("/admin/status").json())

    def metrics(self) -> dict[str, Any]:
        return dict(self.http.get("/admin/metrics").json())

    def logged(self) -> list[dict[str, Any]]:
        return list(self.log.read_rows("")) if self.log.exists() else []

    def wait_for(self, condition: Callable[[], Any], *, timeout_s: float = 60) -> Any:
        deadline = time.monotonic() + timeout_s
        while not (found := condition()):
            assert time.monotonic() < deadline, self.status()
            time.sleep(0.05)
        return found


@contextmanager
def deployed(
    folder: Path, *, port: int, base_model: Path, adapters: dict[str, Path], publish: Any
) -> Iterator[Served]:
    """Deploy on the connected Ray for the length of the block."""
    registry = Registry(str(folder / "registry"))
    for name in ("reconcile", "thrifty", "routed", "plain", "trial"):
        for adapter in ("one", "two"):
            publish(registry, name, adapters[adapter])
        registry.promote(name, 1)
    checks = {
        name: QualityConfig(
            on_failure=["teacher"],
            usd_per_day=usd,
            max_teacher_rate=1.0,
            allow_truncated=True,
            min_chars=0,
            min_mean_logprob=-100,
        )
        for name, usd in DOLLARS.items()
    }
    routing = RoutingConfig(predictor="routing.json", to="plain")
    config = ServeConfig(
        port=port,
        max_loras=8,
        slo_p90_s=SLO_S,
        request_log=str(folder / "log"),
        quality=checks,
        routing={"routed": routing},
    )
    task = str(load_task("reconcile").folder)
    with openai_server(lambda body, number: (200, RIGHT)) as teacher:
        asked = LiteLLMTeacher(
            model="openai/frontier",
            api_base=teacher.url,
            max_tokens=16,
            price={"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 10.0},
        )
        url = app.deploy(
            config,
            base_model=str(base_model),
            registry_uri=str(folder / "registry"),
            accelerator=None,
            quality={
                name: QualityParts(part, TaskChecks(task, verify=True), MakeTeacher(task, asked))
                for name, part in checks.items()
            },
            routing={
                "routed": RoutingParts(routing, predictor_of("routed", base_model="tiny-llama"))
            },
        )
        yield Served(url, registry, str(folder / "log"), teacher)
        app.shutdown(config.app_name)
