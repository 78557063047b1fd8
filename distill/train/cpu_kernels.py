"""Compile and call kernels of what PyTorch runs as five or ten passes, and attention on tiles."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shutil
import subprocess
from pathlib import Path

import torch

from cluster.processor import has_tiles_for

SOURCE = Path(__file__).with_suffix(".cpp")
ATTENTION = Path(__file__).with_name("cpu_attention.cpp")
# Fast-math at compile time only: at link time it would switch the whole process to flush
# denormals.
COMPILE = ["-O3", "-march=native", "-ffast-math", "-fopenmp", "-fPIC", "-c"]
LINK = ["-shared", "-fopenmp"]
DEFINES: dict[torch.dtype, list[str]] = {torch.bfloat16: [], torch.float32: ["-DFLOAT32"]}
"""What the source is compiled with, by the type of the tensors."""


def compiler() -> str | None:
    """Path of the C++ compiler, or None; without one the student trains on plain PyTorch."""
    return shutil.which(os.environ.get("CXX", "g++")) or shutil.which("c++")


@functools.cache
def load(dtype: torch.dtype) -> ctypes.CDLL | None:
    """Load the kernels of a type, compiling them on first use; None where that is not possible."""
    return _built(SOURCE, DEFINES[dtype])


@functools.cache
def load_attention() -> ctypes.CDLL | None:
    """Load attention in bfloat16 on AMX tiles, compiling it on first use; None without tiles."""
    # Linux gives a process tiles when it asks, and torch does.
    if not torch.cpu._init_amx():
        return None
    return _built(ATTENTION, [])


def _built(source: Path, defines: list[str]) -> ctypes.CDLL | None:
    """Compile a source and load it.

    The file is kept in `$DISTILLERY_CACHE` or `~/.cache/distillery` under a digest of source and
    CPU, and appears by a rename, so workers that start together cannot disturb each other.
    """
    cxx = compiler()
    if cxx is None or not source.is_file():
        return None
    cpuinfo = Path("/proc/cpuinfo")
    cpu = (
        next((x for x in cpuinfo.read_text().splitlines() if x.startswith("flags")), "")
        if (cpuinfo.is_file())
        else ""
    )
    told = [*defines, *COMPILE]
    digest = hashlib.sha256(source.read_bytes() + f"{cpu}{told}{LINK}".encode()).hexdigest()
    cache = Path(os.environ.get("DISTILLERY_CACHE", "~/.cache/distillery")).expanduser()
    target = cache / f"{source.stem}-{digest[:16]}.so"
    if not target.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        own = cache / f".{target.stem}-{os.getpid()}"
        try:
            for command in (
                [cxx, *told, str(source), "-o", f"{own}.o"],
                [cxx, f"{own}.o", *LINK, "-o", f"{own}.so"],
            ):
                subprocess.run(command, check=True, capture_output=True, timeout=300)
            os.replace(f"{own}.so", target)
        except (subprocess.CalledProcessError, subprocess.TimeoutExpired):
            return None
        finally:
            Path(f"{own}.o").unlink(missing_ok=True)
    return ctypes.CDLL(str(target))


def _call(
    name: str,
    x: torch.Tensor,
    *others: torch.Tensor | int | float | bool,
    of: ctypes.CDLL | None = None,
) -> None:
    """Call a kernel: of a library, or that of x's type."""
    arguments = (x, *others)
    lib = of or load(x.dtype)
    assert lib is not None
    converted: list[object] = []
    for value in arguments:
        if isinstance(value, torch.Tensor):
            assert value.is_contiguous()
            converted.append(ctypes.c_void_p(value.data_ptr()))
        elif isinstance(value, bool):
            converted.append(ctypes.c_int32(value))
        elif isinstance(value, int):
            converted.append(ctypes.c_int64(value))
        else:
            converted.append(ctypes.c_float(value))
    getattr(lib, name)(*converted)


