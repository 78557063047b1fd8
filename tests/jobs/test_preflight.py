"""What a run's training cannot do is said before a prompt is paid for."""

from __future__ import annotations

import pytest

from cluster.errors import ConfigError, DistilleryError
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
