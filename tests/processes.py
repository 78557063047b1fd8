"""Processes below the test's own, told by their titles."""

from __future__ import annotations

import psutil


def processes(*, title: str) -> list[int]:
    """Ids of this process's descendants whose title begins so."""
    found = []
    # From every process's parent: the kernel's own list of children may leave some out while
    # another ends.
    for process in psutil.Process().children(recursive=True):
        try:
            if " ".join(process.cmdline()).startswith(title):
                found.append(process.pid)
        except psutil.Error:  # it ended meanwhile
            continue
    return found


def parent_of(pid: int) -> int:
    """Id of the process that started `pid`."""
    return psutil.Process(pid).ppid()


def only(found: list[int]) -> int:
    assert len(found) == 1, found
    return found[0]
