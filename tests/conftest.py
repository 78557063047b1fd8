"""Fixtures that several rooms' tests share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first, end to end last: what is broken shows early."""

    def cost(item: pytest.Item) -> tuple[bool, bool, bool]:
        marks = {mark.name for mark in item.iter_markers()}
        return "e2e" in item.path.parts, "ray" in marks, "model" in marks

    items.sort(key=cost)
