"""Freed memory goes back to the system, and tensors that come and go leave no holes."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path

import pytest

from cluster import heap
from cluster.heap import heap_environment

SCATTERED = """
import gc
import psutil
from cluster.heap import WorkerExtension, leaves_holes

resident = psutil.Process().memory_info
blocks = [bytearray(8_000) for _ in range(20_000)]
kept = blocks[::100]  # between them lie holes that no large block fits
del blocks
gc.collect()
before = resident().rss
WorkerExtension().return_free_memory()
print(before - resident().rss, leaves_holes())
"""
STEPS = """
import random
import resource
import torch

def step(draw):
    kept = [torch.zeros(draw.randrange(100, 1000), 5_000) for _ in range(4)]
    for _ in range(4):
        torch.zeros(draw.randrange(100, 1000), 20_000)

for i in range(2):  # the second time, its memory is there
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    draw = random.Random(1)
    for _ in range(20):
        step(draw)
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""
linux = pytest.mark.skipif(sys.platform != "linux", reason="glibc and jemalloc")
# Not "where there is none": a Ray that no longer brings it has to be noticed.
preloaded = pytest.mark.skipif(
    (sys.platform, platform.machine()) != ("linux", "x86_64"), reason="Ray's jemalloc"
)


def output_of(source: str, **environment: str) -> list[str]:
    env = {**os.environ, **environment}
    done = subprocess.run(
        [sys.executable, "-c", source], env=env, capture_output=True, text=True, check=True
    )
    assert not done.stderr
    return done.stdout.split()


@linux
@pytest.mark.parametrize("jemalloc", [False, pytest.param(True, marks=preloaded)])
def test_pages_between_what_stays_are_returned(jemalloc: bool) -> None:
    returned, holes = output_of(SCATTERED, **(heap_environment() if jemalloc else {}))
    assert int(returned) > 100e6  # of 160 MB
    assert holes == str(not jemalloc)


@linux
def test_memory_of_a_step_is_there_for_the_next() -> None:
    (plain,) = output_of(STEPS)
    (kept,) = output_of(STEPS, **heap_environment())
    assert int(kept) < 0.05 * int(plain)


def test_an_allocator_that_somebody_chose_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/usr/lib/libtcmalloc_minimal.so.4")
    assert "LD_PRELOAD" not in heap_environment()


@preloaded
def test_what_else_is_preloaded_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LD_PRELOAD", "/opt/libtrace.so")
    monkeypatch.setenv("MALLOC_CONF", "narenas:2")
    env = heap_environment()
    assert env["LD_PRELOAD"] == f"/opt/libtrace.so:{heap.jemalloc()}"
    assert env["MALLOC_CONF"] == "narenas:2"


@linux
def test_a_library_that_does_not_load_is_not_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    broken = tmp_path / "ray" / "core" / "libjemalloc.so"
    broken.parent.mkdir(parents=True)
    broken.write_text("no library")
    (tmp_path / "ray" / "__init__.py").touch()
    found = ModuleSpec("ray", None, origin=str(tmp_path / "ray" / "__init__.py"))
    monkeypatch.setattr(heap, "find_spec", lambda _: found)
    heap.jemalloc.cache_clear()
    try:
        assert heap_environment() == heap.GLIBC_KEEPS
    finally:
        heap.jemalloc.cache_clear()


def test_vllm_finds_the_extension_by_its_name() -> None:
    from vllm.utils.import_utils import resolve_obj_by_qualname

    assert resolve_obj_by_qualname(heap.WORKER_EXTENSION) is heap.WorkerExtension
