"""The gateway's front on a real engine: keys, limits, bad input, clients that leave.

One Ray and one deployment for all tests of the module; they run in the order they stand in.
"""

from __future__ import annotations

import json
import re
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.core.transport import Response as ApiResponse

from cluster.registry import Registry
from jobs.bench import malformed
from jobs.client import api_client
from serve import app
from serve.config import ServeConfig
from serve.keys import KeyFile, new_key

pytestmark = [pytest.mark.ray, pytest.mark.model]

QUESTION = [{"role": "user", "content": "Bank: ACME USD 12.50; ERP: none"}]
MALFORMED = 1000


@dataclass
class Front:
    """The deployment under test."""

    url: str
    config: ServeConfig
    registry: Registry
    tokens: dict[str, str]
    ids: dict[str, str]

    def headers(self, key: str = "all") -> dict[str, str]:
        return {"authorization": f"Bearer {self.tokens[key]}"}

    def client(self, key: str = "all") -> openai.OpenAI:
        return openai.OpenAI(
            base_url=f"{self.url}/v1", api_key=self.tokens[key], max_retries=0, timeout=150
        )

    def ask(self, key: str = "all", *, route: str = "chat/completions", **fields: Any) -> Any:
        body = {"model": "reconcile", "max_tokens": 4, "temperature": 0}
        body |= {} if route == "completions" else {"messages": QUESTION}
        return httpx.post(
            f"{self.url}/v1/{route}", json=body | fields, headers=self.headers(key), timeout=150
        )

    def in_engine(self) -> int:
        from ray import serve as ray_serve

        # Ray Serve LLM adds the model's name to that of the deployment.
        names = set(ray_serve.status().applications[self.config.app_name].deployments)
        (replica,) = names - {app.GATEWAY_DEPLOYMENT}
        handle = ray_serve.get_deployment_handle(replica, self.config.app_name)
        return int(handle.requests_in_engine.remote().result(timeout_s=30))


def wait_for(condition: Callable[[], Any], *, timeout_s: float = 30) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


@pytest.fixture(scope="module")
def front(
    ray_runtime: Any,
    tiny_model: Path,
    adapters: dict[str, Path],
    publish: Any,
    free_port: Callable[[], int],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Front]:
    folder = tmp_path_factory.mktemp("front")
    registry = Registry(str(folder / "registry"))
    publish(registry, "reconcile", adapters["one"])
    publish(registry, "secret", adapters["two"])
    for name in ("reconcile", "secret"):
        registry.promote(name, 1)
    file = KeyFile(str(folder / "keys"))
    tokens, ids = {}, {}
    allowed: dict[str, dict[str, Any]] = {
        "all": {"admin": True},
        "scoped": {"models": ["reconcile"]},
        "slow": {"requests_per_minute": 2},
        "daily": {"tokens_per_day": 50},
        "leaving": {},
    }
    for name, fields in allowed.items():
        tokens[name], key = new_key(name, **fields)
        file.add(key)
        ids[name] = key.id
    config = ServeConfig(
        port=free_port(),
        max_loras=3,
        keys=str(folder / "keys"),
        keys_poll_s=0.2,
        max_body_mb=1,
        max_prompt_chars=50_000,
        body_timeout_s=3,
    )
    url = app.deploy(
        config, base_model=str(tiny_model), registry_uri=str(folder / "registry"), accelerator=None
    )
    yield Front(url, config, registry, tokens, ids)
    app.shutdown(config.app_name)


def test_nobody_gets_in_without_a_key_and_nobody_is_told_why(front: Front) -> None:
    forged = front.tokens["all"][:-2] + "~~"
    answers = [
        httpx.post(f"{front.url}/v1/chat/completions", json={"model": "x"}, headers=headers)
        for headers in ({}, {"authorization": forged}, {"authorization": f"Bearer {forged}"})
    ]
    answers.append(httpx.get(f"{front.url}/v1/models"))
    assert {a.status_code for a in answers} == {401}
    assert len({a.text for a in answers}) == 1
    with pytest.raises(openai.AuthenticationError):
        openai.OpenAI(base_url=f"{front.url}/v1", api_key=forged, max_retries=0).models.list()
    # What a load balancer asks needs no key, and says no name.
    assert httpx.get(f"{front.url}/ready").json() == {"ready": True}
    assert "routes" in httpx.get(f"{front.url}/ready", headers=front.headers()).json()


