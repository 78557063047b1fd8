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
