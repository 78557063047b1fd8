"""What DeepSpeed is given: ours, and a person's own settings over it."""

from __future__ import annotations

from typing import Any

from distill.train.config import TrainConfig
from distill.train.deepspeed_settings import deepspeed_settings


def settings(**changes: Any) -> dict[str, Any]:
    return deepspeed_settings(TrainConfig(**{"precision": "fp32", **changes}))


def test_own_settings_are_merged_over_ours() -> None:
    ours = settings()
    own = {
        "zero_optimization": {"reduce_bucket_size": 7, "round_robin_gradients": True},
        "optimizer": {"params": {"betas": [0.9, 0.95]}},
        "wall_clock_breakdown": True,
    }
    merged = settings(deepspeed=own)
    assert merged["zero_optimization"] == {
        **ours["zero_optimization"],
        "reduce_bucket_size": 7,
        "round_robin_gradients": True,
    }
    assert merged["optimizer"]["params"] == {
        **ours["optimizer"]["params"],
        "betas": [0.9, 0.95],
    }
    rest = {"zero_optimization", "optimizer"}
    assert {k: v for k, v in merged.items() if k not in rest} == {
        **{k: v for k, v in ours.items() if k not in rest},
        "wall_clock_breakdown": True,
    }


def test_own_settings_win_over_the_fields_of_train() -> None:
    own = {"gradient_clipping": 0.5, "zero_optimization": {"stage": 1}}
    merged = settings(deepspeed=own, max_grad_norm=2.0, zero_stage=2)
    assert (merged["gradient_clipping"], merged["zero_optimization"]["stage"]) == (0.5, 1)
