"""Ray Train's list of checkpoints after a kill or a full disk: what is whole counts."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from distill.train.snapshot import (
    POSITION,
    SNAPSHOT,
    list_files,
    mend_snapshot,
    newest_step,
)


def checkpoint(folder: Path, *, step: int, loss: float, workers: int = 2) -> Path:
    """A checkpoint as its workers upload it."""
    path = folder / f"checkpoint_{step}"
    for worker in range(workers):
        part = folder / f"part-{worker}"
        (part / "deepspeed").mkdir(parents=True)
        (part / "deepspeed" / f"zero_pp_rank_{worker}.pt").write_bytes(b"x" * 100)
        if worker == 0:
            position = {"step": step, "last_loss": loss, "workers": workers}
            (part / POSITION).write_text(json.dumps(position))
        list_files(part, worker=worker)
        for file in part.rglob("*"):
            if file.is_file():
                target = path / file.relative_to(part)
                target.parent.mkdir(parents=True, exist_ok=True)
                file.rename(target)
        (part / "deepspeed").rmdir()
        part.rmdir()
    return path


def listed(folder: Path) -> dict:
    return json.loads((folder / SNAPSHOT).read_text())


@pytest.mark.parametrize("text", ["", '{"checkpoint_results": [{"checkpoint_d', "{}"])
def test_half_a_list_is_made_anew_from_the_checkpoints_that_are_whole(
    tmp_path: Path, text: str
) -> None:
    for step, loss in ((10, 0.9), (20, 0.5), (30, 0.7)):
        checkpoint(tmp_path, step=step, loss=loss)
    short = checkpoint(tmp_path, step=40, loss=0.1) / "deepspeed" / "zero_pp_rank_1.pt"
    short.write_bytes(b"x" * 99)
    (checkpoint(tmp_path, step=50, loss=0.1) / "files-1.json").unlink()
    (tmp_path / "checkpoint_60").mkdir()
    (tmp_path / SNAPSHOT).write_text(text)
    mend_snapshot(tmp_path)
    assert newest_step(tmp_path) == 30
    # Ray Train keeps the last of its list, so the worst comes first.
    losses = [
        result["metrics"]["validation_loss"] for result in listed(tmp_path)["checkpoint_results"]
    ]
    assert losses == [0.9, 0.7, 0.5]
    assert sorted(path.name for path in tmp_path.glob("checkpoint_*")) == [
        "checkpoint_10", "checkpoint_20", "checkpoint_30", SNAPSHOT,
    ]  # fmt: skip
    before = listed(tmp_path)
    mend_snapshot(tmp_path)
    assert listed(tmp_path) == before


def test_a_list_that_names_what_is_gone_is_made_anew(tmp_path: Path) -> None:
    for step in (10, 20):
        checkpoint(tmp_path, step=step, loss=1 / step, workers=1)
    (tmp_path / SNAPSHOT).write_text("")
    mend_snapshot(tmp_path)
    for file in sorted((tmp_path / "checkpoint_20").rglob("*"), reverse=True):
        file.unlink() if file.is_file() else file.rmdir()
    (tmp_path / "checkpoint_20").rmdir()
    mend_snapshot(tmp_path)
    assert newest_step(tmp_path) == 10


def test_without_a_whole_checkpoint_the_run_starts_over(tmp_path: Path) -> None:
    (checkpoint(tmp_path, step=10, loss=1.0) / POSITION).unlink()
    (tmp_path / SNAPSHOT).write_text("{")
    mend_snapshot(tmp_path)
    assert newest_step(tmp_path) == 0
    assert not list(tmp_path.glob("checkpoint_*"))  # the list is gone too
