"""Freed memory goes back to the system."""

from __future__ import annotations

import subprocess
import sys

import pytest

HOLES = """
import gc
import psutil
from cluster.free_memory import WorkerExtension

resident = psutil.Process().memory_info
blocks = [bytearray(8_000) for _ in range(20_000)]
kept = blocks[::100]  # between them lie holes that no large block fits
del blocks
gc.collect()
before = resident().rss
WorkerExtension().return_free_memory()
print(before - resident().rss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc_trim")
def test_pages_between_what_stays_are_returned() -> None:
    done = subprocess.run([sys.executable, "-c", HOLES], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 100e6  # of 160 MB


def test_vllm_finds_the_extension_by_its_name() -> None:
    from vllm.utils.import_utils import resolve_obj_by_qualname

    from cluster.free_memory import WORKER_EXTENSION, WorkerExtension

    assert resolve_obj_by_qualname(WORKER_EXTENSION) is WorkerExtension
