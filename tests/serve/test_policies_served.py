"""Fallback, canaries, shadows and the admin API on a real engine, with a real teacher's server."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from openai_server import OpenAIServer, openai_server

from cluster.registry import Registry
from cluster.storage import Store
from distill.tasks.task import load_task
from distill.teach.config import LiteLLMTeacher
from jobs.quality import MakeTeacher, TaskChecks
from serve import app
from serve.config import ServeConfig
from serve.quality.config import QualityConfig
from serve.quality.gate import QualityParts

pytestmark = [pytest.mark.ray, pytest.mark.model]

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


class Served:
    """The deployment under test; `reconcile` has checks and a teacher, `plain` has neither."""

    def __init__(self, url: str, registry: Registry, log: str, teacher: OpenAIServer):
        self.registry = registry
        self.log = Store(log)
        self.teacher = teacher
        self.http = httpx.Client(base_url=url, timeout=180)
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def ask(self, model: str, **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": QUESTION, "max_tokens": 4, "temperature": 0} | fields
        return self.http.post("/v1/chat/completions", json=body)

    def act(self, action: str, **body: Any) -> httpx.Response:
        return self.http.post(f"/admin/adapters/{action}", json=body)

    def status(self) -> dict[str, Any]:
        return dict(self.http.get("/admin/status").json())

    def wait_for(self, condition: Callable[[], Any], *, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.status()
            time.sleep(0.05)


@pytest.fixture(scope="module")
def served(
    ray_runtime: Any,
    tiny_model: Path,
    adapters: dict[str, Path],
    publish: Any,
    free_port: Callable[[], int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("policies")
    registry = Registry(str(folder / "registry"))
    for name in ("reconcile", "plain"):
        for adapter in ("one", "two"):
            publish(registry, name, adapters[adapter])
        registry.promote(name, 1)
    quality = QualityConfig(
        on_failure=["teacher"],
        usd_per_day=0.002,
        max_teacher_rate=1.0,
        allow_truncated=True,
        min_chars=0,
        min_mean_logprob=-100,
    )
    config = ServeConfig(
        port=free_port(),
        max_loras=4,
        request_log=str(folder / "log"),
        quality={"reconcile": quality},
    )
    task = str(load_task("reconcile").folder)
    with openai_server(lambda body, number: (200, RIGHT)) as teacher:
        asked = LiteLLMTeacher(
            model="openai/frontier",
            api_base=teacher.url,
            max_tokens=16,
            price={"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 10.0},
        )
        parts = QualityParts(quality, TaskChecks(task, verify=True), MakeTeacher(task, asked))
        url = app.deploy(
            config,
            base_model=str(tiny_model),
            registry_uri=str(folder / "registry"),
            accelerator=None,
            quality={"reconcile": parts},
        )
        yield Served(url, registry, str(folder / "log"), teacher)
        app.shutdown(config.app_name)


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


def test_once_the_days_dollars_are_spent_the_students_answer_is_served_and_marked(served: Served):
    asked = len(served.teacher.requests)
    answers = [served.ask("reconcile") for _ in range(20)]
    last = answers[-1].headers
    assert last["x-distillery-answered-by"] == "student"
    assert last["x-distillery-quality"] == "failed; form"
    assert 0 < len(served.teacher.requests) - asked < 20
    spent = served.registry.store / ".teacher-usage"
    served.wait_for(lambda: spent.exists() and spent.names())


def test_what_was_replaced_is_kept_for_retraining(served: Served) -> None:
    def pairs() -> list[dict[str, Any]]:
        if not served.log.exists():
            return []
        return [row for row in served.log.read_rows("") if row["refused_completion"] is not None]

    served.wait_for(pairs)
    row = pairs()[0]
    assert (row["completion"], row["answered_by"], row["quality"]) == (RIGHT, "teacher", "form")
    assert row["refused_completion"] != RIGHT
    asked = [r for r in served.log.read_rows("") if r["answered_by"] == "student"]
    assert all(r["mean_logprob"] < 0 for r in asked if r["quality"])


def test_checks_and_fallbacks_are_counted(served: Served, ray_runtime: Any) -> None:
    def metrics() -> str:
        return httpx.get(f"http://127.0.0.1:{ray_runtime.metrics_port}/metrics").text

    served.wait_for(lambda: "ray_distillery_fallbacks_total" in metrics())
    found = metrics()
    assert 'answered_by="teacher"' in found
    assert 'answered_by="nobody"' in found
    assert "ray_distillery_teacher_usd_total" in found


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
        return [row for row in served.log.read_rows("") if row["route"] == "shadow"]

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