def rms_norm(
    x_M_D: torch.Tensor, weight_D: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the normalised rows and each row's float32 factor."""
    y, r = torch.empty_like(x_M_D), torch.empty(len(x_M_D), dtype=torch.float32)
    _call("rms_norm", x_M_D, weight_D, y, r, *x_M_D.shape, eps)
    return y, r


def rms_norm_backward(
    dy: torch.Tensor, x: torch.Tensor, weight: torch.Tensor, r: torch.Tensor, skip: torch.Tensor
) -> torch.Tensor:
    """Return `skip` plus the gradient of `x`, in the memory of `dy`."""
    _call("rms_norm_backward", dy, x, weight, r, skip, dy, *x.shape)
    return dy


def swiglu(gate_up_M_2F: torch.Tensor) -> torch.Tensor:
    """Return silu(gate) · up, [M, F]."""
    rows, width = gate_up_M_2F.shape
    out = gate_up_M_2F.new_empty(rows, width // 2)
    _call("swiglu", gate_up_M_2F, out, rows, width // 2)
    return out


def swiglu_backward(gate_up_M_2F: torch.Tensor, grad_M_F: torch.Tensor) -> torch.Tensor:
    """Return the gradient of `gate_up`; in place, `grad` becomes silu(gate) · up."""
    d_gate_up = torch.empty_like(gate_up_M_2F)
    _call("swiglu_backward", gate_up_M_2F, d_gate_up, grad_M_F, *grad_M_F.shape)
    return d_gate_up


def rotate_split(
    qkv_M_R: torch.Tensor,
    heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    *,
    segments_M_2: torch.Tensor,
    cos: torch.Tensor,
    sin: torch.Tensor,
    back: bool,
) -> None:
    """Rows `qkv` to rotated heads q [M·H·W], k and v [M·K·W], head-major a segment; or back.

    `segments` says of each row where its segment starts and how long it is, int64.
    """
    q, k, v = heads
    rows, width = len(qkv_M_R), 2 * cos.shape[1]
    num_q, num_kv = q.numel() // (rows * width), k.numel() // (rows * width)
    _call(
        "rotate_split", qkv_M_R, q, k, v, segments_M_2, cos, sin, rows, num_q, num_kv, width, back
    )


def causal_softmax(scores_N_T_S: torch.Tensor, scale: float) -> torch.Tensor:
    """Turn scores into probabilities, in place; the T queries are the last of the S places."""
    _call("causal_softmax", scores_N_T_S, *scores_N_T_S.shape, scale)
    return scores_N_T_S


def causal_softmax_backward(
    p_N_T_S: torch.Tensor, grad: torch.Tensor, scale: float
) -> torch.Tensor:
    """Turn the gradient of probabilities into that of the unscaled scores, in place."""
    _call("causal_softmax_backward", p_N_T_S, grad, *p_N_T_S.shape, scale)
    return grad


def cross_entropy(
    logits_N_V: torch.Tensor, targets_N: torch.Tensor, *, with_gradient: bool
) -> torch.Tensor:
    """Return each row's loss [N], float32; with a gradient, it replaces the logits."""
    losses = torch.empty(len(targets_N), dtype=torch.float32)
    _call("cross_entropy", logits_N_V, targets_N, losses, *logits_N_V.shape, with_gradient)
    return losses


def has_tiled_attention(dtype: torch.dtype, head_width: int) -> bool:
    """Whether `attend` computes heads of this type and width here."""
    fits = dtype == torch.bfloat16 and has_tiles_for(head_width)
    return fits and load_attention() is not None


def attend(
    heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    segments_N_4: torch.Tensor,
    *,
    num_rows: int,
    width: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the context rows [M, H·W] and the queries' log-sum-exp [M·H], float32.

    `heads` are q [M·H·W], k and v [M·K·W], head-major a segment; `segments` start and length of
    each segment and of its prefix, int64 (length 0: none). Causal: Dao et al. 2022, algorithm 1.
    """
    q, k, v = heads
    num_q, num_kv = (x.numel() // (num_rows * width) for x in (q, k))
    context = q.new_empty(num_rows, num_q * width)
    lse = torch.empty(num_rows * num_q, dtype=torch.float32)
    _call(
        "attend", q, k, v, segments_N_4, context, lse, len(segments_N_4), num_q, num_kv, width,
        scale, of=load_attention(),
    )  # fmt: skip
    return context, lse


def attend_backward(
    d_context_M_HW: torch.Tensor,
    heads: tuple[torch.Tensor, torch.Tensor, torch.Tensor],
    context_M_HW: torch.Tensor,
    lse: torch.Tensor,
    segments_N_4: torch.Tensor,
    *,
    width: int,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return the gradients of q, k and v, laid out as they are (Dao et al. 2022, algorithm 4).

    Those of a prefix are the sum over all that attend to it, added up in float32.
    """
    q, k, v = heads
    d_q, d_k, d_v = (torch.empty_like(x) for x in heads)
    num_q, num_kv = (x.numel() // (len(context_M_HW) * width) for x in (q, k))
    _call(
        "attend_backward", q, k, v, context_M_HW, d_context_M_HW, lse, segments_N_4, d_q, d_k, d_v,
        len(segments_N_4), num_q, num_kv, width, scale, of=load_attention(),
    )  # fmt: skip
    return d_q, d_k, d_v
