"""What vLLM needs on CPU cores, the same for answering held-out prompts and for serving."""

from __future__ import annotations

import os
from typing import Any

from cluster import cpu_norm, processor


def num_cores() -> int:
    """Return the cores this process may use."""
    return len(os.sched_getaffinity(0))


def environment(*, kv_cache_gb: int, num_threads: int = 0) -> dict[str, str]:
    """Environment of a process that holds an engine, `num_threads` 0 for every core.

    Without it Ray gives an actor one OpenMP thread a logical CPU.
    """
    return {
        "VLLM_CPU_KVCACHE_SPACE": str(kv_cache_gb),
        # vLLM would keep a core back and pin itself to the others: right for a server that owns
        # its machine, slow on a small or a shared one.
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "OMP_NUM_THREADS": str(num_threads or num_cores()),
        # Threads that spin while they wait take the cores from whatever else runs: on a busy
        # machine small products took 10 to 15 times as long (docs/log.md).
        "OMP_WAIT_POLICY": "PASSIVE",
        "VLLM_NO_USAGE_STATS": "1",
    }


def engine_arguments(*, kv_cache_gb: int) -> dict[str, Any]:
    """Arguments of vLLM's engine; given bytes it asks for no share of the whole memory."""
    # vLLM refuses a name whose plugin it was told to leave out.
    chosen = os.environ.get("VLLM_PLUGINS")
    norms = chosen is None or cpu_norm.PLUGIN in chosen.split(",")
    return {
        "dtype": processor.dtype_name(None),
        "enforce_eager": True,
        "kv_cache_memory_bytes": kv_cache_gb << 30,
        # With it, a request that brings a seed and whose prompt is cut in two ends the whole
        # engine: vLLM 0.29 then rewinds the request's generator, and those of CPU have no offset
        # ("CPU Generator does not use offset").
        "enable_chunked_prefill": False,
        **({"ir_op_priority": cpu_norm.PRIORITY} if norms else {}),
    }
