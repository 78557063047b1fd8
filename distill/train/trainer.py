"""Ray Train's trainer, without what a Ray of the run's own does not need."""

from __future__ import annotations

import os

from ray.train.torch import TorchTrainer
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback

from cluster.session import ends_with_this_process


class Trainer(TorchTrainer):
    """A TorchTrainer that ends at once on a Ray that was started for the run.

    Ray 2.60 starts an actor that frees the workers' CPUs should the controller die. It asks the
    dashboard whether the controller lives. A Ray of the run's own has no dashboard, the question
    hangs, and with it the end of every training for 9 to 12 s. It needs no such actor: all of it
    ends with the driver. Nor are its nodes taken back by a cloud, so that their watcher goes too.
    """

    def _create_default_callbacks(self) -> list[object]:
        callbacks: list[object] = super()._create_default_callbacks()
        if not ends_with_this_process():
            return callbacks
        os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback)]
