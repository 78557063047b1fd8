"""The whole way, on real engines: a prompt becomes a trained, gated, published, served answer.

Each test continues where the one before it stopped, as an engineer would at a terminal.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import httpx
import pyarrow.parquet as pq
import pytest
from loopback import free_port
from openai import OpenAI

pytestmark = [pytest.mark.ray, pytest.mark.model, pytest.mark.timeout(900)]
ROOT = Path(__file__).parents[2]


class Workspace:
    """A folder with its own runs and registry, and the flags that point there."""

    def __init__(self, folder: Path, model: Path):
        self.folder = folder
        self.port = free_port()
        self.metrics_port = free_port()
        self.flags = [
            "--student.model", str(model),
            "--run.root", str(folder / "runs"),
            "--registry.uri", str(folder / "registry"),
            "--serve.port", str(self.port),
            "--serve.request_log", str(folder / "requests"),
            "--cluster.metrics_port", str(self.metrics_port),
            "--cluster.min_free_memory_gb", "1",
        ]  # fmt: skip
        self.registry = ["--registry", str(folder / "registry")]

    def command(self, *arguments: str) -> list[str]:
        return [sys.executable, "-m", "jobs.cli", *arguments]

    def distillery(self, *arguments: str, code: int = 0) -> str:
        done = subprocess.run(
            self.command(*arguments), cwd=ROOT, capture_output=True, text=True, timeout=800
        )
        output = done.stdout + done.stderr
        assert done.returncode == code, output
        return output

    def run(self, *arguments: str, code: int = 0) -> str:
        return self.distillery("run", "jobs/runs/smoke.toml", *self.flags, *arguments, code=code)

    @property
    def latest(self) -> Path:
        return (self.folder / "runs/latest").resolve()


@pytest.fixture(scope="module")
def workspace(tmp_path_factory: pytest.TempPathFactory, tiny_model: Path) -> Workspace:
    return Workspace(tmp_path_factory.mktemp("spine"), tiny_model)


def test_one_command_takes_the_smoke_run_through_every_stage(workspace):
    output = workspace.run()
    for stage in ("generate", "curate", "train", "evaluate", "gate", "publish", "deploy"):
        assert f"✓ {stage}" in output
    assert "Traceback" not in output
    assert "reconcile@v1" in output
    evaluation = json.loads((workspace.latest / "evaluation.json").read_text())
    assert set(evaluation["models"]) == {"base", "student", "teacher"}
    assert evaluation["num_prompts"] == 16
    assert evaluation["models"]["teacher"]["accuracy"] == 1.0


def test_running_it_again_does_nothing_again(workspace):
    before = {p: p.stat().st_mtime_ns for p in workspace.latest.rglob("*.parquet")}
    begin = time.monotonic()
    output = workspace.run()
    assert output.count("done before") == 7
    assert {p: p.stat().st_mtime_ns for p in workspace.latest.rglob("*.parquet")} == before
    assert time.monotonic() - begin < 60


def test_one_example_can_be_followed_through_every_artefact(workspace):
    """DESIGN's table, one row a step, joined by `example_id`."""
    run = workspace.latest

    def ids(path: str) -> set[str]:
        return set(pq.read_table(run / path, columns=["example_id"])["example_id"].to_pylist())

    assert json.loads((run / "task.json").read_text())["name"] == "reconcile"
    trained = sorted(ids("prompts/train.parquet"))[0]
    assert trained in ids("completions")
    assert trained in ids("curated/train.parquet")
    assert trained not in ids("rejected/train.parquet")
    assert trained in ids("verdicts")
    held_out = sorted(ids("prompts/test.parquet"))[0]
    assert held_out not in ids("prompts/train.parquet")
    assert held_out in ids("predictions")
    for artefact in ("yield.json", "curves.jsonl", "evaluation.json", "report.html", "gates.json"):
        assert (run / artefact).stat().st_size > 0
    assert (run / "adapter/adapter_model.safetensors").is_file()
    assert list((run / "checkpoints").iterdir())
    manifest = json.loads((workspace.folder / "registry/reconcile/v1/manifest.json").read_text())
    assert manifest["task_digest"] == json.loads((run / "task.json").read_text())["digest"]
    aliases = json.loads((workspace.folder / "registry/reconcile/aliases.json").read_text())
    assert aliases["prod"]["version"] == 1
    served = json.loads((run / "deploy.json").read_text())["answers"]
    assert {a["served_by"] for a in served} == {"reconcile@v1"}
    asked = {a["example_id"] for a in served}
    assert held_out in ids("prompts/test.parquet")
    assert asked <= ids("prompts/test.parquet")
    logged = pq.read_table(workspace.folder / "requests").to_pylist()
    assert asked <= {row["example_id"] for row in logged}


def test_a_gate_that_fails_publishes_nothing_and_exits_3(workspace):
    output = workspace.run("--gates.max_validation_loss", "0.0001", code=3)
    assert "the student may not ship" in output
    assert "0.0001" in output
    assert "FAILED" in output
    listed = workspace.distillery("adapters", "list", *workspace.registry)
    assert "reconcile@v2" not in listed


