"""RMSNorm on CPU in one pass, as a vLLM general plugin.

vLLM 0.29 ships a compiled RMSNorm for CPU and does not use it: there it counts on torch.compile to
fuse the seven tensor operations of its plain one. Engines here run eagerly on CPU (compiling costs
more than it brings, docs/log.md), where these operations are about a sixth of a decode step. vLLM's
own way to choose an implementation is `ir_op_priority`; this registers one more to choose.
"""

PLUGIN = "distillery_cpu_norm"
PROVIDER = "distillery_cpu"
PRIORITY = {"rms_norm": [PROVIDER], "fused_add_rms_norm": [PROVIDER]}
"""What an engine is given as `ir_op_priority`; vLLM puts its own choice behind it."""


def register() -> None:
    """Register the implementations once; called by vLLM in each of its processes, maybe twice."""
    import torch
    from torch import Tensor
    from vllm import ir
    from vllm.platforms import current_platform

    if PROVIDER in ir.ops.rms_norm.impls:
        return
    current_platform.import_kernels()
    kernels = torch.ops._C
    here = current_platform.is_cpu() and all(hasattr(kernels, name) for name in PRIORITY)

    # vLLM compares the signatures of all four with its own, and PyTorch reads the annotations as
    # types: this file does not put them off (`from __future__ import annotations`).
    def plain_rows(
        x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
    ) -> bool:
        return weight is not None and variance_size is None and _alike(x, weight)

    def plain_sums(
        x: Tensor,
        x_residual: Tensor,
        weight: Tensor | None,
        epsilon: float,
        variance_size: int | None = None,
    ) -> bool:
        plain = weight is not None and variance_size is None
        return plain and _alike(x, weight) and _alike(x_residual, weight)

    @ir.ops.rms_norm.register_impl(PROVIDER, supported=here, supports_args=plain_rows)
    def rms_norm(
        x: Tensor, weight: Tensor | None, epsilon: float, variance_size: int | None = None
    ) -> Tensor:
        normed = torch.empty_like(x)
        kernels.rms_norm(normed, x, weight, epsilon)
        return normed

    @ir.ops.fused_add_rms_norm.register_impl(
        PROVIDER, supported=here, supports_args=plain_sums, inplace=True
    )
    def fused_add_rms_norm(
        x: Tensor,
        x_residual: Tensor,
        weight: Tensor | None,
        epsilon: float,
        variance_size: int | None = None,
    ) -> tuple[Tensor, Tensor]:
        kernels.fused_add_rms_norm(x, x_residual, weight, epsilon)
        return x, x_residual


def _alike(x, weight) -> bool:  # type: ignore[no-untyped-def]  # torch is imported late
    """Whether the kernel may read `x`: it takes dense rows of the weight's type."""
    return x.dtype is weight.dtype and x.is_contiguous()
