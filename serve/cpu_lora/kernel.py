"""The compiled operator for short runs of rows (decode): built once per machine, called by ctypes.

Compiled with the host's C++ compiler at first use, about two seconds, and kept in the user's cache
folder under a name that covers source, flags and processor. Without a compiler the dense products
of torch answer instead. It needs no torch headers, so it survives another torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import itertools
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp")
BUILD_TIMEOUT_S = 120

logger = logging.getLogger("vllm.distillery.cpu_lora")


MAX_RANK = 512
"""`MAX_RANK` of kernel.cpp."""


class _Described(ctypes.Structure):
    """A structure that is passed by its address, which is worked out once."""

    @cached_property
    def address(self) -> int:
        """Address of the structure itself."""
        return ctypes.addressof(self)


class Layer(_Described):
    """`Layer` of kernel.cpp."""

    _fields_ = (
        ("a", ctypes.POINTER(ctypes.c_void_p)),
        ("b", ctypes.POINTER(ctypes.c_void_p)),
        ("widths", ctypes.POINTER(ctypes.c_int64)),
        ("ranks", ctypes.POINTER(ctypes.c_int32)),
        ("num_in", ctypes.c_int64),
        ("num_slices", ctypes.c_int32),
        ("num_slots", ctypes.c_int32),
    )


class Batch(_Described):
    """`Batch` of kernel.cpp."""

    _fields_ = (
        ("slots", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("num_tiles", ctypes.c_int32),
    )


@dataclass(frozen=True)
class Weights:
    """A layer's adapters in the order in which the operator reads them; `layer` points into it."""

    values: torch.Tensor
    layer: Layer


