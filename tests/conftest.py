"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadFileScheduling

# Processes side by side on two cores: a slow example says nothing about the code.
settings.register_profile("distillery", deadline=None)
settings.load_profile("distillery")

TESTS = Path(__file__).parent
ROOT = TESTS.parent


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a 2-layer random Llama with a real tokenizer, made once a session."""
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    subprocess.run(
        [sys.executable, str(TESTS / "tiny.py"), str(folder)],
        check=True,
        cwd=ROOT,
        capture_output=True,
    )
    return folder


class Together(LoadFileScheduling):
    """`--dist loadfile`, where the files of a package (its fixtures are shared) count as one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        folder = (ROOT / file).parent
        return str(folder) if (folder / "__init__.py").is_file() else file


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> LoadFileScheduling | None:
    """Keep the tests that share fixtures in one process."""
    return Together(config, log) if config.getvalue("dist") == "loadfile" else None


LONGEST_FIRST = (
    "test_spine.py", "test_train_stage.py", "test_tune_search.py", "test_train_faults.py",
    "test_capacity_live.py", "test_policies.py", "test_watched.py", "test_front_served.py",
    "test_serving.py", "test_train_methods.py", "test_generate_several.py",
    "test_cache_logprobs.py", "test_cpu_lora_against_peft.py", "test_predict.py",
    "test_generate_faults.py", "test_relabel.py", "test_submit.py", "test_select_candidates.py",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first: what is broken shows early. Of the slow ones the longest file first.

    Two processes share the files; one that begins last would run on alone.
    """

    def cost(item: pytest.Item) -> tuple[bool, bool, int]:
        marks = {mark.name for mark in item.iter_markers()}
        name = item.path.name
        place = LONGEST_FIRST.index(name) if name in LONGEST_FIRST else len(LONGEST_FIRST)
        return "ray" in marks, "model" in marks, place

    items.sort(key=cost)
