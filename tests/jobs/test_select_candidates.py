"""`distillery select-teacher` with candidates that are asked now, over HTTP, and a jury."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
from loopback import free_port
from openai_server import openai_server

from cluster.errors import ConfigError, PrerequisiteError
from jobs.init import init_task
from jobs.select_teacher import select_teacher

pytestmark = pytest.mark.slow  # LiteLLM takes seconds to import
ROOT = Path(__file__).parents[2]
CONFIG = """
[run]
root = "{folder}/runs"

[task]
folder = "{folder}/tickets"

[prompts]
train = 160
validation = 16
test = 40

[select]
out = "{folder}/selection"
sample = 20
bootstrap_samples = 200

[[select.candidates]]
kind = "replay"
file = "answers.jsonl"

[[select.candidates]]
kind = "litellm"
model = "openai/sloppy"
api_base = "{url}"
repair = false
temperature = 0.2
price = {{ input_usd_per_mtok = 100.0, output_usd_per_mtok = 100.0 }}

[[select.candidates]]
kind = "litellm"
model = "openai/sloppy"
api_base = "{url}"
repair = false
temperature = 0.9
price = {{ input_usd_per_mtok = 100.0, output_usd_per_mtok = 100.0 }}

[[jury.judges]]
kind = "parse"

[[jury.judges]]
kind = "litellm"
model = "openai/judge"
api_base = "{url}"
price = {{ input_usd_per_mtok = 1.0, output_usd_per_mtok = 1.0 }}

[cluster]
metrics_port = {port}
"""


def respond(body, number):
    """A candidate that answers prose once in two, more at a high temperature; a judge of teams."""
    text = body["messages"][-1]["content"]
    if body["model"] == "judge":
        shown = {"reasoning": "", "issues": [], "confidence": 1.0}
        wrong = {"score": 0.2, "issues": ["wrong-team"]}
        right = {"score": 0.9}
        team = wrong if "Billing, I think" in text else right
        return 200, json.dumps({"team": shown | team, "urgency": shown | right})
    if len(text) % 2 or body["temperature"] > 0.5:
        return 200, "Billing, I think."
    return 200, json.dumps({"team": "billing", "urgency": "low"})


@pytest.fixture
def told(tmp_path):
    """The configuration for a server's address."""
    init_task(str(tmp_path / "tickets"))

    def write(url: str) -> Path:
        file = tmp_path / "select.toml"
        file.write_text(CONFIG.format(folder=tmp_path, url=url, port=free_port()))
        return file

    return write


def select(*arguments: object) -> subprocess.CompletedProcess:
    return subprocess.run(
        [sys.executable, "-m", "jobs.cli", "select-teacher", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip


@pytest.mark.ray
def test_candidates_are_asked_once_and_the_jury_names_the_best(joined_ray, told, tmp_path):
    with openai_server(respond) as server:
        file = told(server.url)
        done = select(file)
        assert done.returncode == 0, done.stdout + done.stderr
        asked = len(server.requests)
        again = select(file, "--select.seed", "17")
        assert again.returncode == 0, again.stdout + again.stderr
        assert len(server.requests) == asked
    # 20 prompts to each of two; the judge saw all answers of all three.
    assert asked == 2 * 20 + 3 * 20
    selection = json.loads((tmp_path / "selection/selection.json").read_text())
    assert selection["num_prompts"] == 20
    best, second, third = selection["candidates"]
    assert best == "replay:answers.jsonl"
    assert second == "litellm:openai/sloppy (temperature=0.2)"
    assert third == "litellm:openai/sloppy (temperature=0.9)"
    assert not selection["is_noise"]
    figures = selection["candidates"]
    assert figures[third]["dimensions"]["team"]["score"] == pytest.approx(0.2)
    assert figures[third]["issues"]["wrong-team"] == 20
    assert figures[second]["usd_per_1k"] > 0
    assert figures[best]["dimensions"]["parsed"]["score"] == 1.0
    assert (tmp_path / "selection/selection.html").is_file()
    # Both temperatures are one model's, and what it cost is counted once.
    bill = json.loads(next((tmp_path / "runs").glob("select-*/bill.json")).read_text())
    sloppy = bill["stages"]["answers"]["models"]["litellm:openai/sloppy"]
    assert (sloppy["answered"], sloppy["requests"]) == (40, 40)
    # Where the runs below the same root look for answers first.
    assert list((tmp_path / "runs/answers").glob("openai-sloppy/*"))


def test_what_it_would_cost_is_said_before_anything_is_asked(told):
    with openai_server(respond) as server:
        done = select(told(server.url), "--dry-run")
        assert done.returncode == 0, done.stderr
        assert server.requests == []
    assert done.stdout.count("asking litellm:openai/sloppy") == 2
    assert "replay:answers.jsonl is asked nothing" in done.stdout
    assert len(re.findall(r"prompts\s+│\s+20\s", done.stdout)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("temperature = 0.9", "temperature = 0.2"), "more than once with the same settings"),
        (('[task]\nfolder = "{folder}/tickets"\n', ""), "give \\[task\\] folder"),
        (("sample = 20", 'answers = ["here"]'), "one of the two"),
        (("temperature = 0.9", "temperature = 0.9\nsamples = 3"), "candidate 3 has samples above"),
        (('kind = "parse"', 'kind = "litellm"\nmodel = "openai/judge"'), "called openai/judge"),
    ],
)
def test_what_cannot_work_is_said_before_anything_is_asked(told, tmp_path, change, message):
    file = told("http://127.0.0.1:9/v1")
    text = file.read_text()
    old = change[0].format(folder=tmp_path)
    assert old in text
    file.write_text(text.replace(old, change[1]))
    with pytest.raises(ConfigError, match=message):
        select_teacher([file])


def test_a_pairwise_judge_without_its_key_is_said_before_a_candidate_is_paid(told, monkeypatch):
    monkeypatch.delenv("PAIR_KEY", raising=False)
    judge = '[{model = "openai/pair", api_key_env = "PAIR_KEY"}]'
    with openai_server(respond) as server:
        with pytest.raises(PrerequisiteError, match="PAIR_KEY"):
            select_teacher([told(server.url)], overrides=("--select.pairwise", judge))
        assert server.requests == []
