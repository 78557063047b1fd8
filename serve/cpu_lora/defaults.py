"""How to start a vLLM engine on CPU so that it and its adapters are fast.

What each setting brought is in docs/log-lora.md. Plain Python: nothing heavy is imported.
"""

from __future__ import annotations

import glob
import os
from typing import Any

TCMALLOC_PATTERNS = (
    "/usr/lib/*/libtcmalloc_minimal.so.4",
    "/usr/lib64/libtcmalloc_minimal.so.4",
    "/usr/lib/libtcmalloc_minimal.so.4",
)
"""Where Debian's `libtcmalloc-minimal4`, Fedora's and Arch's `gperftools` put the library."""


def cpu_engine_env(
    *, kv_cache_gb: int, num_threads: int | None = None, preload_tcmalloc: bool = False
) -> dict[str, str]:
    """Return the environment of the engine's process.

    `num_threads`: OpenMP threads, unbound, for an engine that shares its cores with others; without
    it vLLM binds one thread to each core but the one it keeps back. `preload_tcmalloc` puts the
    system's tcmalloc before the C library's allocator if it is installed; the variable must be set
    before the process starts.
    """
    env = {"VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gb), "VLLM_NO_USAGE_STATS": "1"}
    if num_threads is not None:
        env |= {"VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": str(num_threads)}
    library = tcmalloc() if preload_tcmalloc else None
    if library:
        already = os.environ.get("LD_PRELOAD", "")
        env["LD_PRELOAD"] = f"{library}:{already}" if already else library
    return env


def cpu_engine_args(*, num_adapters: int, max_lora_rank: int) -> dict[str, Any]:
    """Return engine arguments for `num_adapters` in one batch, ranks up to `max_lora_rank`.

    No spare slot is kept: with this package's operators a base-only row gets no adapter even when
    every slot is filled. Compilation stays off, as vLLM itself decides with LoRA on CPU.
    """
    return {
        "dtype": "bfloat16",
        "enforce_eager": True,
        "enable_lora": True,
        "max_loras": num_adapters,
        "max_lora_rank": max_lora_rank,
    }


def tcmalloc() -> str | None:
    """Return the path of the system's tcmalloc, if it is installed."""
    found = [path for pattern in TCMALLOC_PATTERNS for path in glob.glob(pattern)]
    return found[0] if found else None
