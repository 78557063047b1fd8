"""What a run says at its end."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from jobs.summary import command_name


def script(folder: Path) -> Path:
    """A file that a shell would run."""
    folder.mkdir(parents=True)
    file = folder / "distillery"
    file.write_text("#!/bin/sh\n")
    file.chmod(0o755)
    return file


def test_the_commands_to_go_on_with_are_those_that_the_persons_shell_finds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside = script(tmp_path / ".venv/bin")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "executable", str(beside.with_name("python")))
    monkeypatch.setattr(sys, "prefix", str(tmp_path / ".venv"))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    # As under make, which puts the environment in front of the PATH of what it runs.
    monkeypatch.setenv("PATH", os.pathsep.join([str(beside.parent), "/usr/bin"]))
    assert command_name() == ".venv/bin/distillery"
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path / ".venv"))
    assert command_name() == "distillery"
    monkeypatch.delenv("VIRTUAL_ENV")
    elsewhere = script(tmp_path / "home/bin")
    monkeypatch.setenv("PATH", str(elsewhere.parent))
    assert command_name() == "distillery"
