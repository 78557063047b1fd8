"""What a run's training cannot do is said before a prompt is paid for."""

from __future__ import annotations

import json
import re

import pytest
from click.testing import CliRunner

from cluster.errors import ConfigError, DistilleryError
from jobs.cli import cli
from jobs.config import load_run_config
from jobs.display import Display
from jobs.init import init_task
from jobs.preflight import preflight
from jobs.run import Run

MODEL = """
[[teacher.members]]
kind = "litellm"
model = "openai/x"
price = {input_usd_per_mtok = 1, output_usd_per_mtok = 1}
"""
SEVERAL = f'[teacher]\nkind = "several"\ncombine = "mixture"\n{MODEL}{MODEL}temperature = 0.5\n'


@pytest.fixture
def starter(tmp_path):
    """The task that `distillery init` writes, with its run.toml."""
    folder = tmp_path / "tickets"
    init_task(str(folder))
    return folder


def starter_run(folder, *overrides):
    flags = ["--run.root", str(folder / "runs"), *overrides]
    return Run(load_run_config([folder / "run.toml"], overrides=flags), Display())


def run_of(tmp_path, text, *overrides):
    (tmp_path / "more.toml").write_text(text)
    files = ["jobs/runs/smoke.toml", tmp_path / "more.toml"]
    return Run(load_run_config(files, overrides=overrides), Display())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('[train]\nmethod = "dpo"', "several answers a prompt, and the teacher gives one"),
        ('[train]\nmethod = "dpo"\ndpo.pairs = "nowhere.jsonl"', "nowhere.jsonl"),
        ('[train]\nmethod = "kd"\nkd.teacher = "./nowhere"', "train.kd.teacher './nowhere'"),
        ('[train]\nmethod = "dpo"\n[student]\ntuning = "full"', "needs an adapter"),
        (f'{SEVERAL}[train]\nmethod = "cot"', "no teacher is asked for any"),
    ],
)
def test_a_method_that_will_lack_something_is_refused(tmp_path, text, message):
    run = run_of(tmp_path, text, "--run.root", str(tmp_path))
    with pytest.raises(DistilleryError, match=message):
        preflight(run, ["train"])


@pytest.mark.parametrize("tuning", ["dora", "full"])
def test_what_no_engine_holds_is_trained_and_not_served(tmp_path, tuning):
    run = run_of(tmp_path, f'[student]\ntuning = "{tuning}"', "--run.root", str(tmp_path))
    with pytest.raises(DistilleryError, match="`--until train`"):
        preflight(run, ["train", "evaluate"])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, r"task.toml: verify 'verify:check'.*verify.py"),
        ("def chekc(variables, answer):\n    return True\n", "no function 'check'"),
        ("import nowhere_at_all\n", "ModuleNotFoundError: No module named 'nowhere_at_all'"),
    ],
)
def test_a_verifier_that_cannot_be_loaded_stops_before_the_teacher_is_paid(starter, text, message):
    toml = starter / "task.toml"
    toml.write_text('verify = "verify:check"\n' + toml.read_text())
    if text is not None:
        (starter / "verify.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        preflight(starter_run(starter), ["generate", "curate"])


def dry_run(folder, *flags):
    root = ["--run.root", str(folder / "runs")]
    return CliRunner().invoke(cli, ["run", str(folder / "run.toml"), "--dry-run", *root, *flags])


def test_a_dry_run_of_a_recording_makes_the_prompts_and_writes_nothing(starter):
    done = dry_run(starter)
    assert done.exit_code == 0, done.output
    assert "replay:answers.jsonl is asked nothing" in done.output
    assert not (starter / "runs").exists()


def test_a_dry_run_prints_what_deepspeed_is_given(starter):
    done = dry_run(starter, "--train.deepspeed.zero_optimization.reduce_bucket_size", "7")
    assert done.exit_code == 0, done.output
    told, _, settings = done.output.partition("merged over them:\n")
    assert "deepspeed.json" in told
    printed = json.loads(settings)
    assert printed["zero_optimization"]["reduce_bucket_size"] == 7
    assert printed["zero_optimization"]["stage"] == 2
    assert "merged over them" not in dry_run(starter, "--until", "curate").output


PROMPT = '{"id": "t1", "product": "p", "problem": "q", "ticket": "It is late."}\n'


@pytest.mark.parametrize(
    ("file", "text", "message"),
    [
        ("prompts.jsonl", None, r"prompts.jsonl: no such file"),
        ("prompts.jsonl", PROMPT + '{"id": ', r"line 2: "),
        ("prompts.jsonl", PROMPT * 2, r"'t1' stands twice"),
        ("prompts.jsonl", PROMPT.replace("ticket", "tikcet"), r"'ticket' is undefined"),
        ("prompts.jsonl", PROMPT, r"no prompt is left for the"),
        ("answers.jsonl", "", r"answers.jsonl holds nothing"),
    ],
)
def test_broken_prompts_or_answers_stop_a_dry_run_and_a_run_before_ray(
    starter, file, text, message
):
    if text is None:
        (starter / file).unlink()
    else:
        (starter / file).write_text(text)
    with pytest.raises(DistilleryError, match=message):
        raise dry_run(starter).exception
    with pytest.raises(DistilleryError, match=message):
        preflight(starter_run(starter), ["generate"])


def test_a_dry_run_knows_the_stages_and_a_generator(starter):
    with pytest.raises(ConfigError, match=r"--until 'bogus': the stages are generate, .*deploy"):
        raise dry_run(starter, "--until", "bogus").exception
    toml = starter / "task.toml"
    toml.write_text(toml.read_text().replace('file = "prompts.jsonl" ', 'generator = "make:all" '))
    (starter / "make.py").write_text("import nowhere_at_all\n")
    with pytest.raises(ConfigError, match=r"make.py cannot be loaded: ModuleNotFoundError"):
        raise dry_run(starter).exception
    with pytest.raises(ConfigError, match=r"make.py cannot be loaded: ModuleNotFoundError"):
        preflight(starter_run(starter), ["generate"])


def with_a_model(folder):
    """Take the starter's own advice: its commented teacher in place of the recording."""
    file = folder / "run.toml"
    text = file.read_text()
    advised = "\n".join(re.findall(r"^#   (.*)$", text, re.MULTILINE))
    recorded = 'kind = "replay"\nfile = "answers.jsonl"'
    assert recorded in text
    file.write_text(text.replace(recorded, advised))


@pytest.mark.slow  # LiteLLM takes seconds to import
def test_the_model_that_the_starter_names_is_taken_as_it_stands(starter, monkeypatch):
    with_a_model(starter)
    monkeypatch.delenv("DEEPSEEK_API_KEY", raising=False)
    done = dry_run(starter)
    assert done.exit_code == 0, done.output
    assert "216 " in done.output
    assert "dollars" in done.output
    monkeypatch.setenv("DEEPSEEK_API_KEY", "x")
    preflight(starter_run(starter), ["generate", "curate"])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("anthropic/claude-sonnet-4-20250514", "accept_teacher_terms = true"),
        ("openai/never-heard-of", r"give \[teacher.price\]"),
    ],
)
def test_a_dry_run_refuses_the_teacher_that_the_run_refuses(starter, monkeypatch, model, message):
    monkeypatch.setenv("ANTHROPIC_API_KEY", "x")
    monkeypatch.setenv("OPENAI_API_KEY", "x")
    with_a_model(starter)
    flags = ["--teacher.model", model]
    with pytest.raises(ConfigError, match=message):
        raise dry_run(starter, *flags).exception
    with pytest.raises(ConfigError, match=message):
        preflight(starter_run(starter, *flags), ["generate"])
