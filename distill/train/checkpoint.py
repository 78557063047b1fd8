"""A checkpoint: what was trained, DeepSpeed's state cut up by worker, and where the run stands."""

from __future__ import annotations

import argparse
import json
import math
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from distill.train.config import TrainConfig
from distill.train.snapshot import POSITION

STATE_TAG = "deepspeed"
STUDENT = "adapter"
"""Folder of what was trained in a checkpoint: an adapter, or the model where all was trained."""


@dataclass
class Position:
    """Where the run stands; lies in every checkpoint as `position.json`."""

    step: int = 0
    tokens: int = 0
    seconds: float = 0.0
    base_loss: float = math.nan
    best_loss: float = math.inf
    last_loss: float = math.nan
    looks_without_gain: int = 0
    stopped: str = ""
    workers: int = 0
    """Workers that the optimiser's state was cut up for; 0 in checkpoints that do not say."""


def save_state(
    engine: Any, student: Any, position: Position, folder: Path, *, train: TrainConfig
) -> None:
    """Write this worker's part of a checkpoint: adapter, optimiser state, position."""
    import torch.distributed as dist

    from distill.train.model import save_student

    save_student(student, folder / STUDENT, zero_stage=train.zero_stage)
    engine.save_checkpoint(str(folder), tag=STATE_TAG, exclude_frozen_parameters=True)
    if dist.get_rank() == 0:
        (folder / POSITION).write_text(json.dumps(asdict(position)))


def load_state(engine: Any, folder: Path, *, workers: int) -> Position:
    """Load a checkpoint into the engine and return where it was made.

    One that other workers cut up goes through DeepSpeed's universal checkpoint, which is not cut
    (Lian et al. 2024).
    """
    position = Position(**json.loads((folder / POSITION).read_text()))
    is_cut_up = any((folder / STATE_TAG).glob("*zero_pp_rank_*"))
    if position.workers in (0, workers) or not is_cut_up:
        engine.load_checkpoint(str(folder), tag=STATE_TAG, load_module_strict=False)
        return position
    from deepspeed.checkpoint import ds_to_universal

    with tempfile.TemporaryDirectory(prefix="universal-") as whole:
        told = argparse.Namespace(
            input_folder=str(folder / STATE_TAG),
            output_folder=str(Path(whole) / STATE_TAG),
            num_extract_workers=1,
            num_merge_workers=1,
            keep_temp_folder=False,
            strict=True,
            inject_missing_state=True,
        )
        ds_to_universal.main(told)
        engine._config.load_universal_checkpoint = True
        engine.load_checkpoint(whole, tag=STATE_TAG, load_module_strict=False)
        engine._config.load_universal_checkpoint = False
    return position