class Kernel:
    """The loaded library."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self._functions: dict[torch.dtype, Any] = {
            torch.float32: library.lora_add_float32,
            torch.bfloat16: library.lora_add_bfloat16,
        }
        # Ranks and outputs that lie together, by the width of the processor's registers.
        self._lanes, self._block = int(library.lora_lanes()), int(library.lora_block())
        self._paired = {torch.bfloat16} if library.lora_pairs() else set()
        for function in self._functions.values():
            function.restype = None
            function.argtypes = (
                ctypes.c_void_p,
                ctypes.c_void_p,
                ctypes.c_void_p,
                ctypes.c_int64,
                ctypes.c_void_p,
                ctypes.c_int64,
                ctypes.c_float,
            )

    def supports(self, dtype: torch.dtype, *, num_in: int, max_rank: int) -> bool:
        """Whether there is an operator for rows of `num_in` inputs of `dtype`."""
        odd = dtype in self._paired and num_in % 2
        return dtype in self._functions and not odd and max_rank <= MAX_RANK

    def weights(
        self, a: Sequence[torch.Tensor], b: Sequence[torch.Tensor], *, ranks: list[list[int]]
    ) -> Weights:
        """Lay out a layer: for each slice A [slots, 1, R, in] and B [slots, 1, out, R].

        `ranks` are the true ranks by slice and slot. The weights are copied.
        """
        paired = a[0].dtype in self._paired
        num_slots, _, _, num_in = a[0].shape
        parts: list[torch.Tensor] = []
        for slot in range(num_slots):
            for a_i, b_i, of_slice in zip(a, b, ranks, strict=True):
                rank = of_slice[slot]
                parts.append(self._blocks_of_a(a_i[slot, 0, :rank], paired=paired).flatten())
                parts.append(self._blocks_of_b(b_i[slot, 0, :, :rank], paired=paired).flatten())
        # Side by side, so that what one batch reads lies on few pages.
        values = torch.cat(parts)
        places = [0, *itertools.accumulate(part.numel() for part in parts)]
        pointers = [values.data_ptr() + place * values.element_size() for place in places]
        # By slot, slice, and A or B; the operator wants slice before slot.
        of_slices = [(slice_, slot) for slice_ in range(len(a)) for slot in range(num_slots)]
        first = [2 * (slot * len(a) + slice_) for slice_, slot in of_slices]
        described = Layer(
            (ctypes.c_void_p * len(first))(*(pointers[n] for n in first)),
            (ctypes.c_void_p * len(first))(*(pointers[n + 1] for n in first)),
            (ctypes.c_int64 * len(b))(*(tensor.shape[2] for tensor in b)),
            (ctypes.c_int32 * len(first))(*(ranks[slice_][slot] for slice_, slot in of_slices)),
            num_in,
            len(a),
            num_slots,
        )
        return Weights(values, described)

    def _blocks_of_a(self, a_RH: torch.Tensor, *, paired: bool) -> torch.Tensor:
        """Return A as [blocks, H, LANES], or [blocks, H/2, LANES, 2]."""
        padded = torch.nn.functional.pad(a_RH, (0, 0, 0, -a_RH.shape[0] % self._lanes))
        blocks = padded.unflatten(0, (-1, self._lanes)).transpose(1, 2)
        return _in_pairs(blocks) if paired else blocks

    def _blocks_of_b(self, b_OR: torch.Tensor, *, paired: bool) -> torch.Tensor:
        """Return B as [blocks, R, BLOCK], or [blocks, R/2, BLOCK, 2]."""
        outputs, rank = b_OR.shape
        block = self._block
        padded = torch.nn.functional.pad(b_OR, (0, rank % 2 if paired else 0, 0, -outputs % block))
        blocks = padded.unflatten(0, (-1, block)).transpose(1, 2)
        return _in_pairs(blocks) if paired else blocks

    def add(
        self, y: torch.Tensor, x: torch.Tensor, layer: Layer, batch: Batch, *, scale: float
    ) -> None:
        """`y += scale * x A^T B` in place; y and x of one dtype, elements of a row adjacent."""
        self._functions[y.dtype](
            layer.address,
            batch.address,
            y.data_ptr(),
            y.stride(0),
            x.data_ptr(),
            x.stride(0),
            scale,
        )


def _in_pairs(blocks: torch.Tensor) -> torch.Tensor:
    """Return [blocks, n, m] as [blocks, n/2, m, 2]: neighbours along n beside each other."""
    return blocks.unflatten(1, (-1, 2)).transpose(2, 3)


@cache
def load() -> Kernel | None:
    """Return the kernel, compiled if need be; nothing, with one log line, if that is impossible."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or shutil.which("c++")
    if compiler is None:
        logger.warning("No C++ compiler: adapters on CPU use torch's dense products (slower).")
        return None
    try:
        return Kernel(_build(compiler))
    except subprocess.CalledProcessError as error:
        reason = error.stderr.decode(errors="replace")[-400:]
    except (OSError, subprocess.TimeoutExpired) as error:
        reason = str(error)
    logger.warning(
        "The CPU LoRA kernel did not build with %s: %s. Adapters use torch's dense products.",
        compiler,
        reason,
    )
    return None


def _build(compiler: str) -> Path:
    source = Path(__file__).with_name("kernel.cpp")
    identity = "\0".join((source.read_text(), compiler, *FLAGS, _processor()))
    name = hashlib.sha256(identity.encode()).hexdigest()[:16]
    cache_root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(cache_root) / "distillery" / "cpu_lora"
    target = folder / f"{name}.so"
    if target.exists():
        return target
    folder.mkdir(parents=True, exist_ok=True)
    # Workers of one engine may build at the same time: beside it first, then renamed.
    with tempfile.TemporaryDirectory(dir=folder) as beside:
        built = Path(beside) / "kernel.so"
        subprocess.run(
            [compiler, *FLAGS, str(source), "-o", str(built)],
            check=True,
            capture_output=True,
            timeout=BUILD_TIMEOUT_S,
        )
        built.rename(target)
    return target


def _processor() -> str:
    """What `-march=native` depends on: a home folder may be shared by unlike machines."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line for line in lines if line.startswith(("flags", "Features"))), "")
