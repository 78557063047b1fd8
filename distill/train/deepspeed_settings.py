"""DeepSpeed's own configuration, from ours."""

from __future__ import annotations

from typing import Any

from distill.train.config import TrainConfig

DEEPSPEED = "deepspeed.json"
"""File of the run's folder with what DeepSpeed was given."""


def deepspeed_settings(train: TrainConfig) -> dict[str, Any]:
    """Return DeepSpeed's configuration for `train`; `train.deepspeed` is merged over it."""
    from cluster.config import merge

    # LoRA's gradients are a few megabytes: one bucket holds them all.
    bucket = 50_000_000
    cpu = {"device": "cpu", "pin_memory": False}
    offload: dict[str, Any] = {}
    if train.offload != "none":
        offload["offload_optimizer"] = cpu
    if train.offload == "all":
        offload["offload_param"] = cpu
    mine: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": train.micro_batch_size,
        "gradient_accumulation_steps": 1,  # the loop draws the boundary, a last step is smaller
        "zero_optimization": {
            "stage": train.zero_stage,
            "overlap_comm": False,
            "contiguous_gradients": True,
            "reduce_bucket_size": bucket,
            "allgather_bucket_size": bucket,
            **offload,
        },
        "bf16": {"enabled": train.in_bf16},
        "gradient_clipping": train.max_grad_norm,
        "optimizer": {
            "type": "AdamW",
            "params": {
                "torch_adam": True,
                "lr": train.learning_rate,
                "weight_decay": train.weight_decay,
            },
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 1_000_000_000,
    }
    return merge(mine, train.deepspeed)


def skip_shared_memory_build() -> None:
    """Keep DeepSpeed from compiling its shared-memory collective.

    It would take half a minute on first use, race between two workers, and is called by
    inference only; training's collectives are gloo's.
    """
    import deepspeed.ops

    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
