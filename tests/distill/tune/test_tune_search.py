"""A search on a real Ray: ASHA stops a bad trial, its workers go, and nothing is done twice."""

from __future__ import annotations

import json
import os
import random
import re
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_ray import local_ray

from cluster.storage import Store
from distill.train.config import StudentConfig, TrainConfig
from distill.train.saving import upload_prefix
from distill.tune.config import TuneConfig
from distill.tune.ledger import Study, settled
from distill.tune.outcome import outcome_of
from distill.tune.report import write_outcome
from distill.tune.search import run_search
from distill.tune.space import draw_points
from jobs.config import load_run_config

pytestmark = [pytest.mark.ray, pytest.mark.model, pytest.mark.slow]

STEPS = 300


def examples(first: int, count: int) -> list[dict[str, Any]]:
    made = []
    for i in range(first, first + count):
        draw = random.Random(i)
        kind, days = draw.choice(["TIMING", "MISSING"]), draw.randint(1, 9)
        made.append(
            {
                "example_id": f"e{i}",
                "messages": [{"role": "user", "content": f"Bank: {kind} {days}"}],
                "completion": json.dumps({"classification": kind, "days": days}),
            }
        )
    return made


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    with local_ray(num_cpus=2) as address:
        yield address


def uploads(trial: Path) -> list[Path]:
    """What is left on this machine of checkpoints that a trial's worker was uploading."""
    prefix = upload_prefix(trial / "checkpoints")
    return list(Path(tempfile.gettempdir()).glob(f"{prefix}*"))


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_bad_trial_is_stopped_and_a_second_call_does_nothing(
    ray_address: str, tiny_model: Path, tmp_path: Path
) -> None:

    import ray

    study = Study(
        folder=tmp_path / "tune",
        config=TuneConfig.model_validate(
            {
                "trials": 3,
                "rank": {"choices": [4]},
                "alpha_ratio": {"choices": [2]},
                "learning_rate": {"choices": [6e-3, 1e-8]},
                "epochs": {"choices": [10]},
                "reduction_factor": 2,
            }
        ),
        student=StudentConfig(model=str(tiny_model), rank=8, alpha=16),
        train=TrainConfig(
            workers=1,
            zero_stage=0,
            precision="fp32",
            epochs=10,
            batch_size=8,
            learning_rate=4e-3,
            eval_every=15,
            patience=100,
        ),
        records=examples(0, 240),
        validation=examples(1000, 16),
    )
    points = draw_points(study.config, student=study.student, train=study.train)
    (bad,) = [point for point in points if point.learning_rate == 1e-8]
    assert {study.total_steps(point) for point in points} == {STEPS}
    notes: list[str] = []
    workers: set[int] = set()

    left: list[str] = []

    def look(done: float, total: float, note: str) -> None:
        assert 0 <= done <= total == 3 * STEPS
        notes.append(note)
        starts = study.trial_folder(bad) / "checkpoints" / "starts.jsonl"
        if starts.is_file():
            workers.update(json.loads(line)["pid"] for line in starts.read_text().splitlines())
        if (study.trial_folder(bad) / "curves.jsonl").is_file() and not left:
            # As a worker leaves it that is killed while it uploads.
            left.append(tempfile.mkdtemp(prefix=upload_prefix(starts.parent)))

    run_search(study, on_progress=look)

    trials = {point: settled(study, point) for point in points}
    own, stopped = trials[points[0]], trials[bad]
    assert own is not None
    assert own.status == "finished"
    assert own.steps == STEPS
    # The rate of nearly zero is worse at the first look, and the training ended soon after it.
    assert stopped is not None
    assert stopped.status == "stopped"
    assert 15 <= stopped.steps < STEPS
    rows = (study.trial_folder(bad) / "curves.jsonl").read_text().splitlines()
    assert json.loads(rows[-1])["step"] < STEPS
    assert re.search("[12] stopped", notes[-1])  # the third draw may be no better
    assert len(workers) == 1
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and (
        any(map(alive, workers)) or ray.available_resources().get("CPU") != 2
    ):
        time.sleep(0.2)
    assert not any(map(alive, workers))
    assert ray.available_resources().get("CPU") == 2
    assert not list(study.folder.glob("trials/*/checkpoints"))
    assert left
    assert not any(map(uploads, [study.trial_folder(point) for point in points]))

    outcome = outcome_of(study)
    write_outcome(Store(tmp_path), outcome, name="tiny")
    base = tmp_path / "run.toml"
    base.write_text('[task]\nfolder = "t"\n[student]\nmodel = "m"\n')
    config = load_run_config([base, tmp_path / "tune" / "best.toml"])
    best = min(
        (t for t in trials.values() if t and t.status == "finished" and t.best_loss),
        key=lambda t: t.best_loss or 0.0,
    )
    assert (config.student.rank, config.train.learning_rate) == (
        best.point.rank,
        best.point.learning_rate,
    )

    before = {file: file.stat().st_mtime_ns for file in study.folder.rglob("*") if file.is_file()}
    run_search(study)
    after = {file: file.stat().st_mtime_ns for file in study.folder.rglob("*") if file.is_file()}
    assert before == after
