"""Liger's kernels (Hsu et al. 2024) for CUDA: norms, rotation and SwiGLU, each in one pass.

Its losses are not taken: they would save the full logits, which `head.py` never holds for any
objective. On CPU `cpu_model.py` does the same by hand.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from cluster.errors import ConfigError
from distill.train.config import TrainConfig

TAKEN = {"rope": True, "rms_norm": True, "swiglu": True, "geglu": True}
LEFT = {"cross_entropy": False, "fused_linear_cross_entropy": False}


def check_liger(train: TrainConfig, *, on_gpu: bool) -> None:
    """Raise ConfigError where `train.liger` is 'on' and its kernels cannot be had."""
    if train.liger != "on":
        return
    if not on_gpu:
        raise ConfigError(
            "train.liger 'on' needs CUDA, and no GPU is asked for (cluster.accelerator); "
            "take 'auto' or 'off'"
        )
    if find_spec("liger_kernel") is None:
        raise ConfigError(
            "train.liger 'on' needs the package liger-kernel, which is not installed; "
            "`pip install liger-kernel` on every node, or take 'auto' or 'off'"
        )


def use_liger(model: Any, train: TrainConfig, *, on_gpu: bool) -> bool:
    """Put Liger's kernels into a base model where `train.liger` says so; returns whether.

    ConfigError for 'on' and an architecture that Liger has none for.
    """
    check_liger(train, on_gpu=on_gpu)
    if train.liger == "off" or not on_gpu or find_spec("liger_kernel") is None:
        return False
    from inspect import signature

    from liger_kernel.transformers import monkey_patch

    kind = model.config.model_type
    apply = monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN.get(kind)
    if apply is None:
        if train.liger == "on":
            known = ", ".join(sorted(monkey_patch.MODEL_TYPE_TO_APPLY_LIGER_FN))
            raise ConfigError(
                f"train.liger 'on': Liger has no kernels for model type {kind!r} (it has them for "
                f"{known}); take 'auto' or 'off'"
            )
        return False
    wanted = {**TAKEN, **LEFT}
    known_flags = signature(apply).parameters
    apply(model=model, **{name: on for name, on in wanted.items() if name in known_flags})
    return True