def test_an_adapter_from_elsewhere_is_published_without_moving_the_alias(workspace):
    from safetensors.torch import load_file, save_file

    other = workspace.folder / "other"
    shutil.copytree(workspace.latest / "adapter", other)
    weights = load_file(other / "adapter_model.safetensors")
    louder = {name: 5 * weight for name, weight in weights.items()}
    save_file(louder, other / "adapter_model.safetensors")
    model = workspace.flags[workspace.flags.index("--student.model") + 1]
    said = workspace.distillery(
        "adapters", "publish", str(other), "--name", "reconcile", "--base", model,
        *workspace.registry,
    )  # fmt: skip
    assert "reconcile@v2 is in" in said
    assert "no gate has seen it" in said
    listed = workspace.distillery("adapters", "list", *workspace.registry)
    assert "reconcile@v2" in listed
    aliases = json.loads((workspace.folder / "registry/reconcile/aliases.json").read_text())
    assert aliases["prod"]["version"] == 1


@pytest.fixture(scope="module")
def server(workspace):
    """`distillery serve` in a process of its own, stopped with Ctrl-C."""
    log = (workspace.folder / "serve.log").open("w")
    command = workspace.command("serve", "jobs/runs/smoke.toml", *workspace.flags)
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
    )
    url = f"http://127.0.0.1:{workspace.port}"
    try:
        deadline = time.monotonic() + 300
        while time.monotonic() < deadline:
            assert process.poll() is None, (workspace.folder / "serve.log").read_text()
            try:
                if httpx.get(f"{url}/ready", timeout=2).status_code == 200:
                    break
            except httpx.HTTPError:
                pass
            time.sleep(1)
        else:
            pytest.fail("not ready: " + (workspace.folder / "serve.log").read_text())
        yield url
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(90)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
        log.close()


def test_versions_swap_under_load_without_one_failed_request(workspace, server):
    client = OpenAI(base_url=f"{server}/v1", api_key="none", max_retries=0, timeout=60)
    prompt = [{"role": "user", "content": "Bank: 2025-03-14 | ACME | USD 10.00"}]
    stop = threading.Event()
    seen: list[str] = []
    failures: list[str] = []

    def ask() -> None:
        while not stop.is_set():
            try:
                raw = client.chat.completions.with_raw_response.create(
                    model="reconcile", messages=prompt, temperature=0, max_tokens=8
                )
                assert raw.parse().usage.completion_tokens > 0
                seen.append(raw.headers["x-distillery-model"])
            except Exception as error:
                failures.append(repr(error))

    def wait_for(version: str, least: int) -> None:
        deadline = time.monotonic() + 180
        while time.monotonic() < deadline:
            if seen and seen[-1] == version and len(seen) >= least:
                return
            time.sleep(0.1)
        pytest.fail(f"{version} did not answer: {seen[-5:]}, {failures[:3]}")

    threads = [threading.Thread(target=ask) for _ in range(4)]
    for thread in threads:
        thread.start()
    try:
        wait_for("reconcile@v1", 50)
        workspace.distillery("adapters", "promote", "reconcile@v2", *workspace.registry)
        wait_for("reconcile@v2", 150)
        workspace.distillery("adapters", "rollback", "reconcile", *workspace.registry)
        wait_for("reconcile@v1", 250)
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert len(seen) >= 200


def test_both_versions_can_be_asked_by_name_and_the_command_line_asks_too(workspace, server):
    names = {m.id for m in OpenAI(base_url=f"{server}/v1", api_key="none").models.list()}
    assert {"reconcile", "reconcile@v1", "reconcile@v2", "tiny-llama"} <= names
    flags = ["jobs/runs/smoke.toml", *workspace.flags, "--model", "reconcile@v2"]
    assert "reconcile@v2 (" in workspace.distillery("ask", *flags)


def test_a_real_prometheus_reads_the_p90_per_version(workspace, server, tmp_path):
    if shutil.which("prometheus") is None:
        pytest.skip("prometheus is not installed: `make system-deps`")
    monitoring = ROOT / "cluster/monitoring"
    config = (monitoring / "prometheus.yml").read_text()
    assert "localhost:8090" in config
    (tmp_path / "rules.yml").write_text((monitoring / "rules.yml").read_text())
    (tmp_path / "prometheus.yml").write_text(
        config.replace("localhost:8090", f"localhost:{workspace.metrics_port}")
    )
    port = free_port()
    process = subprocess.Popen(
        ["prometheus", "--config.file=prometheus.yml", f"--storage.tsdb.path={tmp_path}/data",
         f"--web.listen-address=127.0.0.1:{port}"],
        cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    client = OpenAI(base_url=f"{server}/v1", api_key="none")
    query = (
        "histogram_quantile(0.9, sum by (le, version) "
        "(ray_distillery_request_latency_seconds_bucket))"
    )
    try:
        found: dict[str, float] = {}
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not {"v1", "v2"} <= set(found):
            client.completions.create(model="reconcile", prompt="Bank", max_tokens=2)
            time.sleep(2)
            try:
                url = f"http://127.0.0.1:{port}/api/v1/query"
                answer = httpx.get(url, params={"query": query}).json()
            except httpx.HTTPError:
                continue
            found = {
                r["metric"].get("version", ""): float(r["value"][1])
                for r in answer["data"]["result"]
            }
        assert {"v1", "v2"} <= set(found), found
        assert all(0 < found[v] < 120 for v in ("v1", "v2")), found
    finally:
        process.terminate()
        process.wait(20)
