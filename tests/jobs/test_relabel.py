"""`distillery relabel`: from a server's log to a dataset version that the next run takes."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from loopback import free_port
from openai_server import openai_server
from production import asked, log_row, write_log

from cluster.errors import ConfigError
from distill.relabel.relabel import teacher_for
from distill.tasks.reconcile.reading import variables
from distill.tasks.reconcile.rules import answer
from distill.tasks.task import load_task
from distill.teach.config import LiteLLMTeacher, ProgramTeacher, SeveralTeachers
from jobs.relabel import relabel

ROOT = Path(__file__).parents[2]
TASK = load_task("reconcile")
TEACHER = """
[relabel.teacher]
kind = "litellm"
model = "openai/frontier"
api_base = "{url}"
max_tokens = 100
repair = false
max_retries = 0
price = {{ input_usd_per_mtok = 10.0, output_usd_per_mtok = 10.0 }}
"""


def respond(body, number):
    """A teacher that knows the rules, and has an opinion on everything else."""
    found = variables(body["messages"])
    return 200, answer(found) if found else "Frogs are fine."


def run(*arguments):
    done = subprocess.run(
        [sys.executable, "-m", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=250,
    )  # fmt: skip
    return done


@pytest.fixture
def loop(joined_ray, tmp_path):
    """A generated run and a log: 6 unreadable answers, 3 wrong, 2 unsure, 1 on frogs, 28 right."""
    rows = asked(TASK, 40, seed=99)
    log = [log_row(n, row, mean_logprob=-0.01) for n, row in enumerate(rows)]
    for row in log[:6]:
        row["completion"] = "Rounding, I think."
    for row in log[6:9]:
        wrong = {"classification": "SUSPICIOUS", "action": "write_off"}
        row["completion"] = json.dumps({**json.loads(row["completion"]), **wrong})
    for row in log[9:11]:
        row["mean_logprob"] = -1.5
    frogs = [{"role": "user", "content": "Do frogs mind rain? ann@example.com"}]
    log[11] |= {"messages": json.dumps(frogs), "completion": "No."}
    write_log(tmp_path / "log", log)
    flags = [
        "--run.root", tmp_path / "runs", "--serve.request_log", tmp_path / "log",
        "--cluster.metrics_port", free_port(),
    ]  # fmt: skip
    done = run("jobs.generate", "--config", "jobs/runs/smoke.toml", *flags)
    assert done.returncode == 0, done.stdout + done.stderr

    def command(url, budget):
        teacher = tmp_path / "teacher.toml"
        teacher.write_text(TEACHER.format(url=url))
        return run("jobs.cli", "relabel", "jobs/runs/smoke.toml", teacher, *flags,
                   "--budget-usd", budget)  # fmt: skip

    return command, flags


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_loop_closes(tmp_path, loop):
    command, flags = loop
    with openai_server(respond) as server:
        done = command(server.url, 1)
        assert done.returncode == 0, done.stdout + done.stderr
        first = len(server.requests)
        again = command(server.url, 1)
        assert again.returncode == 0, again.stdout + again.stderr
        assert len(server.requests) == first == 12
        sent = json.dumps(server.requests)
    # Nothing personal leaves the house.
    assert "ann@" not in sent
    assert "<EMAIL_1>" in sent
    manifest = json.loads((tmp_path / "runs/datasets/reconcile/v1/manifest.json").read_text())
    assert manifest["picked"] == {"parser": 7, "verifier": 3, "low_confidence": 2}
    assert manifest["reasons"] == {"parser": 6, "verifier": 3, "low_confidence": 2}
    assert manifest["rejected"] == {"schema": 1}
    assert manifest["masked"] == {"EMAIL": 1}
    assert manifest["added"] == 11
    assert 0 < manifest["usd"] < 1
    assert manifest["parent"]["name"].startswith("smoke-")
    assert "no answer passed the checks" in again.stdout
    assert not (tmp_path / "runs/datasets/reconcile/v2").exists()
    bill = json.loads((tmp_path / "runs/relabel-reconcile-v1/bill.json").read_text())
    assert bill["stages"]["answers"]["models"]["litellm:openai/frontier"]["answered"] == 12

    (command_line,) = [line for line in done.stdout.splitlines() if line.startswith("next")]
    assert command_line.endswith("runs/datasets/reconcile/v1/next.toml")
    following = ["--config", "jobs/runs/smoke.toml",
                 "--config", tmp_path / "runs/datasets/reconcile/v1/next.toml", *flags]  # fmt: skip
    for stage in ("generate", "curate"):
        step = run(f"jobs.{stage}", *following)
        assert step.returncode == 0, step.stdout + step.stderr
    folder = (tmp_path / "runs/latest").resolve()
    trained = {r["example_id"] for r in pq.read_table(folder / "curated/train.parquet").to_pylist()}
    added = {row["example_id"] for row in asked(TASK, 40, seed=99)[:11]}
    assert len(added & trained) >= 10  # one may share a vendor, amount and date with a held-out one
    before = json.loads((folder / "yield.json").read_text())["train"]
    assert before["rejected"] == {}


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_the_budget_is_kept_and_what_it_paid_for_is_not_asked_again(tmp_path, loop):
    command, _ = loop
    datasets = tmp_path / "runs/datasets/reconcile"
    with openai_server(respond) as server:
        # At most $0.0035 a request and $0.002 on average: it pays for some of the twelve.
        done = command(server.url, 0.01)
        assert done.returncode == 0, done.stdout + done.stderr
        first = json.loads((datasets / "v1/manifest.json").read_text())
        asked_first = len(server.requests)
        assert 0 < asked_first < 12
        assert 0 < first["usd"] <= 0.01
        assert first["not_answered"]["budget"] == 12 - asked_first
        assert "is reached" in done.stdout
        rest = command(server.url, 1)
        assert rest.returncode == 0, rest.stdout + rest.stderr
        assert len(server.requests) == 12
    second = json.loads((datasets / "v2/manifest.json").read_text())
    assert second["parent"] == {"name": "v1", "digest": first["digest"]}
    assert first["added"] + second["added"] == 11


def test_several_teachers_and_no_budget_are_refused_before_anything_is_asked():
    program = ProgramTeacher()
    several = SeveralTeachers(members=(program, program))
    with pytest.raises(ConfigError, match=r"set \[relabel\.teacher\]"):
        teacher_for(several, budget_usd=1)
    with pytest.raises(ConfigError, match="--budget-usd 0"):
        relabel([ROOT / "jobs/runs/smoke.toml"], budget_usd=0)
    model = LiteLLMTeacher(model="openai/x", samples=3, temperature=0.7, budget_usd=50)
    asked_here = teacher_for(model, budget_usd=1.5)
    assert (asked_here.samples, asked_here.budget_usd) == (1, 1.5)
