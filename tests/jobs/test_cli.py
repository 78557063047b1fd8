"""What a person meets before anything is loaded: help, and errors that name a fix."""

import itertools
import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

# Each starts a process.
pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def distillery(*arguments, code):
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
    )
    output = done.stdout + done.stderr
    assert done.returncode == code, output
    assert "Traceback" not in output
    return output


@pytest.fixture
def model(tmp_path):
    """A folder that looks like a model as far as anything before loading can see."""
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    return folder


@pytest.fixture
def flags(tmp_path, model):
    return ["--student.model", str(model), "--run.root", str(tmp_path / "runs")]


def test_help_lists_the_commands():
    output = distillery("--help", code=0)
    for command in ("run", "submit", "serve", "ask", "init", "doctor", "adapters", "config"):
        assert command in output


def test_every_field_is_documented():
    output = distillery("config", code=0)
    assert "--train.learning_rate" in output
    lines = output.splitlines()
    for line, below in itertools.pairwise(lines):
        if line.startswith("  --"):
            assert below.strip(), f"{line} has no documentation"


def test_a_resolved_configuration_is_json_with_every_default():
    resolved = json.loads(distillery("config", "jobs/runs/demo.toml", code=0))
    assert resolved["student"]["rank"] == 16
    assert resolved["train"]["zero_stage"] == 2


def test_a_typo_exits_2_and_names_the_field(flags):
    output = distillery("run", "jobs/runs/demo.toml", *flags, "--train.epoch", "2", code=2)
    assert "train.epoch: unknown field; did you mean 'epochs'?" in output


def test_a_missing_file_exits_2():
    assert "no such configuration file" in distillery("run", "nowhere.toml", code=2)


def test_a_model_that_is_not_there_stops_the_run_before_ray_starts(tmp_path):
    flags = ["--student.model", str(tmp_path / "none"), "--run.root", str(tmp_path / "runs")]
    output = distillery("run", "jobs/runs/demo.toml", *flags, code=2)
    assert "there is no" in output
    assert "make model" in output


def test_a_model_without_a_chat_template_is_refused(model, flags):
    (model / "chat_template.jinja").unlink()
    output = distillery("run", "jobs/runs/demo.toml", *flags, code=2)
    assert "no chat template" in output


def test_a_taken_port_is_named_before_the_engine_loads(flags):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        output = distillery("run", "jobs/runs/demo.toml", *flags, "--serve.port", port, code=2)
    assert f"serve.port {port} is taken" in output


def test_too_little_memory_is_said_before_the_model_loads(flags):
    least = ["--cluster.min_free_memory_gb", "100000", "--serve.port", "18431"]
    output = distillery("run", "jobs/runs/demo.toml", *flags, *least, code=2)
    assert "needs 100000.0 GiB of free memory" in output


@pytest.mark.slow
def test_a_dry_run_says_what_it_would_cost_and_writes_nothing(tmp_path):
    root = tmp_path / "runs"
    sizes = ["--prompts.train", "60", "--prompts.validation", "15", "--prompts.test", "15"]
    flags = ["--run.root", str(root), "--dry-run"]
    output = distillery("run", "jobs/runs/interview.toml", *sizes, *flags, code=0)
    assert "deepseek/deepseek-chat" in output
    # 90 answers of at most 2,048 tokens at $0.42 a million.
    assert "at most 184,320" in output
    assert "dollars" in output
    assert not root.exists()


@pytest.mark.slow
def test_a_missing_key_stops_before_any_work(flags, tmp_path, monkeypatch):
    monkeypatch.delenv("ANTHROPIC_API_KEY", raising=False)
    teacher = tmp_path / "teacher.toml"
    teacher.write_text(
        '[teacher]\nkind = "litellm"\nmodel = "anthropic/claude-sonnet-4-20250514"\n'
        "accept_teacher_terms = true\n"
    )
    smoke = ["jobs/runs/smoke.toml", str(teacher)]
    output = distillery("run", *smoke, *flags, code=2)
    assert "set the environment variable ANTHROPIC_API_KEY" in output
    assert not list((tmp_path / "runs").glob("*/completions"))


def test_init_writes_a_task_that_loads_and_overwrites_nothing(tmp_path):
    folder = tmp_path / "tickets"
    assert "next: distillery run" in distillery("init", str(folder), code=0)
    resolved = json.loads(distillery("config", str(folder / "run.toml"), code=0))
    assert resolved["task"]["folder"] == str(folder)
    assert "exists and is not empty" in distillery("init", str(folder), code=2)


def test_stages_say_which_stage_comes_first(flags):
    done = subprocess.run(
        [sys.executable, "-m", "jobs.publish", "--config", "jobs/runs/demo.toml", *flags],
        cwd=ROOT, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 1
    assert "run `python -m jobs.gate" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["capacity", "--curve", "nope.json", "--rate", "2"], "nope.json: no such file"),
        (["capacity", "--curve", "nope.json", "--rate", "2", "--plot", "p.txt"], "end in .png"),
        (["init", "FILE"], "is a file; choose another name"),
        (["adapters", "list", "--registry", "s3x://somewhere"], "no place that can be opened"),
        (["adapters", "list", "--registry", "FILE"], "FILE"),
        (["adapters", "list", "reconcil"], "reconcil is not in registry; known: "),
        (["keys", "create", "x", "--keys", "FILE"], "FILE"),
    ],
)
def test_a_wrong_place_is_one_sentence(arguments, said, tmp_path):
    file = tmp_path / "file.txt"
    file.write_text("not what you think")
    given = [str(file) if argument == "FILE" else argument for argument in arguments]
    assert said.replace("FILE", str(file)) in distillery(*given, code=2)


def test_promoting_what_is_not_there_lists_what_is(tmp_path):
    registry = ["--registry", str(tmp_path)]
    output = distillery("adapters", "promote", "reconcile@v3", *registry, code=2)
    assert "reconcile@v3 is not in" in output
    assert "known: none" in output
