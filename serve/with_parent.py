"""An engine process ends with the process that started it, as a vLLM general plugin.

vLLM's engine is a process beside the replica's. When the replica is killed (out of memory, a lost
node agent, `kill -9`), vLLM 0.29 leaves the engine running with its memory, where the replica that
takes its place needs it.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import threading


def register() -> None:
    """Watch the parent from a thread; called by vLLM in each of its processes, maybe twice."""
    parent = multiprocessing.parent_process()
    if parent is None or any(thread.name == __name__ for thread in threading.enumerate()):
        return

    def follow() -> None:
        parent.join()
        # Not sys.exit: that would end this thread only, and an orderly end waits for the parent.
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, name=__name__, daemon=True).start()
