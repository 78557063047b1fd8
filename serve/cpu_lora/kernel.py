"""The compiled operator for short runs of rows (decode): built once per machine, called by ctypes.

Compiled with the host's C++ compiler at first use, about two seconds, and kept in the user's cache
folder under a name that covers source, flags and processor. Without a compiler the dense products
of torch answer instead. It needs no torch headers, so it survives another torch.
"""

from __future__ import annotations

import ctypes
import hashlib
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-fopenmp")
BUILD_TIMEOUT_S = 120

logger = logging.getLogger("vllm.distillery.cpu_lora")


class Layer(ctypes.Structure):
    """`Layer` of kernel.cpp."""

    _fields_ = (
        ("a", ctypes.POINTER(ctypes.c_void_p)),
        ("b", ctypes.POINTER(ctypes.c_void_p)),
        ("widths", ctypes.POINTER(ctypes.c_int64)),
        ("ranks", ctypes.POINTER(ctypes.c_int32)),
        ("num_in", ctypes.c_int64),
        ("num_slices", ctypes.c_int32),
        ("num_slots", ctypes.c_int32),
        ("max_rank", ctypes.c_int32),
    )


class Batch(ctypes.Structure):
    """`Batch` of kernel.cpp."""

    _fields_ = (
        ("slots", ctypes.c_void_p),
        ("rows", ctypes.c_void_p),
        ("h", ctypes.c_void_p),
        ("num_tiles", ctypes.c_int32),
    )


def layer(
    a: Sequence[torch.Tensor],
    b: Sequence[torch.Tensor],
    *,
    widths: list[int],
    ranks: list[list[int]],
    shape: tuple[int, int, int],
) -> Layer:
    """Describe a layer: for each slice A [slots, (1,) R, in] and B [slots, R, out], contiguous.

    `ranks` are the true ranks by slice and slot; `shape` is slots, R, in. The tensors must outlive
    what is returned.
    """
    num_slots, max_rank, num_in = shape
    flat_ranks = [rank for of_slice in ranks for rank in of_slice]
    return Layer(
        (ctypes.c_void_p * len(a))(*(t.data_ptr() for t in a)),
        (ctypes.c_void_p * len(b))(*(t.data_ptr() for t in b)),
        (ctypes.c_int64 * len(widths))(*widths),
        (ctypes.c_int32 * len(flat_ranks))(*flat_ranks),
        num_in,
        len(a),
        num_slots,
        max_rank,
    )


class Kernel:
    """The loaded library."""

    def __init__(self, path: Path) -> None:
        library = ctypes.CDLL(str(path))
        self._functions: dict[torch.dtype, Any] = {
            torch.float32: library.lora_add_float32,
            torch.bfloat16: library.lora_add_bfloat16,
        }
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

    def supports(self, dtype: torch.dtype) -> bool:
        """Whether there is an operator for inputs, weights and outputs of `dtype`."""
        return dtype in self._functions

    def add(
        self, y: torch.Tensor, x: torch.Tensor, layer: Layer, batch: Batch, *, scale: float
    ) -> None:
        """`y += scale * x A^T B` in place; y and x of one dtype, elements of a row adjacent."""
        self._functions[y.dtype](
            ctypes.addressof(layer),
            ctypes.addressof(batch),
            y.data_ptr(),
            y.stride(0),
            x.data_ptr(),
            x.stride(0),
            scale,
        )


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
