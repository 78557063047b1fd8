"""Training in the driver's own process: `train.in_process`, for a debugger and for quick trials.

The same loop, data and checkpoints as with Ray Train's workers, of which a start takes most of a
minute on two cores. Ray Train's own local mode (`ScalingConfig(num_workers=0)`) remembers only the
last checkpoint, so its functions are used here with checkpoints that stay.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from ray.train import Checkpoint
from ray.train.v2._internal.execution.train_fn_utils import (
    LocalTrainFnUtils,
    set_train_fn_utils,
)

from distill.train.config import TrainConfig
from distill.train.feed import TRAINING, Feed
from distill.train.loop import WorkerConfig, run_worker

Kept = tuple[Path, dict[str, Any]]


class _Here(LocalTrainFnUtils):
    """What `ray.train`'s functions do in this process."""

    def __init__(self, feed: Feed, *, checkpoints: Path, keep: int):
        super().__init__("checkpoints", dataset_shards={TRAINING: feed()})
        self._checkpoints, self._keep = checkpoints, keep
        self.kept: list[Kept] = []
        """Best held-out loss first; the latest is always among them."""

    def report(
        self, metrics: dict[str, Any], checkpoint: Checkpoint | None = None, *_: Any, **__: Any
    ) -> None:
        """Keep the checkpoint in the run's folder."""
        assert checkpoint is not None
        place = self._checkpoints / f"checkpoint_{metrics['step']:06d}"
        shutil.rmtree(place, ignore_errors=True)
        shutil.move(checkpoint.path, place)
        latest = (place, metrics)
        self.kept = sorted([*self.kept, latest], key=lambda pair: pair[1]["validation_loss"])
        for old in [pair for pair in self.kept[self._keep :] if pair is not latest]:
            shutil.rmtree(old[0])
            self.kept.remove(old)


def train_here(
    told: WorkerConfig, feed: Feed, train: TrainConfig, *, checkpoints: Path
) -> tuple[dict[str, Any], list[Kept]]:
    """Train in this process; returns the worker's last position and the checkpoints, best first."""
    import torch.distributed as dist

    # DeepSpeed asks a launcher's variables for them.
    launched = {"DS_ACCELERATOR": "cpu", "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}
    before = {name: os.environ.get(name) for name in launched}
    os.environ.update(launched)
    if not dist.is_initialized():
        # It stays: DeepSpeed holds on to it for as long as the process lives.
        dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    session = _Here(feed, checkpoints=checkpoints, keep=train.keep_checkpoints)
    set_train_fn_utils(session)
    try:
        return run_worker(vars(told)), session.kept
    finally:
        set_train_fn_utils(None)
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
