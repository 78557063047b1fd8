"""What is known of each trial, on disk as soon as it is settled: a second call trains none twice.

A trial has a folder of its own under `trials/`, named by a digest of everything that decides it:
student, training and records. So a search with other ranges finds what an earlier one trained.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cluster.storage import digest_of
from distill.train.config import StudentConfig, TrainConfig
from distill.train.follow import CURVES, read_rows
from distill.train.items import rows_digest
from distill.train.saving import drop_uploads
from distill.tune.config import TuneConfig
from distill.tune.space import Point

TRIAL_FILE = "trial.json"
NOT_SEARCH = {"max_concurrent", "budget_minutes", "confirm_seeds"}
"""Fields of `[tune]` that change no trial's fate."""

Row = dict[str, Any]


@dataclass(frozen=True)
class Study:
    """What is tuned, on what, and where it is kept."""

    folder: Path
    config: TuneConfig
    student: StudentConfig
    train: TrainConfig
    records: list[Row]
    validation: list[Row]
    accelerator: str | None = None

    @cached_property
    def records_digest(self) -> str:
        """Digest of what is trained on and what the loss is measured on."""
        return rows_digest(self.records, self.validation)

    @property
    def digest(self) -> str:
        """Digest of what decides which trials there are and which of them ASHA stops."""
        tune = self.config.model_dump(mode="json", exclude=NOT_SEARCH)
        base = [self.student.model_dump(mode="json"), self.train.model_dump(mode="json")]
        return digest_of([tune, base, self.records_digest])

    def trial_folder(self, point: Point) -> Path:
        """Folder of a trial's curves, adapter and `trial.json`."""
        parts = [part.model_dump(mode="json") for part in point.applied(self.student, self.train)]
        return self.folder / "trials" / digest_of([parts, self.records_digest])[:12]

    def total_steps(self, point: Point) -> int:
        """Optimiser steps of a whole training, unless records are too long or it stops early."""
        steps = point.epochs * math.ceil(len(self.records) / self.train.batch_size)
        return min(steps, self.train.max_steps or steps)


@dataclass(frozen=True)
class Trial:
    """A settled trial; losses are nats a completion token."""

    point: Point
    status: str
    """`finished`, `stopped` (by ASHA) or `failed`."""
    looks: list[list[float]]
    """[optimiser step, held-out loss], the base model's at step 0 first."""
    study: str
    """Digest of the search that settled it: another would stop other trials."""
    failure: str = ""
    seconds: float = 0.0
    """Time in optimiser steps and looks."""

    @property
    def best_loss(self) -> float | None:
        """Lowest held-out loss after the start; None before the first look."""
        return min((loss for step, loss in self.looks if step > 0), default=None)

    @property
    def steps(self) -> int:
        """Step of the last look."""
        return int(self.looks[-1][0]) if self.looks else 0


def settled(study: Study, point: Point) -> Trial | None:
    """Return what is known of a point, unless only another search's ASHA stopped it."""
    file = study.trial_folder(point) / TRIAL_FILE
    if not file.is_file():
        return None
    row = json.loads(file.read_text(encoding="utf-8"))
    trial = Trial(**{**row, "point": Point(**row["point"])})
    return trial if trial.status == "finished" or trial.study == study.digest else None


def settle(study: Study, point: Point, *, status: str, failure: str = "") -> Trial:
    """Write a trial's `trial.json` from its curves."""
    folder = study.trial_folder(point)
    rows = read_rows(folder / CURVES)
    trial = Trial(
        point=point,
        status=status,
        looks=looks_of(rows),
        study=study.digest,
        failure=failure,
        seconds=round(training_seconds(rows), 1),
    )
    folder.mkdir(parents=True, exist_ok=True)
    beside = folder / f".{TRIAL_FILE}.tmp"
    beside.write_text(json.dumps(asdict(trial), indent=2) + "\n", encoding="utf-8")
    beside.replace(folder / TRIAL_FILE)
    return trial


def drop_checkpoints(study: Study, points: Iterable[Point]) -> None:
    """Remove checkpoints of settled trials; call it when none of them can still be writing."""
    for point in points:
        if settled(study, point) is not None:
            checkpoints = study.trial_folder(point) / "checkpoints"
            shutil.rmtree(checkpoints, ignore_errors=True)
            drop_uploads(checkpoints)


def forget_other_searches(study: Study, points: Iterable[Point]) -> None:
    """Remove what is left of trials that another search stopped."""
    for point in points:
        if settled(study, point) is None and (study.trial_folder(point) / TRIAL_FILE).is_file():
            shutil.rmtree(study.trial_folder(point))


def forget_failed(study: Study, points: Iterable[Point]) -> None:
    """Remove what is left of trials that failed, so that they are trained again."""
    for point in points:
        before = settled(study, point)
        if before is not None and before.status == "failed":
            shutil.rmtree(study.trial_folder(point))


def looks_of(rows: list[Row]) -> list[list[float]]:
    """Return [step, held-out loss] of the rows that have one."""
    return [
        [row["step"], row["validation_loss"]]
        for row in rows
        if row.get("validation_loss") is not None
    ]


def training_seconds(rows: list[Row]) -> float:
    """Add up the time of steps (tokens of the step ÷ its rate) and looks."""
    seconds, before = 0.0, 0
    for row in rows:
        if row.get("tokens_per_s"):
            seconds += (row["tokens"] - before) / row["tokens_per_s"]
            before = row["tokens"]
        seconds += row.get("look_s", 0.0)
    return seconds
