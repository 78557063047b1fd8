"""Checkpoints on their way to the run folder: uploaded beside the training, or refused in time."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from pathlib import Path
from typing import Any

from distill.train.checkpoint import Position, save_state
from distill.train.config import TrainConfig
from distill.train.snapshot import list_files

SPARE_BYTES = 2**20
"""Room left for what else a run writes between two checkpoints: curves, findings, Ray's lists."""


class Saver:
    """Writes checkpoints to a temporary folder and lets Ray Train upload them.

    Ray Train registers a checkpoint once every worker's upload is through, in the order of the
    reports, and waits for all of them when the training function returns. A worker killed on the
    way leaves the newest registered one the newest.
    """

    def __init__(self, engine: Any, student: Any, *, train: TrainConfig, checkpoints: Path):
        """`checkpoints` is Ray Train's folder in the run's."""
        self._engine, self._student = engine, student
        self._train, self._checkpoints = train, checkpoints
        self._prefix = upload_prefix(checkpoints)
        drop_uploads(checkpoints)

    def save(self, position: Position) -> dict[str, int] | None:
        """Save on all workers together; returns the bytes needed and free if they do not fit."""
        import ray.train
        import torch.distributed as dist

        temporary = Path(tempfile.mkdtemp(prefix=self._prefix))
        save_state(self._engine, self._student, position, temporary, train=self._train)
        sizes: list[Any] = [0] * dist.get_world_size()
        dist.all_gather_object(sizes, list_files(temporary, worker=dist.get_rank()))
        short = lacking_room(self._checkpoints, needed=sum(sizes))
        if short is not None:
            shutil.rmtree(temporary)
            return short
        ray.train.report(
            {"step": position.step, "validation_loss": position.last_loss},
            checkpoint=ray.train.Checkpoint.from_directory(str(temporary)),
            checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
            delete_local_checkpoint_after_upload=True,
        )
        return None


def upload_prefix(checkpoints: Path) -> str:
    """Return how the temporary folders of a run's checkpoints begin."""
    return f"checkpoint-{hashlib.sha256(str(checkpoints).encode()).hexdigest()[:12]}-"


def drop_uploads(checkpoints: Path) -> None:
    """Remove from this machine what workers that ended had still to upload: it can be gigabytes."""
    for left in Path(tempfile.gettempdir()).glob(upload_prefix(checkpoints) + "*"):
        shutil.rmtree(left, ignore_errors=True)


def lacking_room(checkpoints: Path, *, needed: int | None = None) -> dict[str, int] | None:
    """Return the bytes `needed` and `free` on the run folder's disk if a checkpoint does not fit.

    Without `needed` it is the size of the largest that is there. All workers get rank 0's answer
    and must call this together.
    """
    import torch.distributed as dist

    found: list[Any] = [None]
    if dist.get_rank() == 0:
        if needed is None:
            needed = max(map(_size, checkpoints.glob("checkpoint_*")), default=0)
        free = shutil.disk_usage(checkpoints).free
        if free < needed + SPARE_BYTES:
            found = [{"needed": needed + SPARE_BYTES, "free": free}]
    dist.broadcast_object_list(found, src=0)
    short: dict[str, int] | None = found[0]
    return short


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
