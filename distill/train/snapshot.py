"""Ray Train's list of checkpoints, which a killed driver or a full disk can leave half written.

Ray Train writes it anew after every checkpoint, over the old one, and finds nothing if it cannot
read it. What it lists can be told from the checkpoints themselves: each says which files it has.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SNAPSHOT = "checkpoint_manager_snapshot.json"
POSITION = "position.json"


@dataclass(frozen=True)
class Kept:
    """A checkpoint folder that is whole."""

    name: str
    step: int
    validation_loss: float

    @property
    def metrics(self) -> dict[str, Any]:
        """What was reported with it."""
        return {"step": self.step, "validation_loss": self.validation_loss}


def newest_step(checkpoints: Path) -> int:
    """Return the step of the checkpoint that Ray Train resumes from; 0 if there is none."""
    listed = _read(checkpoints / SNAPSHOT) or {}
    latest = listed.get("latest_checkpoint_result") or {}
    return int(latest.get("metrics", {}).get("step", 0))


def list_files(folder: Path, *, worker: int) -> int:
    """Write the list of a worker's files of a checkpoint beside them; returns their bytes."""
    sizes = {
        str(path.relative_to(folder)): path.stat().st_size
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / _file_list(worker)).write_text(json.dumps(sizes))
    return sum(sizes.values())


def mend_snapshot(checkpoints: Path) -> None:
    """Before a start: make the list of checkpoints readable again, and drop unlisted folders.

    Where the list is broken or names a folder that is gone, it is made anew from those that are
    whole; what was uploaded in part by a worker that was killed is not.
    """
    path = checkpoints / SNAPSHOT
    # The list's own name begins like a folder's.
    folders = {f.name: f for f in checkpoints.glob("checkpoint_*") if f.is_dir()}
    listed = _read(path)
    names = _names(listed) if listed is not None else None
    if names is None or not names <= folders.keys():
        kept = [found for folder in folders.values() if (found := _whole(folder)) is not None]
        names = {found.name for found in kept}
        if kept:
            beside = path.with_name(f".{path.name}.tmp")
            beside.write_text(_snapshot(kept))
            beside.replace(path)
        else:
            path.unlink(missing_ok=True)
    for name, folder in folders.items():
        if name not in names:
            shutil.rmtree(folder)


def _snapshot(kept: list[Kept]) -> str:
    """Write the list as Ray Train 2.60 does: worst held-out loss first."""
    from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import (
        _CheckpointManagerState,
        _TrainingResultState,
    )

    by_step = sorted(kept, key=lambda found: found.step)
    by_loss = sorted(kept, key=lambda found: (-found.validation_loss, found.step))
    results = {
        found.name: _TrainingResultState(checkpoint_dir_name=found.name, metrics=found.metrics)
        for found in kept
    }
    state = _CheckpointManagerState(
        checkpoint_results=[results[found.name] for found in by_loss],
        checkpoint_report_indices=[by_step.index(found) for found in by_loss],
        latest_checkpoint_result=results[by_step[-1].name],
        pending_training_results=[],
        pending_validation_specs=[],
        current_report_index=len(kept),
        validated_checkpoint_dir_names=[],
        timed_out_validation_checkpoint_dir_names=[],
        failed_validation_checkpoint_dir_names=[],
    )
    return str(state.json())


def _whole(folder: Path) -> Kept | None:
    """Return what a checkpoint folder holds, or None if any worker's file is missing or short."""
    position = _read(folder / POSITION)
    if position is None:
        return None
    for worker in range(max(1, int(position["workers"]))):
        files = _read(folder / _file_list(worker))
        if files is None:
            return None
        for name, size in files.items():
            file = folder / name
            if not file.is_file() or file.stat().st_size != size:
                return None
    return Kept(folder.name, int(position["step"]), float(position["last_loss"]))


def _names(listed: dict[str, Any]) -> set[str] | None:
    """Folders that the list names; None if it is not the list that this Ray writes."""
    try:
        return {result["checkpoint_dir_name"] for result in listed["checkpoint_results"]}
    except (KeyError, TypeError):
        return None


def _read(path: Path) -> dict[str, Any] | None:
    try:
        value = json.loads(path.read_text())
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def _file_list(worker: int) -> str:
    return f"files-{worker}.json"
