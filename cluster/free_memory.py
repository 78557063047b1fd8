"""Freed memory back to the system: what comes and goes leaves holes that nothing else fits."""

from __future__ import annotations

import ctypes


def return_free_memory() -> None:
    """Return the pages of freed memory, those inside the heap too (glibc's `malloc_trim`)."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc only
    if trim is not None:
        trim(0)


class WorkerExtension:
    """What vLLM's workers can do beside their own (`worker_extension_cls`)."""

    def return_free_memory(self) -> None:
        """Return the worker's free pages; called by `collective_rpc`."""
        return_free_memory()


WORKER_EXTENSION = f"{__name__}.{WorkerExtension.__name__}"
