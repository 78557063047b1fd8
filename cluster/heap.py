"""The heap of processes that hold tensors: which allocator manages it, and what goes back when."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

GLIBC_KEEPS = {
    "MALLOC_MMAP_THRESHOLD_": str(1 << 32),
    "MALLOC_TRIM_THRESHOLD_": str(1 << 33),
    "MALLOC_TOP_PAD_": str(1 << 26),
}
"""Without these every large tensor goes back to the kernel when it is freed, and its pages are
faulted in again for the next one: docs/log.md has the figures."""
JEMALLOC_KEEPS = ",".join(
    [
        # A step's large tensors are all made by one thread, and share what another one freed.
        "narenas:1",
        "oversize_threshold:0",
        "dirty_decay_ms:-1",
        "muzzy_decay_ms:-1",
        # By default a free extent over 64 times as large as what is asked for is left alone, and
        # new memory taken: a float32 worker grew from 2.3 to 3.6 GB in twelve steps.
        "lg_extent_max_active_fit:20",
    ]
)
"""The same for jemalloc: jemalloc(3), section TUNING."""
PURGE_ALL = b"arena.4096.purge"  # of MALLCTL_ARENAS_ALL, jemalloc(3)
ALLOCATORS = ("malloc", "hoard")
"""What names of libraries with an allocator contain."""


def heap_environment() -> dict[str, str]:
    """Environment of a process that makes and frees large tensors all the time.

    jemalloc manages its heap where it can be loaded, as tensors of many sizes leave holes in
    glibc's. A `LD_PRELOAD` that already names an allocator is left alone.
    """
    env = dict(GLIBC_KEEPS)  # also of use where the library is missing on a worker's node
    library, given = jemalloc(), os.environ.get("LD_PRELOAD", "")
    names = [Path(path).name for path in given.replace(":", " ").split()]
    taken = any(part in name for name in names for part in ALLOCATORS)
    if library is not None and not taken:
        env["LD_PRELOAD"] = f"{given}:{library}" if given else str(library)
        env["MALLOC_CONF"] = os.environ.get("MALLOC_CONF", JEMALLOC_KEEPS)
    return env


@cache
def jemalloc() -> Path | None:
    """Return the jemalloc that Ray's package brings, if programs start with it here."""
    ray, probe = find_spec("ray"), shutil.which("true")
    if ray is None or ray.origin is None or probe is None:
        return None
    library = Path(ray.origin).parent / "core" / "libjemalloc.so"
    if not library.is_file():
        return None
    # A kernel with other pages than it was built for makes it abort; a loader that cannot use it
    # says so and goes on.
    env = {"LD_PRELOAD": str(library)}
    done = subprocess.run([probe], env=env, capture_output=True, check=False)
    return library if done.returncode == 0 and not done.stderr else None


def leaves_holes() -> bool:
    """Whether this process's heap grows while tensors of different sizes come and go.

    So it is with glibc; of another allocator than jemalloc nothing is known, and asking glibc for
    its free pages costs nothing there.
    """
    return _mallctl() is None


def return_free_memory() -> None:
    """Return the pages of freed memory to the system, those inside the heap too."""
    mallctl = _mallctl()
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if mallctl is not None:
        mallctl(PURGE_ALL, None, None, None, ctypes.c_size_t(0))
    elif trim is not None:
        trim(0)


def _mallctl() -> Any:
    return getattr(ctypes.CDLL(None), "mallctl", None)


class WorkerExtension:
    """What vLLM's workers can do beside their own (`worker_extension_cls`)."""

    def return_free_memory(self) -> None:
        """Return the worker's free pages; called by `collective_rpc`."""
        return_free_memory()


WORKER_EXTENSION = f"{__name__}.{WorkerExtension.__name__}"
