"""What the machine's processor computes fast: decided once, the same for training and serving."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Literal

Precision = Literal["bf16", "fp32"]

BF16_FLAGS = {"avx512_bf16", "amx_bf16", "bf16"}
"""Flags of /proc/cpuinfo of x86-64 and Arm processors with products of bfloat16."""


CPUINFO = Path("/proc/cpuinfo")


def precision(accelerator: str | None, *, cpuinfo: Path = CPUINFO) -> Precision:
    """Return the type to compute in on `accelerator`, or without one on the cores of `cpuinfo`.

    Every GPU that vLLM and DeepSpeed are used on has bfloat16. A processor without it takes each
    product apart: on one with AVX2 alone 754 × 576 × 3,072 took 149 ms in bfloat16 and 19 ms in
    float32 (docs/log.md).
    """
    return "bf16" if accelerator is not None or BF16_FLAGS & _flags(cpuinfo) else "fp32"


def has_tiles_for(head_width: int, *, cpuinfo: Path = CPUINFO) -> bool:
    """Whether it has AMX tiles of bfloat16 and attention's heads fill them, 32 deep."""
    return head_width % 32 == 0 and {"amx_tile", "amx_bf16"} <= _flags(cpuinfo)


def dtype_name(accelerator: str | None) -> str:
    """Return the same as torch and vLLM name it."""
    return "bfloat16" if precision(accelerator) == "bf16" else "float32"


@functools.cache
def _flags(cpuinfo: Path) -> frozenset[str]:
    try:
        lines = cpuinfo.read_text().splitlines()
    except OSError:
        return frozenset()
    named = (line for line in lines if line.startswith(("flags", "Features")))
    return frozenset(next(named, "").partition(":")[2].split())
