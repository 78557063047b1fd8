"""Permission for AMX tiles, as a vLLM general plugin: without it a small model dies at once.

Linux lets a process use AMX only after it asked (arch_prctl ARCH_REQ_XCOMP_PERM). vLLM 0.29 picks
its AMX attention kernel when the CPU has tiles and never asks; it is saved by oneDNN, which asks
before its own first AMX product. A model too small for oneDNN to use AMX ends in "illegal
instruction" in its first forward pass.
"""

from __future__ import annotations


def register() -> None:
    """Ask once; called by vLLM in each of its processes. Does nothing on a CPU without AMX."""
    import torch

    if torch.cpu._is_amx_tile_supported():
        torch.cpu._init_amx()