def test_a_scoped_key_sees_and_uses_its_models_only(front: Front) -> None:
    assert {m.id for m in front.client("scoped").models.list()} == {"reconcile", "reconcile@v1"}
    assert "secret" in {m.id for m in front.client("all").models.list()}
    assert front.ask("scoped").status_code == 200
    with pytest.raises(openai.NotFoundError) as hidden:
        front.client("scoped").chat.completions.create(model="secret", messages=QUESTION)
    assert hidden.value.code == "model_not_found"
    assert front.ask("scoped", model="no-such-model").json()["error"]["message"] == str(
        hidden.value.body["message"]  # type: ignore[index]
    ).replace("secret", "no-such-model")
    assert front.ask("all", model="secret").status_code == 200


def test_a_limit_by_the_minute_is_told_as_openai_tells_it(front: Front) -> None:
    first = front.ask("slow")
    assert first.headers["x-ratelimit-remaining-requests"] == "1"
    assert front.ask("slow").status_code == 200
    with pytest.raises(openai.RateLimitError) as limited:
        front.client("slow").chat.completions.create(model="reconcile", messages=QUESTION)
    assert limited.value.code == "rate_limit_exceeded"
    assert 1 <= int(limited.value.response.headers["retry-after"]) <= 60


def test_the_daily_quota_counts_what_the_engine_counted(front: Front) -> None:
    usage = front.ask("daily").json()["usage"]["total_tokens"]
    usages = Path(front.config.keys, "usage")

    def kept() -> list[dict[str, Any]]:
        files = [json.loads(path.read_text()) for path in usages.glob("*/*.json")]
        return [file[front.ids["daily"]] for file in files if front.ids["daily"] in file]

    wait_for(kept)
    assert kept() == [{"requests": 1, "tokens": usage, "usd": 0.0}]
    while usage < 50:
        usage += front.ask("daily").json()["usage"]["total_tokens"]
    refused = front.ask("daily")
    assert refused.status_code == 429
    assert refused.json()["error"]["code"] == "insufficient_quota"


def test_keys_come_and_go_while_the_server_runs(front: Front) -> None:
    token, key = new_key("short")
    front.tokens["short"] = token
    assert front.ask("short").status_code == 401
    KeyFile(front.config.keys).add(key)
    wait_for(lambda: front.ask("short").status_code == 200)
    KeyFile(front.config.keys).revoke(key.id)
    wait_for(lambda: front.ask("short").status_code == 401)


def test_our_own_commands_make_themselves_a_key(front: Front) -> None:
    before = KeyFile(front.config.keys).read().keys()
    with api_client(front.config, front.url, purpose="test") as client:
        answer = client.chat.completions.create(model="reconcile", messages=QUESTION, max_tokens=2)
        assert answer.usage is not None
    assert KeyFile(front.config.keys).read().keys() == before


def test_vllm_s_own_fields_work_and_unknown_ones_are_refused(front: Front) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]}
    for fields in (
        {"top_k": 5, "min_p": 0.1, "repetition_penalty": 1.1},
        {"chat_template_kwargs": {"x": 1}, "stop_token_ids": [2], "ignore_eos": True},
        {"structured_outputs": {"regex": "yes|no"}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": schema}},
         "max_tokens": 40},
        {"store": False, "metadata": {"a": "b"}, "service_tier": "auto", "user": "me"},
    ):  # fmt: skip
        answer = front.ask(**fields)
        assert answer.status_code == 200, answer.text
    text = front.ask(structured_outputs={"regex": "yes|no"}).json()["choices"][0]["message"]
    assert text["content"] in ("yes", "no")
    for fields in ({"max_token": 5}, {"guided_regex": "yes|no"}, {"kv_transfer_params": {}}):
        refused = front.ask(**fields)
        assert refused.status_code == 400
        (name,) = fields
        wanted = f"Unrecognized request argument supplied: {name}"
        assert refused.json()["error"]["message"] == wanted


