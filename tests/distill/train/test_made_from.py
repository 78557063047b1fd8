"""What makes a training another one: a folder's checkpoints and its result are of one making."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ConfigError, StageError
from distill.train import stage
from distill.train.checkpoint import STUDENT
from distill.train.config import StudentConfig, TrainConfig
from distill.train.loop import STARTS
from distill.train.stage import TrainResult, train

RECORDS: list[dict[str, Any]] = [
    {"example_id": "a", "messages": [{"role": "user", "content": "1 + 1?"}], "completion": "2"}
]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    folder = tmp_path / "base"
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"first")
    return folder


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Replaces the training itself by one that writes what a training leaves; its calls."""
    calls: list[str] = []

    def fit(config: StudentConfig, *_: Any, folder: Path, **__: Any) -> Any:
        calls.append(config.model)
        kept = folder / "checkpoints" / "kept"
        (kept / STUDENT).mkdir(parents=True, exist_ok=True)
        (folder / "checkpoints" / STARTS).write_text("{}\n")
        summary: dict[str, Any] = {"dropped_train": [], "dropped_validation": []}
        outcome = {
            "base_loss": 2.0, "last_loss": 1.0, "step": 1, "tokens": 9, "seconds": 1.0,
            "stopped": "",
        }  # fmt: skip
        return summary, outcome, {"path": str(kept), "validation_loss": 1.0}

    monkeypatch.setattr(stage, "fit", fit)
    return calls


def run(base: Path, folder: Path, **changes: Any) -> TrainResult:
    return train(
        StudentConfig(model=str(base)),
        TrainConfig(precision="fp32", **changes),
        records=RECORDS,
        validation=RECORDS,
        run_folder=folder,
    )


def test_other_weights_at_the_same_path_do_not_resume(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any, **__: Any) -> Any:
        raise StageError("killed")

    monkeypatch.setattr(stage, "fit", killed)
    for _ in range(2):
        with pytest.raises(StageError, match="killed"):
            run(base, tmp_path / "run")
    (base / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ConfigError, match="checkpoints of another run: its weights differ"):
        run(base, tmp_path / "run")


def test_other_weights_at_the_same_path_are_not_finished(
    base: Path, tmp_path: Path, trained: list[str]
) -> None:
    folder = tmp_path / "run"
    first = run(base, folder)
    assert run(base, folder) == first
    assert len(trained) == 1
    (base / "model.safetensors").write_bytes(b"other")
    with pytest.raises(ConfigError, match="its weights differ; give the run another name"):
        run(base, folder)
    (folder / "checkpoints" / "made_from.json").unlink()
    run(base, folder)
    assert len(trained) == 2


def test_a_run_from_before_the_weights_were_noted_is_finished_and_notes_them(
    base: Path, tmp_path: Path, trained: list[str]
) -> None:
    folder = tmp_path / "run"
    first = run(base, folder)
    report, marker = folder / "train.json", folder / "checkpoints" / "made_from.json"
    old = json.loads(report.read_text())
    del old["made_from"]["weights"]
    report.write_text(json.dumps(old))
    marker.write_text(json.dumps(old["made_from"]))
    assert run(base, folder) == first
    assert len(trained) == 1
    assert "weights" in json.loads(marker.read_text())
