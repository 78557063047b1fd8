"""Light modules stay light: each is imported alone, and `sys.modules` is looked at afterwards."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
HEAVY = ["torch", "vllm", "deepspeed", "transformers", "peft", "litellm", "bitsandbytes"]
# What is read before anything starts: it must not pay for Ray either.
WITHOUT_RAY = [
    "cluster.config",
    "cluster.errors",
    "distill.config",
    "distill.records",
    "serve.config",
    "jobs.cli",
    "jobs.config",
    "jobs.doctor",
    "jobs.serve_app",
]
# A child process for each module, so that none profits from another's imports. What nearly all of
# them import is there before, for speed; were it heavy, each of them would be reported.
PROBE = """
import importlib, json, os, sys
import cluster.storage, jobs.config, rich.console
modules, unwanted = json.loads(sys.argv[1])
for module in modules:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        importlib.import_module(module)
        found = [name for name in unwanted if name in sys.modules]
        if found:
            print(f"{module} imports {', '.join(found)}")
        sys.stdout.flush()
        os._exit(0)
    _, status = os.waitpid(child, 0)
    if status:
        print(f"{module} cannot be imported alone")
"""


def modules_below(folder: str) -> list[str]:
    files = sorted((ROOT / folder).rglob("*.py"))
    names = [".".join(file.relative_to(ROOT).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names if not name.endswith("__main__")]


def offenders(modules: list[str], *, unwanted: list[str]) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-c", PROBE, json.dumps([modules, unwanted])],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return [line + "\n" + done.stderr for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize(
    "folder", ["cluster", "distill/tasks", "distill/prompts", "distill/train/plan", "jobs"]
)
def test_every_module_of_a_light_folder(folder: str) -> None:
    modules = modules_below(folder)
    assert modules
    assert offenders(modules, unwanted=HEAVY) == []


def test_what_is_read_first_does_without_ray() -> None:
    assert offenders(WITHOUT_RAY, unwanted=[*HEAVY, "ray"]) == []


def test_the_probe_sees_an_offender() -> None:
    (line,) = offenders(["wave", "sqlite3", "json"], unwanted=["_sqlite3"])
    assert line.startswith("sqlite3 imports _sqlite3")
