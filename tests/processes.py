"""Processes below the test's own, told by their titles."""

from __future__ import annotations

import os
from pathlib import Path


def processes(*, title: str) -> list[int]:
    """Ids of this process's descendants whose title begins so."""
    found, below = [], [os.getpid()]
    while below:
        folder = Path(f"/proc/{below.pop()}")
        try:
            if (folder / "cmdline").read_bytes().startswith(title.encode()):
                found.append(int(folder.name))
            children = [
                task.joinpath("children").read_text() for task in (folder / "task").iterdir()
            ]
            below += [int(child) for line in children for child in line.split()]
        except OSError:  # it ended meanwhile
            continue
    return found


def parent_of(pid: int) -> int:
    """Id of the process that started `pid`."""
    return int(Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[1])


def only(found: list[int]) -> int:
    assert len(found) == 1, found
    return found[0]