def test_the_api_describes_itself_and_the_page_needs_no_network(front: Front) -> None:
    document = httpx.get(f"{front.url}/openapi.json").json()
    chat = document["components"]["schemas"]["chat_request"]
    assert {"messages", "model", "top_k", "structured_outputs"} <= chat["properties"].keys()
    assert chat["required"] == ["messages", "model"]
    assert set(document["paths"]) >= {"/v1/chat/completions", "/v1/completions", "/v1/models"}
    page = httpx.get(f"{front.url}/docs")
    assert page.headers["content-type"].startswith("text/html")
    assert "top_k" in page.text
    assert not re.search(r"(src|href)=.?(https?:)?//", page.text)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_leaves_frees_the_engine(front: Front, stream: bool) -> None:
    wait_for(lambda: front.in_engine() == 0)
    body = {
        "model": "reconcile", "messages": QUESTION, "max_tokens": 1900, "ignore_eos": True,
        "n": 8, "temperature": 1.0, "stream": stream,
    }  # fmt: skip
    begun, left = threading.Event(), threading.Event()
    seen: list[str] = []

    def ask() -> None:
        with (
            httpx.Client(timeout=100) as http,
            http.stream(
                "POST", f"{front.url}/v1/chat/completions", json=body, headers=front.headers()
            ) as response,
        ):
            for line in response.iter_lines():
                seen.append(line)
                begun.set()
                if left.is_set():
                    return

    def ask_and_give_up() -> None:
        with socket.create_connection(("127.0.0.1", front.config.port)) as client:
            content = json.dumps(body).encode()
            head = (
                f"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: {len(content)}"
            )
            key = front.headers()["authorization"]
            client.sendall(f"{head}\r\nauthorization: {key}\r\n\r\n".encode() + content)
            begun.set()
            left.wait(timeout=60)

    thread = threading.Thread(target=ask if stream else ask_and_give_up)
    thread.start()
    assert begun.wait(timeout=30)
    wait_for(lambda: front.in_engine() > 0 or not thread.is_alive())
    busy = front.in_engine()
    left.set()
    thread.join()
    gone_at = time.monotonic()
    wait_for(lambda: front.in_engine() == 0, timeout_s=10)
    idle_s = time.monotonic() - gone_at
    print(f"stream={stream}: {busy} in the engine, none {idle_s:.2f} s after the client left")
    assert busy > 0, seen[-3:]


def test_leaving_early_is_charged(front: Front) -> None:
    with httpx.stream(
        "POST",
        f"{front.url}/v1/chat/completions",
        json={"model": "reconcile", "messages": QUESTION, "stream": True, "max_tokens": 1500,
              "ignore_eos": True},
        headers=front.headers("leaving"),
        timeout=60,
    ) as response:  # fmt: skip
        next(response.iter_lines())

    def charged() -> bool:
        files = Path(front.config.keys, "usage").glob("*/*.json")
        rows = [json.loads(path.read_text()).get(front.ids["leaving"]) for path in files]
        return any(row and row["tokens"] > 0 for row in rows)

    wait_for(charged)


