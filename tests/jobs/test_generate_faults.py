"""A killed driver, a full disk, a failing server: what was answered is kept, whole."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from loopback import free_port
from openai_server import OpenAIServer, openai_server

from distill.teach.journal import read_journal

pytestmark = [pytest.mark.ray, pytest.mark.timeout(300)]
ROOT = Path(__file__).parents[2]


def command(tmp_path: Path, url: str, *flags: str) -> list[str]:
    tmp_path.mkdir(exist_ok=True)
    teacher = tmp_path / "teacher.toml"
    teacher.write_text(
        f'[teacher]\nkind = "litellm"\nmodel = "openai/local"\napi_base = "{url}"\n'
        "concurrency = 8\nmax_retries = 0\nrepair = false\n"
        "price = { input_usd_per_mtok = 1.0, output_usd_per_mtok = 1.0 }\n"
    )
    return [
        sys.executable, "-m", "jobs.generate", "--config", "jobs/runs/smoke.toml",
        "--config", str(teacher), "--run.root", str(tmp_path / "runs"),
        "--cluster.metrics_port", str(free_port()), *flags,
    ]  # fmt: skip


def answers(tmp_path: Path) -> list[dict]:
    """What counts: the whole lines of the journal."""
    return [row for row in read_journal(tmp_path / "runs/answers/openai-local") if not row["error"]]


def files(tmp_path: Path) -> dict[str, bytes]:
    """The run's files with the answers."""
    folder = next((tmp_path / "runs").glob("smoke-*")) / "completions"
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def kill_session(process: subprocess.Popen) -> None:
    """SIGKILL the driver and the Ray it had started, as a machine that loses power would."""
    children = subprocess.run(
        ["pgrep", "-s", str(os.getsid(process.pid))], capture_output=True, text=True
    )
    os.kill(process.pid, signal.SIGKILL)
    for child in children.stdout.split():
        try:
            os.kill(int(child), signal.SIGKILL)
        except ProcessLookupError:
            continue
    process.wait()


