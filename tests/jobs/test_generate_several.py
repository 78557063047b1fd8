"""Several teachers, samples, reasoning and written prompts, asked for real over HTTP or by vLLM."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from loopback import free_port
from openai_server import openai_server

from distill.teach.journal import read_journal
from jobs.init import init_task

pytestmark = [pytest.mark.ray, pytest.mark.timeout(400)]
ROOT = Path(__file__).parents[2]
WORDS = [f"word{number}" for number in range(3000)]
TEACHERS = """
[prompts]
train = {train}
validation = 4
test = 6

[prompts.make]
kind = "self_instruct"
requests = 2

[prompts.make.writer]
kind = "litellm"
model = "openai/writer"
api_base = "{url}"
price = {{ input_usd_per_mtok = 1.0, output_usd_per_mtok = 1.0 }}

[teacher]
kind = "several"

[[teacher.members]]
kind = "litellm"
model = "openai/terse"
api_base = "{url}"
repair = false
price = {{ input_usd_per_mtok = 1.0, output_usd_per_mtok = 1.0 }}

[[teacher.members]]
kind = "litellm"
model = "openai/thinker"
api_base = "{url}"
repair = false
reasoning = true
samples = 2
temperature = 0.7
seed = 5
price = {{ input_usd_per_mtok = 1.0, output_usd_per_mtok = 1.0 }}
"""
VLLM = """
[prompts]
train = 20
validation = 4
test = 6

[teacher]
kind = "vllm"
model = "{model}"
max_tokens = 64
samples = 2
temperature = 1.0
seed = 5
batch_size = 16
engine = {{ max_model_len = 512 }}
"""


def respond(body, number):
    """A writer of tickets; a terse teacher that half the time answers prose; one that reasons."""
    text = body["messages"][-1]["content"]
    if body["model"] == "writer":
        rng = random.Random(text)
        tickets = [
            {
                "product": f"p{number}-{n}",
                "problem": "odd",
                "ticket": " ".join(rng.sample(WORDS, 9)),
            }
            for n, words in enumerate(rng.sample(WORDS, 9) for _ in range(8))
        ]
        return 200, json.dumps(tickets)
    answer = json.dumps({"team": "billing", "urgency": "low"})
    if body["model"] == "terse":
        return 200, answer if len(text) % 2 else "Billing, I would say."
    if body["seed"] == 6:
        return 200, f"<reasoning>Perhaps shipping.</reasoning>{answer.replace('low', 'high')}"
    return 200, f"<reasoning>It is about money.</reasoning>{answer}"


def generate(folder: Path, config: str) -> subprocess.CompletedProcess:
    if not (folder / "tickets").exists():
        init_task(str(folder / "tickets"))
    (folder / "more.toml").write_text(config)
    return subprocess.run(
        [
            sys.executable, "-m", "jobs.generate", "--config", str(folder / "tickets/run.toml"),
            "--config", str(folder / "more.toml"), "--run.root", str(folder / "runs"),
            "--cluster.metrics_port", str(free_port()),
        ],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


def rows(folder: Path, file: str) -> list[dict]:
    return pq.read_table(next((folder / "runs").glob("tickets-*")) / file).to_pylist()


def test_the_jury_keeps_the_best_of_several_answers_to_prompts_that_a_model_wrote(
    joined_ray, tmp_path
):
    with openai_server(respond) as server:
        done = generate(tmp_path, TEACHERS.format(url=server.url, train=250))
        assert done.returncode == 0, done.stderr
        asked = len(server.requests)
        again = generate(tmp_path, TEACHERS.format(url=server.url, train=250) + "concurrency = 4\n")
        assert again.returncode == 0, again.stderr
        assert len(server.requests) == asked
    train = rows(tmp_path, "prompts/train.parquet")
    written = [row for row in train if row["prompt_id"].startswith("self-instruct-")]
    assert len(train) == 250
    assert written
    answers = rows(tmp_path, "completions/answers.parquet")
    assert len(answers) == 260
    candidates = rows(tmp_path, "candidates.parquet")
    assert len(candidates) == 3 * 260
    terse = [row for row in answers if row["teacher"] == "litellm:openai/terse"]
    assert 0 < len(terse) < 260
    for row in answers:
        # What can be read beats what cannot; of equal ones the first stays.
        prose = len(row["messages"][-1]["content"]) % 2 == 0
        assert row["teacher"] == f"litellm:openai/{'thinker' if prose else 'terse'}"
        assert row["rationale"] == ("It is about money." if prose else "")
        assert (row["sample"], row["temperature"]) == (0, 0.7 if prose else 0.0)
        assert row["seed"] == (5 if prose else None)
    samples = [row for row in candidates if row["teacher"] == "litellm:openai/thinker"]
    assert {row["seed"] for row in samples} == {5, 6}
    paid = list(read_journal(tmp_path / "runs/answers/openai-thinker"))
    assert len(paid) == len(samples)
    [run] = (tmp_path / "runs").glob("tickets-*")
    bill = json.loads((run / "bill.json").read_text())
    stages = bill["stages"]
    assert stages["answers"]["models"].keys() == {
        "litellm:openai/terse", "litellm:openai/thinker",
    }  # fmt: skip
    assert stages["prompts"]["models"]["litellm:openai/writer"]["requests"] > 0
    assert bill["usd"] == pytest.approx(sum(stage["usd"] for stage in stages.values()))


@pytest.mark.model
def test_a_model_on_the_cluster_answers_in_the_tasks_form_and_each_answer_is_kept(
    tmp_path, tiny_model
):
    done = generate(tmp_path, VLLM.format(model=tiny_model))
    assert done.returncode == 0, done.stderr
    answers = rows(tmp_path, "completions/answers.parquet")
    assert len(answers) == 30
    assert {row["teacher"] for row in answers} == {f"vllm:{tiny_model}"}
    # A random model, and yet every answer fits the schema: vLLM decodes by it.
    for row in answers:
        assert set(json.loads(row["completion"])) == {"team", "urgency"}
        assert row["prompt_tokens"] > 0
        assert row["completion_tokens"] > 0
    assert len(rows(tmp_path, "candidates.parquet")) == 60
    [cache] = (tmp_path / "runs/answers").iterdir()
    known = list(read_journal(cache))
    assert len(known) == 60