def test_what_is_too_much_is_said_in_words(front: Front) -> None:
    cases: list[tuple[dict[str, Any], int, str | None]] = [
        ({"max_tokens": 10**6}, 400, "1000000"),
        ({"max_tokens": 10**30}, 400, None),
        ({"n": 10**6}, 400, "'n'"),
        ({"messages": [{"role": "user", "content": "x " * 30_000}]}, 400, "string too long"),
        ({"messages": [{"role": "user", "content": "x" * 10_000_000}]}, 413, "1048576"),
        ({"seed": 10**4000}, 400, None),
        ({"stream_interval": 2**64}, 400, "'stream_interval'"),
        ({"temperature": 10**400}, 400, None),
        ({"stop": ["x"] * 5000}, 400, None),
        ({"logit_bias": {"99999999": 100}}, 400, None),
        ({"logit_bias": {"99999999": 100}, "stream": True}, 400, None),
        ({"top_logprobs": 10**9, "logprobs": True}, 400, None),
        ({"model": "../../../etc/passwd"}, 404, "does not exist"),
        ({"model": "reconcile@v1/../../secret/v1"}, 404, "does not exist"),
        ({"model": "reconcile\u0000"}, 404, "does not exist"),
        ({"model": "reconcile@v" + "9" * 5000}, 404, "does not exist"),
        ({"messages": [{"role": "user", "content": "a\u0000b"}]}, 200, None),
    ]
    for fields, status, text in cases:
        answer = front.ask(**fields)
        shown = {key: str(value)[:60] for key, value in fields.items()}
        if shown.keys() & {"stop"}:
            assert answer.status_code < 500, answer.text
            continue
        assert answer.status_code == status, (shown, answer.text[:300])
        if text:
            assert text in answer.json()["error"]["message"]


def test_a_slow_head_and_a_slow_body_are_given_up_by_the_real_proxy(front: Front) -> None:
    key = f"authorization: Bearer {front.tokens['all']}\r\n".encode()
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\n" + key
    for opening in (head, head + b"content-length: 50\r\n\r\n{"):
        begin = time.monotonic()
        with socket.create_connection(("127.0.0.1", front.config.port), timeout=30) as client:
            client.sendall(opening)
            got = client.recv(4096)
        assert got.startswith(b"HTTP/1.1 408")
        assert time.monotonic() - begin < 15
    assert front.ask().status_code == 200


def test_thousands_of_malformed_requests_are_wrong_requests(front: Front) -> None:
    """`make bench-serve` sends ten times as many."""
    before = sorted(str(p) for p in Path(front.registry.store.root).rglob("*"))
    outcome = malformed.send(front.url, count=MALFORMED, seed=7, headers=front.headers())
    print(f"{MALFORMED} malformed requests: {dict(sorted(outcome.statuses.items()))}")
    assert outcome.bad == []
    assert outcome.statuses.total() == MALFORMED
    assert sorted(str(p) for p in Path(front.registry.store.root).rglob("*")) == before
    assert front.ask().status_code == 200


def test_schemathesis_finds_no_server_error(front: Front) -> None:
    schema = schemathesis.openapi.from_url(f"{front.url}/openapi.json")
    seen: dict[int, int] = {}
    for result in schema.get_all_operations():
        operation = result.ok()
        fitting = operation.as_strategy()
        if operation.method.upper() == "POST":
            fitting |= operation.as_strategy(generation_mode=GenerationMode.NEGATIVE)

        @settings(
            max_examples=120,
            deadline=None,
            suppress_health_check=list(HealthCheck),
            derandomize=True,
            database=None,
        )
        @given(case=fitting)
        def check(case: schemathesis.Case) -> None:
            if isinstance(case.body, dict):
                # A name that is served and few tokens: the rest of the body is what is tried.
                case.body["model"] = "tiny-llama"
                case.body["max_tokens"] = 1
                case.body.pop("max_completion_tokens", None)
                case.body.pop("min_tokens", None)
            got: ApiResponse = case.call(headers=front.headers(), timeout=150)
            seen[got.status_code] = seen.get(got.status_code, 0) + 1
            assert got.status_code < 500, (case.body, got.text[:500])
            assert "Traceback" not in got.text
            if got.status_code >= 400:
                assert set(got.json()["error"]) == {"message", "type", "param", "code"}

        check()
    print(f"schemathesis: {dict(sorted(seen.items()))}")
    assert front.ask().status_code == 200
