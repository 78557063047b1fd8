"""The serving application on a real engine: a tiny model, two adapters, real clients.

One Ray and one deployment for all tests of the module; they run in the order they stand in.
"""

from __future__ import annotations

import concurrent.futures
import itertools
import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from processes import only, parent_of, processes

from cluster.errors import PrerequisiteError
from cluster.example import example_id
from cluster.registry import Registry
from cluster.storage import Store
from serve import app
from serve.config import ServeConfig

pytestmark = [pytest.mark.ray, pytest.mark.model]

MONITORING = Path(app.__file__).parent.parent / "cluster" / "monitoring"
QUESTION = [{"role": "user", "content": "Bank: ACME USD 12.50; ERP: none"}]


class Served:
    """The deployment under test."""

    def __init__(self, url: str, registry: Registry, log: Path):
        self.url = url
        self.registry = registry
        self.log = log
        # Longer than the gateway's own deadline: the server is to say that it is late.
        self.http = httpx.Client(base_url=url, timeout=ServeConfig().request_timeout_s + 30)
        self.openai = openai.OpenAI(base_url=f"{url}/v1", api_key="none", max_retries=0)

    def ask(self, model: str, **fields: Any) -> httpx.Response:
        body = {"model": model, "messages": QUESTION, "max_tokens": 6, "temperature": 0} | fields
        return self.http.post("/v1/chat/completions", json=body)

    def text(self, model: str) -> str:
        return str(self.ask(model).json()["choices"][0]["message"]["content"])

    def ready(self) -> dict[str, Any]:
        return dict(self.http.get("/ready").json())

    def wait_for(self, condition: Callable[[], Any], *, timeout_s: float = 60) -> None:
        deadline = time.monotonic() + timeout_s
        while not condition():
            assert time.monotonic() < deadline, self.ready()
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
    folder = tmp_path_factory.mktemp("serving")
    registry = Registry(str(folder / "registry"))
    publish(registry, "reconcile", adapters["one"])
    publish(registry, "reconcile", adapters["two"])
    registry.promote("reconcile", 1)
    config = ServeConfig(port=free_port(), request_log=str(folder / "log"), max_loras=2)
    url = app.deploy(
        config, base_model=str(tiny_model), registry_uri=str(folder / "registry"), accelerator=None
    )
    yield Served(url, registry, folder / "log")
    app.shutdown(config.app_name)


def test_what_is_missing_is_said_before_anything_loads(
    ray_runtime: Any, free_port: Callable[[], int]
) -> None:
    config = ServeConfig(port=free_port())
    with pytest.raises(PrerequisiteError, match="no-such-folder"):
        app.deploy(config, base_model="./no-such-folder", registry_uri="registry", accelerator=None)


def test_a_taken_port_is_said_before_anything_loads(ray_runtime: Any, tiny_model: Path) -> None:
    import socket

    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = ServeConfig(port=taken.getsockname()[1])
        with pytest.raises(PrerequisiteError, match=f"serve.port {config.port}"):
            app.deploy(
                config, base_model=str(tiny_model), registry_uri="registry", accelerator=None
            )


def test_models_are_listed(served: Served) -> None:
    models = {model.id for model in served.openai.models.list()}
    assert models == {"tiny-llama", "reconcile", "reconcile@v1", "reconcile@v2"}
    assert served.openai.models.retrieve("reconcile").root == "reconcile@v1"
    assert served.http.get("/v1/models/nope").status_code == 404
    assert served.http.get("/health").status_code == 200
    assert served.ready()["routes"] == {"reconcile": "reconcile@v1"}


