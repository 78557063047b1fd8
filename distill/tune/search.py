"""The search: Ray Tune starts the trials, ASHA stops the bad ones, the ledger keeps each."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError, DistilleryError, StageError, root_cause
from distill.train.config import StudentConfig, TrainConfig
from distill.tune.config import TuneConfig
from distill.tune.ledger import (
    Study,
    Trial,
    drop_checkpoints,
    forget_failed,
    forget_other_searches,
    settled,
)
from distill.tune.space import Point, draw_points, largest

Progress = Callable[[float, float, str], None]

TRIAL_MEMORY_BYTES = 128 * 2**20
TUNE_ENVIRONMENT = {
    # Ctrl-C is ours: Tune's own handler would end the search as if it were complete.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # Between two looks a trial reports its step and no loss.
    "TUNE_DISABLE_STRICT_METRIC_CHECKING": "1",
}


def check_search(
    config: TuneConfig,
    *,
    student: StudentConfig,
    train: TrainConfig,
    max_lora_rank: int,
    logical_cpus: int | None,
) -> None:
    """Raise ConfigError, listing every problem, for what would fail after hours.

    `logical_cpus` are those of a local Ray that trains on CPU, None elsewhere.
    """
    problems = []
    rank = largest(config.rank)
    if rank > max_lora_rank:
        problems.append(
            f"tune.rank goes up to {rank}, above serve.max_lora_rank {max_lora_rank}: no "
            "replica could load that adapter; raise the one or lower the other"
        )
    wanted = config.max_concurrent * train.workers
    if logical_cpus is not None and wanted > logical_cpus:
        problems.append(
            f"tune.max_concurrent {config.max_concurrent} times train.workers {train.workers} "
            f"needs {wanted} CPUs, cluster.logical_cpus has {logical_cpus}; lower the first"
        )
    if train.max_steps is not None and len(set(config.epochs.choices or (0, 1))) > 1:
        problems.append(
            f"train.max_steps {train.max_steps} ends every training, whatever tune.epochs says; "
            "leave it out, or give tune.epochs one choice"
        )
    if student.tuning == "full":
        problems.append(
            "student.tuning 'full' has no rank and no alpha to search; take 'lora', 'rslora', "
            "'dora' or 'qlora'"
        )
    if problems:
        raise ConfigError("; ".join(problems))


def remaining(study: Study, points: Sequence[Point]) -> list[Point]:
    """Return the points that are not settled yet."""
    return [point for point in points if settled(study, point) is None]


def run_search(
    study: Study, *, retry_failed: bool = False, on_progress: Progress | None = None
) -> None:
    """Train what is not settled, on the connected Ray, then the best two with further seeds.

    Within `budget_minutes`, if given: what was running then goes on from its checkpoint in the
    next call. StageError when every trial failed.
    """
    points = draw_points(study.config, student=study.student, train=study.train)
    if retry_failed:
        forget_failed(study, points)
    if todo := remaining(study, points):
        _check_rank(study, todo)
    minutes = study.config.budget_minutes
    ends_at = math.inf if minutes is None else time.monotonic() + 60 * minutes
    run_trials(study, points, early_stopping=True, ends_at=ends_at, on_progress=on_progress)
    trials = [trial for point in points if (trial := settled(study, point))]
    if len(trials) == len(points) and all(trial.status == "failed" for trial in trials):
        raise StageError(f"all {len(trials)} trials failed, the first with: {trials[0].failure}")
    if len(trials) == len(points):
        seeds = confirmation_points(study, trials)
        if retry_failed:
            forget_failed(study, seeds)
        run_trials(study, seeds, early_stopping=False, ends_at=ends_at, on_progress=on_progress)


def ranking(trials: Sequence[Trial]) -> list[Trial]:
    """Return the finished trials, lowest held-out loss first.

    A stopped one has seen only a part of its schedule, so it is not compared.
    """
    finished = [(trial.best_loss, trial) for trial in trials if trial.status == "finished"]
    known = [(loss, trial) for loss, trial in finished if loss is not None]
    return [trial for _, trial in sorted(known, key=lambda pair: pair[0])]


def confirmation_points(study: Study, trials: Sequence[Trial]) -> list[Point]:
    """Return the best two with each further seed; nothing without two finished trials."""
    best = ranking(trials)[:2]
    if len(best) < 2:
        return []
    seeds = range(1, study.config.confirm_seeds + 1)
    return [replace(trial.point, seed=study.train.seed + k) for k in seeds for trial in best]


def run_trials(
    study: Study,
    points: Sequence[Point],
    *,
    early_stopping: bool,
    ends_at: float = math.inf,
    on_progress: Progress | None = None,
) -> None:
    """Train the points that are not settled and settle them; `ends_at` on the monotonic clock."""
    todo = remaining(study, points)
    left_s = ends_at - time.monotonic()
    if not todo or left_s <= 0:
        return
    os.environ.update({name: os.environ.get(name, v) for name, v in TUNE_ENVIRONMENT.items()})
    import ray
    from ray import tune
    from ray.tune.schedulers import FIFOScheduler

    from distill.tune.reports import Settler
    from distill.tune.trial import TrialTraining

    forget_other_searches(study, todo)
    drop_checkpoints(study, points)
    records = ray.put((study.records, study.validation))
    trials = [_told(study, point, records) for point in todo]
    logs = study.folder / "ray"
    # Tune's own state would only describe the call before; ours is in the trials' folders.
    shutil.rmtree(logs, ignore_errors=True)
    scheduler = _asha(study, points) if early_stopping else FIFOScheduler()
    tuner = tune.Tuner(
        # The trial itself waits; its training's workers are what takes CPUs or GPUs. They come
        # as one placement group, all or none, so trials cannot block each other half-way. Tune
        # accepts no empty request, and a part of a CPU would be missing from a small machine.
        tune.with_resources(
            tune.with_parameters(TrialTraining, trials=trials),
            {"CPU": 0, "memory": TRIAL_MEMORY_BYTES},
        ),
        param_space={"index": tune.grid_search(list(range(len(trials))))},
        tune_config=tune.TuneConfig(
            scheduler=scheduler,
            max_concurrent_trials=study.config.max_concurrent,
            time_budget_s=None if left_s == math.inf else left_s,
        ),
        run_config=tune.RunConfig(
            name=logs.name,
            storage_path=str(study.folder),
            verbose=0,
            callbacks=[Settler(study, points, todo, on_progress=on_progress)],
            # A lost trial starts again from its last checkpoint.
            failure_config=tune.FailureConfig(max_failures=study.train.max_failures),
        ),
    )
    tuner.fit()
    drop_checkpoints(study, points)


def _told(study: Study, point: Point, records: Any) -> dict[str, Any]:
    student, train = point.applied(study.student, study.train)
    return {
        "folder": str(study.trial_folder(point)),
        "student": student.model_dump(),
        "train": train.model_dump(),
        "accelerator": study.accelerator,
        # Inside a list, so that Ray hands over the reference and not a copy for each trial.
        "records": [records],
    }


def _check_rank(study: Study, todo: Sequence[Point]) -> None:
    """Raise ConfigError before the first trial if the model is too narrow for the last one."""
    import ray

    from distill.train.prepare import check_targets

    highest = max(todo, key=lambda point: point.rank)
    student, _ = highest.applied(study.student, study.train)
    try:
        ray.get(ray.remote(num_cpus=0)(check_targets).remote(student))
    except Exception as error:
        cause = root_cause(error)
        if isinstance(cause, DistilleryError):
            raise cause from None
        raise


def _asha(study: Study, points: Sequence[Point]) -> Any:
    """Return ASHA over looks at the held-out loss, which knows what was settled before."""
    from ray.tune.experiment import Trial as TuneTrial
    from ray.tune.schedulers import ASHAScheduler

    most = max(math.ceil(study.total_steps(p) / study.train.eval_every) for p in points)
    grace = study.config.grace_period
    scheduler = ASHAScheduler(
        time_attr="look",
        metric="validation_loss",
        mode="min",
        # Above the last look: the end of a training is its own business.
        max_t=max(most, grace) + 1,
        grace_period=grace,
        reduction_factor=study.config.reduction_factor,
    )
    for point in points:
        before = settled(study, point)
        if before is None or before.status == "failed":
            continue
        trial = TuneTrial(Path(study.trial_folder(point)).name, stub=True)
        scheduler.on_trial_add(None, trial)
        losses = [loss for step, loss in before.looks if step > 0]
        for look, loss in enumerate(losses, start=1):
            scheduler.on_trial_result(None, trial, {"look": look, "validation_loss": loss})
    return scheduler