def under_way(tmp_path: Path, server: OpenAIServer, *flags: str) -> subprocess.Popen:
    """Start a run in a session of its own; returns when it has asked 30 of its 72 prompts."""
    process = subprocess.Popen(
        command(tmp_path, server.url, *flags), cwd=ROOT, start_new_session=True,
        stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 120
    while len(server.requests) < 30 and time.monotonic() < deadline:
        time.sleep(0.02)
    return process


def test_a_killed_run_asks_again_only_for_what_was_in_flight(tmp_path):
    def respond(body, number):
        time.sleep(0.15)
        return 200, json.dumps({"prompt": body["messages"][-1]["content"]})

    with openai_server(respond) as server:
        process = under_way(tmp_path, server)
        kill_session(process)
        kept = {row["example_id"] for row in answers(tmp_path)}
        assert 0 < len(kept) < 72
        asked_before = len(server.requests)
        subprocess.run(command(tmp_path, server.url), cwd=ROOT, check=True, timeout=200)
        rows = answers(tmp_path)
        again = len(server.requests) - asked_before
        other = tmp_path / "undisturbed"
        subprocess.run(command(other, server.url), cwd=ROOT, check=True, timeout=200)
    assert files(other) == files(tmp_path)
    assert len(rows) == len({row["example_id"] for row in rows}) == 72
    assert again == 72 - len(kept)
    assert kept <= {row["example_id"] for row in rows}


def workers(process: subprocess.Popen) -> list[int]:
    """Processes of the run's Ray that ask the model."""
    found = subprocess.run(
        ["pgrep", "-s", str(os.getsid(process.pid)), "-f", "AskingWorker"],
        capture_output=True, text=True,
    )  # fmt: skip
    return [int(pid) for pid in found.stdout.split()]


def test_a_killed_worker_is_replaced_and_what_it_had_answered_is_not_asked_again(tmp_path):
    def respond(body, number):
        time.sleep(0.2)
        return 200, json.dumps({"prompt": body["messages"][-1]["content"]})

    with openai_server(respond) as server:
        # Pays for all, but not beside what the lost worker had set aside.
        process = under_way(tmp_path, server, "--teacher.budget_usd", "0.03")
        [worker, *_] = workers(process)
        os.kill(worker, signal.SIGKILL)
        time.sleep(0.5)  # what it had sent has arrived; its successor takes seconds to start
        kept = len(answers(tmp_path))
        asked_before = len(server.requests)
        assert 0 < kept < 72
        assert process.wait(timeout=200) == 0
    assert len(answers(tmp_path)) == 72
    assert len(server.requests) - asked_before == 72 - kept


def test_a_server_that_refuses_ends_with_its_own_words_and_keeps_the_rest(joined_ray, tmp_path):
    def respond(body, number):
        if not 72 < number <= 112:
            return 400, {"error": {"message": "quota exhausted", "type": "invalid_request_error"}}
        return 200, "{}"

    with openai_server(respond) as server:
        for missing in (72, 32):
            done = subprocess.run(
                command(tmp_path, server.url), cwd=ROOT, capture_output=True, text=True, timeout=200
            )
            assert done.returncode == 1
            assert f"{missing} of 72 prompts have no answer" in done.stderr
    assert "quota exhausted" in done.stderr
    assert "Traceback" not in done.stderr
    assert len(answers(tmp_path)) == 40
    run = next((tmp_path / "runs").glob("smoke-*"))
    failed = pq.read_table(run / "failed.parquet").to_pylist()
    assert [row["failure"] for row in failed] == ["refused"] * 32
    stages = json.loads((run / "bill.json").read_text())["stages"]
    bill = stages["answers"]["models"]["litellm:openai/local"]
    assert (bill["answered"], bill["failed"]) == (40, {"refused": 72 + 32})


def test_a_budget_stops_before_it_is_passed_and_holds_across_a_rerun(joined_ray, tmp_path):
    with openai_server(lambda body, number: (200, "{}")) as server:

        def spend(usd: str) -> subprocess.CompletedProcess:
            flags = ("--teacher.budget_usd", usd, "--teacher.max_tokens", "100")
            return subprocess.run(
                command(tmp_path, server.url, *flags),
                cwd=ROOT, capture_output=True, text=True, timeout=200,
            )  # fmt: skip

        first = spend("0.004")
        assert first.returncode == 1
        assert "teacher.budget_usd 0.004 is reached" in first.stderr
        run = next((tmp_path / "runs").glob("smoke-*"))
        paid = json.loads((run / "bill.json").read_text())["usd"]
        assert 0 < paid <= 0.004
        asked = len(server.requests)
        assert 0 < asked == len(answers(tmp_path)) < 72

        # What was spent before counts: a little more pays for a few more.
        again = spend("0.005")
        assert "teacher.budget_usd 0.005 is reached" in again.stderr
        assert paid < json.loads((run / "bill.json").read_text())["usd"] <= 0.005
        assert asked < len(server.requests) == len(answers(tmp_path)) < 72


def test_a_full_disk_is_said_in_a_sentence_and_a_rerun_goes_on(joined_ray, tmp_path):
    disk = tmp_path / "runs"
    disk.mkdir()
    mounted = (
        shutil.which("mount")
        and not subprocess.run(
            ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(disk)], capture_output=True
        ).returncode
    )
    if not mounted:
        pytest.skip("needs the right to mount a small tmpfs")
    long = "x" * 4000
    try:
        with openai_server(
            lambda body, number: (200, f"{long}{number}{os.urandom(3000).hex()}")
        ) as s:
            failed = subprocess.run(
                command(tmp_path, s.url), cwd=ROOT, capture_output=True, text=True, timeout=200
            )
            assert failed.returncode == 1
            assert "the disk is full" in failed.stderr or "No space left" in failed.stderr
            assert "Traceback" not in failed.stderr
            kept = {row["example_id"] for row in answers(tmp_path)}
            asked = len(s.requests)
            subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
            subprocess.run(command(tmp_path, s.url), cwd=ROOT, check=True, timeout=200)
            assert len(s.requests) - asked == 72 - len(kept)
        assert len({row["example_id"] for row in answers(tmp_path)}) == 72
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)