def test_litellm_and_langchain_are_served_as_openais_client_is(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Its price table comes from the network otherwise, when it is imported.
    monkeypatch.setenv("LITELLM_LOCAL_MODEL_COST_MAP", "True")
    import litellm
    from langchain_openai import ChatOpenAI, OpenAI

    said, to = served.text("reconcile"), f"{served.url}/v1"
    answer = litellm.completion(
        model="openai/reconcile", api_base=to, api_key="none", messages=QUESTION, max_tokens=6,
        temperature=0,
    )  # fmt: skip
    assert answer.choices[0].message.content == said
    told: dict[str, Any] = {"base_url": to, "api_key": "none", "temperature": 0, "max_retries": 0}
    chat = ChatOpenAI(model="reconcile", max_completion_tokens=6, **told)
    asked = [("user", QUESTION[0]["content"])]
    assert chat.invoke(asked).content == said
    assert "".join(str(part.content) for part in chat.stream(asked)) == said
    text = OpenAI(model="reconcile", max_tokens=6, **told).invoke("Bank:")
    plain = served.openai.completions.create(
        model="reconcile", prompt="Bank:", max_tokens=6, temperature=0
    )
    assert text == plain.choices[0].text


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl")
def test_curl_is_answered(served: Served) -> None:
    body = {"model": "reconcile", "messages": QUESTION, "max_tokens": 6, "temperature": 0}
    done = subprocess.run(
        ["curl", "-sSf", f"{served.url}/v1/chat/completions", "--json", json.dumps(body)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == served.text("reconcile")


def test_every_name_is_answered_by_what_it_means(served: Served) -> None:
    texts = {}
    for asked, answers in {
        "tiny-llama": "tiny-llama",
        "reconcile": "reconcile@v1",
        "reconcile@prod": "reconcile@v1",
        "reconcile@v1": "reconcile@v1",
        "reconcile@v2": "reconcile@v2",
    }.items():
        response = served.ask(asked)
        assert response.status_code == 200
        assert response.headers["x-distillery-model"] == response.json()["model"] == answers
        texts[asked] = response.json()["choices"][0]["message"]["content"]
    assert texts["reconcile"] == texts["reconcile@prod"] == texts["reconcile@v1"]
    assert len({texts["tiny-llama"], texts["reconcile@v1"], texts["reconcile@v2"]}) == 3


def test_the_openai_client_streams_and_not(served: Served) -> None:
    whole = served.openai.chat.completions.create(
        model="reconcile", messages=QUESTION, max_tokens=6, temperature=0
    )
    assert whole.usage is not None
    assert whole.usage.completion_tokens == 6
    stream = served.openai.chat.completions.create(
        model="reconcile",
        messages=QUESTION,
        max_tokens=6,
        temperature=0,
        stream=True,
        stream_options={"include_usage": True},
    )
    chunks = list(stream)
    pieces = [c.choices[0].delta.content or "" for c in chunks if c.choices]
    assert "".join(pieces) == whole.choices[0].message.content
    assert chunks[-1].usage == whole.usage


def test_completions_n_stop_and_logprobs(served: Served) -> None:
    answer = served.openai.completions.create(
        model="reconcile@v2", prompt="Bank", max_tokens=4, n=2, temperature=0.8, logprobs=2
    )
    assert len(answer.choices) == 2
    assert answer.choices[0].logprobs is not None
    assert len(answer.choices[0].logprobs.tokens or []) == 4
    text = served.text("reconcile@v2")
    cut = served.ask("reconcile@v2", stop=[text[3:5]]).json()["choices"][0]
    assert cut["finish_reason"] == "stop"
    assert text[3:5] not in cut["message"]["content"]
    same = {"model": "reconcile@v2", "prompt": "Bank", "max_tokens": 4, "temperature": 0}
    stream = served.openai.completions.create(**same, stream=True)
    streamed = "".join(chunk.choices[0].text for chunk in stream)
    assert streamed == served.openai.completions.create(**same).choices[0].text


def test_errors_are_openai_s_and_say_nothing_of_the_server(served: Served) -> None:
    long = [{"role": "user", "content": "Bank " * 3000}]
    cases: list[tuple[httpx.Response, int, str | None, str]] = [
        (served.ask("nope"), 404, "model", "nope"),
        (served.ask("../../etc/passwd"), 404, "model", "does not exist"),
        (served.ask("reconcile@v9"), 404, "model", "reconcile@v9"),
        (served.ask("reconcile", messages=long), 400, "messages", "2048 tokens"),
        (served.ask("reconcile", messages=long, stream=True), 400, "messages", "2048"),
        (served.ask("reconcile", temperature="hot"), 400, "temperature", "number"),
        (served.ask("reconcile", messages=[]), 400, None, ""),
        (served.ask("reconcile", max_tokens=10**6), 400, "max_tokens", "1000000"),
        (served.http.post("/v1/chat/completions", content=b"{oops"), 400, None, "JSON"),
        (served.http.post("/v1/completions", json={"model": "reconcile"}), 400, None, ""),
        (served.http.get("/v1/chat/completions"), 405, None, "Method Not Allowed"),
        (served.http.get("/nothing"), 404, None, "Not Found"),
    ]
    for response, status, param, text in cases:
        assert response.status_code == status, response.text
        error = response.json()["error"]
        assert set(error) == {"message", "type", "param", "code"}
        assert text in error["message"]
        if param:
            assert error["param"] == param
        assert "Traceback" not in response.text
        assert str(served.registry.store.root) not in response.text
    with pytest.raises(openai.NotFoundError):
        served.openai.chat.completions.create(model="nope", messages=QUESTION)


def test_a_prompt_that_is_too_long_is_told_both_lengths(served: Served) -> None:
    content = "Bank " * 3000
    message = served.ask("reconcile", messages=[{"role": "user", "content": content}]).json()
    one = served.ask("reconcile", messages=[{"role": "user", "content": "Bank " * 300}]).json()
    # One in ten of the text has, besides the template, a tenth of the tokens.
    tokens = int(message["error"]["message"].split("the request has ")[1].split()[0])
    assert tokens == pytest.approx(10 * one["usage"]["prompt_tokens"], rel=0.05)


def test_the_request_id_goes_through(served: Served) -> None:
    response = served.http.post(
        "/v1/chat/completions",
        json={"model": "reconcile", "messages": QUESTION, "max_tokens": 1},
        headers={"x-request-id": "order-17"},
    )
    assert response.headers["x-request-id"] == "order-17"
    assert response.json()["id"] == "chatcmpl-order-17"


def test_promote_and_rollback_under_load_fail_no_request(served: Served) -> None:
    expected = {m: served.text(m) for m in ("reconcile@v1", "reconcile@v2")}
    answers: list[tuple[int, str, str]] = []
    stop = threading.Event()

    def client() -> None:
        with httpx.Client(base_url=served.url, timeout=60) as http:
            while not stop.is_set():
                body = {"model": "reconcile", "messages": QUESTION, "max_tokens": 6}
                got = http.post("/v1/chat/completions", json=body | {"temperature": 0})
                text = got.json()["choices"][0]["message"]["content"] if got.is_success else ""
                answers.append((got.status_code, got.headers.get("x-distillery-model", ""), text))

    def served_since(start: int, model: str) -> bool:
        return sum(a[1] == model for a in answers[start:]) >= 40

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        clients = [pool.submit(client) for _ in range(4)]
        try:
            served.wait_for(lambda: len(answers) >= 40)
            served.registry.promote("reconcile", 2)
            served.wait_for(lambda: served_since(0, "reconcile@v2"), timeout_s=60)
            swapped_at = len(answers)
            served.registry.rollback("reconcile")
            served.wait_for(lambda: served_since(swapped_at, "reconcile@v1"), timeout_s=60)
            served.wait_for(lambda: len(answers) >= 210, timeout_s=120)
        finally:
            stop.set()
        for done in clients:
            done.result()
    assert len(answers) >= 200
    assert [a for a in answers if a[0] != 200] == []
    # Who answered is who the header says; bf16 in batches of other sizes may turn a near tie.
    wrong = [a for a in answers if a[2] != expected[a[1]]]
    assert len(wrong) <= 0.02 * len(answers)
    # v1, then v2, then v1 again, and nothing between.
    changes = [model for model, _ in itertools.groupby(sorted_by_time(answers))]
    assert changes == ["reconcile@v1", "reconcile@v2", "reconcile@v1"]


def sorted_by_time(answers: list[tuple[int, str, str]]) -> list[str]:
    """Models in the order of the answers, without the few that crossed a swap in flight."""
    models = [model for _, model, _ in answers]
    settled = [
        model
        for index, model in enumerate(models)
        if models[max(0, index - 8) : index + 9].count(model) > 8
    ]
    return settled


def test_adapters_that_do_not_fit_are_refused_and_serving_goes_on(
    served: Served, adapters: dict[str, Path], publish: Any
) -> None:
    registry = served.registry
    wide = publish(registry, "wide", adapters["wide"])
    registry.promote("wide", wide.version)
    foreign = publish(registry, "foreign", adapters["three"], base_digest="f" * 64)
    registry.promote("foreign", foreign.version)
    damaged = publish(registry, "reconcile", adapters["three"])
    weights = Path(registry.store.path(f"reconcile/v{damaged.version}/adapter_model.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x00\x01")
    registry.promote("reconcile", damaged.version)
    served.wait_for(lambda: len(served.ready()["refused"]) == 3)

    state = served.ready()
    assert "rank 64" in state["refused"]["wide@v1"]
    assert "base model" in state["refused"]["foreign@v1"]
    assert "SHA-256" in state["refused"][damaged.model_name]
    assert state["routes"] == {"reconcile": "reconcile@v1"}
    assert served.ask("reconcile").headers["x-distillery-model"] == "reconcile@v1"
    assert served.ask("wide").status_code == 503
    assert served.ask("wide@v1").status_code == 404
    listed = {model.id for model in served.openai.models.list()}
    assert listed == {"tiny-llama", "reconcile", "reconcile@v1", "reconcile@v2"}
    registry.rollback("reconcile")
    served.wait_for(lambda: "reconcile" not in served.ready()["pending"])


def test_more_adapters_than_slots(served: Served, adapters: dict[str, Path], publish: Any) -> None:
    # Two slots: each answer of the third sends the least recently used away and back.
    extra = publish(served.registry, "extra", adapters["three"]).model_name
    models = ["reconcile@v1", "reconcile@v2", extra]
    expected = {model: served.text(model) for model in models}
    base = served.text("tiny-llama")
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        asked = [*models, "tiny-llama"] * 6
        texts = list(pool.map(served.text, asked))
    assert texts == [expected.get(model, base) for model in asked]


def test_metrics_are_labelled_by_adapter_version_and_route(
    served: Served, ray_runtime: Any
) -> None:
    def exported() -> str:
        return httpx.get(f"http://127.0.0.1:{ray_runtime.metrics_port}/metrics").text

    def has(name: str, **labels: str) -> bool:
        wanted = [f'{key}="{value}"' for key, value in labels.items()]
        return any(
            line.startswith(f"ray_{name}") and all(w in line for w in wanted)
            for line in exported().splitlines()
        )

    prod = {"adapter": "reconcile", "version": "v2", "route": "chat"}
    served.wait_for(lambda: has("distillery_request_latency_seconds_bucket", **prod))
    assert has("distillery_request_latency_seconds_bucket", adapter="base", version="-")
    assert has("distillery_request_latency_seconds_bucket", **prod, le="120.0")
    assert has("distillery_time_to_first_token_seconds_count", **prod)
    assert has("distillery_completion_tokens_total", **prod)
    assert has("distillery_requests_in_flight", **prod)
    assert has("distillery_errors_total", adapter="unknown", kind="unknown_model")
    assert has("distillery_adapter_loads_total", adapter="wide", outcome="refused")
    # Whatever clients ask for, an unknown model is one label.
    for number in range(5):
        served.ask(f"made-up-{number}")
    time.sleep(2.5)
    assert "made-up" not in exported()


def test_a_real_prometheus_records_the_p90(
    served: Served, ray_runtime: Any, free_port: Callable[[], int], tmp_path: Path
) -> None:
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed: apt-get install prometheus")
    shutil.copy(MONITORING / "rules.yml", tmp_path)
    config = (MONITORING / "prometheus.yml").read_text()
    assert "localhost:8090" in config
    config = config.replace("localhost:8090", f"localhost:{ray_runtime.metrics_port}")
    config = config.replace("interval: 5s", "interval: 1s").replace("timeout: 4s", "timeout: 1s")
    (tmp_path / "prometheus.yml").write_text(config)
    rules = (tmp_path / "rules.yml").read_text()
    (tmp_path / "rules.yml").write_text(rules.replace("interval: 5s", "interval: 1s"))
    port = free_port()
    server = subprocess.Popen(
        [
            "prometheus",
            f"--config.file={tmp_path / 'prometheus.yml'}",
            f"--storage.tsdb.path={tmp_path / 'data'}",
            f"--web.listen-address=127.0.0.1:{port}",
        ],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )

    def p90() -> dict[tuple[str, str], float]:
        served.text("reconcile")
        query = {"query": 'distillery:request_latency_seconds:p90{route="chat"}'}
        try:
            found = httpx.get(f"http://127.0.0.1:{port}/api/v1/query", params=query).json()
        except httpx.TransportError:
            return {}
        values = {
            (r["metric"]["adapter"], r["metric"]["version"]): float(r["value"][1])
            for r in found.get("data", {}).get("result", [])
        }
        return {key: value for key, value in values.items() if value == value}

    try:
        served.wait_for(lambda: ("reconcile", "v1") in p90(), timeout_s=60)
        assert 0.01 <= p90()["reconcile", "v1"] <= 120
    finally:
        server.terminate()
        server.wait(timeout=20)


def test_the_request_log_has_the_requests(served: Served) -> None:
    served.wait_for(lambda: served.log.is_dir())
    time.sleep(4)
    rows = Store(served.log.parent).read_rows(served.log.name)
    asked = [row for row in rows if row["request_id"] == "order-17"]
    assert len(asked) == 1
    row = asked[0]
    assert row["example_id"] == example_id(QUESTION)
    assert (row["model_asked"], row["model_answered"]) == ("reconcile", "reconcile@v1")
    assert json.loads(row["messages"]) == QUESTION
    assert row["completion_tokens"] == 1
    assert row["latency_s"] >= row["ttft_s"] > 0
    assert {row["status"] for row in rows} >= {200, 400, 404}


def test_a_client_that_leaves_stops_its_generation(served: Served) -> None:
    fields = {"model": "reconcile", "messages": QUESTION, "stream": True, "ignore_eos": True}
    with served.http.stream(
        "POST", "/v1/chat/completions", json=fields | {"max_tokens": 1500}
    ) as response:
        assert response.status_code == 200
        next(response.iter_lines())
    id_ = response.headers["x-request-id"]

    def left() -> list[dict[str, Any]]:
        store = Store(served.log.parent)
        rows = store.read_rows(served.log.name) if store.names(served.log.name) else []
        return [row for row in rows if row["request_id"] == id_]

    served.wait_for(left)
    assert [row["status"] for row in left()] == [499]


def test_a_killed_replica_is_replaced_and_leaves_no_engine(served: Served) -> None:
    before = served.text("reconcile@v2")
    engine = only(processes(title="VLLM::EngineCore"))
    replica = parent_of(engine)
    assert replica != os.getpid()
    os.kill(replica, signal.SIGKILL)
    served.wait_for(lambda: not Path(f"/proc/{engine}").exists(), timeout_s=60)
    # Until another is warm a request waits or is told when to come back; it is never wrong.
    meanwhile = served.ask("reconcile@v2")
    assert meanwhile.status_code in (200, 503, 504)
    if meanwhile.status_code == 503:
        assert int(meanwhile.headers["retry-after"]) > 0
    served.wait_for(lambda: served.ask("reconcile@v2").status_code == 200, timeout_s=300)
    assert served.text("reconcile@v2") == before
    assert parent_of(only(processes(title="VLLM::EngineCore"))) != replica
