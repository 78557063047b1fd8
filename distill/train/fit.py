"""One training through Ray Train: data, workers, checkpoints, and what an outcome means."""

from __future__ import annotations

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

from cluster.errors import DistilleryError, StageError, root_cause
from cluster.heap import heap_environment
from distill.train.config import StudentConfig, TrainConfig
from distill.train.feed import TRAINING, Feed
from distill.train.follow import Say
from distill.train.loop import WorkerConfig, run_worker
from distill.train.prepare import prepare_feed
from distill.train.sampler import start_sampler
from distill.train.saving import drop_uploads
from distill.train.snapshot import mend_snapshot, newest_step
from distill.train.watch import as_row, data_findings


def fit(
    config: StudentConfig,
    train: TrainConfig,
    *,
    records: list[dict[str, Any]],
    validation: list[dict[str, Any]],
    folder: Path,
    accelerator: str | None,
    say: Say | None = None,
) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
    """Return the preparation's summary, rank 0's last position, and the best checkpoint.

    `say` is told, before anything is loaded, where the teacher's vocabulary is padded. StageError
    when training cannot go on.
    """
    import ray
    import ray.data
    import ray.train
    from ray.train.torch import TorchConfig

    from distill.train.trainer import Trainer

    # Ray's minute is too short for a cluster that first has to add a node.
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", "600")
    sampler: Any = None
    try:
        task = ray.remote(num_cpus=0, num_returns=4)(prepare_feed)
        summary_ref, outline, encoded, held_out = task.options(
            runtime_env={"env_vars": preparing_environment()}
        ).remote(
            config,
            train,
            records=records,
            validation=validation,
            cache=folder / "checkpoints" / "encoded",
        )
        summary: dict[str, Any] = ray.get(summary_ref)
        if say is not None and summary.get("vocabulary_note"):
            say(f"train.{train.method}.teacher: {summary['vocabulary_note']}")
        if train.method == "on_policy":
            sampler = start_sampler(config, accelerator=accelerator)
        told = WorkerConfig(
            student=config.model_dump(),
            train=train.model_dump(),
            run_folder=str(folder),
            summary=summary,
            validation=[held_out],
            sampler=sampler,
            findings=[
                as_row(finding)
                for finding in data_findings(
                    num_given=len(records),
                    max_length=config.max_length,
                    too_long=summary["dropped_train"],
                    without_loss=summary["without_loss"],
                )
            ],
        )
        feed = Feed(train, folder / "checkpoints", [outline], [encoded])
        if train.in_process:
            from distill.train.here import train_here

            outcome, saved = train_here(told, feed, train, checkpoints=folder / "checkpoints")
            _raise_if_stopped(outcome, folder)
            place, metrics = saved[0]
            return summary, outcome, {"path": str(place), **metrics}
        trainer = Trainer(
            run_worker,
            train_loop_config=vars(told),
            torch_config=TorchConfig(backend="nccl" if accelerator else "gloo"),
            datasets={TRAINING: feed},
            dataset_config=ray.train.DataConfig(
                execution_options=ray.data.ExecutionOptions(preserve_order=True),
                enable_shard_locality=False,  # it would decide who gets which block
            ),
            scaling_config=ray.train.ScalingConfig(
                num_workers=train.workers,
                use_gpu=accelerator is not None,
                accelerator_type=accelerator,
            ),
            run_config=ray.train.RunConfig(
                # Ray Train resumes from what it finds under this name in this folder.
                name="checkpoints",
                storage_path=str(folder),
                failure_config=ray.train.FailureConfig(max_failures=train.max_failures),
                checkpoint_config=ray.train.CheckpointConfig(
                    num_to_keep=train.keep_checkpoints,
                    checkpoint_score_attribute="validation_loss",
                    checkpoint_score_order="min",
                ),
                worker_runtime_env={"env_vars": worker_environment(train, accelerator)},
            ),
        )
        result = trainer.fit()
    except Exception as error:
        cause = root_cause(error)
        if isinstance(cause, DistilleryError):
            raise cause from None
        if isinstance(cause, OSError) and cause.errno == errno.ENOSPC:
            raise StageError(_disk_full(folder, f"writing {cause.filename} failed")) from error
        raise StageError(f"training failed: {type(cause).__name__}: {cause}") from error
    finally:
        if sampler is not None:
            with suppress(ray.exceptions.RayError):  # one that died is not what went wrong first
                ray.get(sampler.stop.remote())
            ray.kill(sampler)
        drop_uploads(folder / "checkpoints")
    outcome = dict(result.return_value)
    _raise_if_stopped(outcome, folder)
    mend_snapshot(folder / "checkpoints")  # what killed workers left of their uploads goes
    kept = result.best_checkpoints or []
    checkpoint, metrics = min(kept, key=lambda pair: pair[1]["validation_loss"])
    best = {"path": checkpoint.path, **metrics}
    return summary, outcome, best


def _raise_if_stopped(outcome: dict[str, Any], folder: Path) -> None:
    if outcome["stopped"] == "disk_full":
        needed, free = (outcome[name] / 2**20 for name in ("needed", "free"))
        raise StageError(
            _disk_full(folder, f"a checkpoint takes {needed:.1f} MiB and {free:.1f} MiB are free")
        )
    if outcome["stopped"] == "not_finite":
        ids = ", ".join(outcome["example_ids"][:20])
        raise StageError(
            f"the loss or its gradient is not a number at step {outcome['step'] + 1}; the batch "
            f"held {ids}. Look at these records; lower train.learning_rate or train.max_grad_norm"
        )


def _disk_full(folder: Path, what: str) -> str:
    step = newest_step(folder / "checkpoints")
    kept = f"the checkpoint of step {step} is kept" if step else "no checkpoint was written yet"
    return (
        f"the disk of {folder} is full: {what}; {kept}. Free some space and run the same command "
        "again: it goes on from there"
    )


def preparing_environment() -> dict[str, str]:
    """Environment of the task that encodes the records."""
    return {
        "HF_HUB_OFFLINE": os.environ.get("HF_HUB_OFFLINE", "0"),
        # Off elsewhere, where processes fork; here nothing forks and every core may encode.
        "TOKENIZERS_PARALLELISM": "true",
    }


def worker_environment(train: TrainConfig, accelerator: str | None) -> dict[str, str]:
    """Environment of the training workers."""
    # DeepSpeed calls `ninja`, which lies beside the interpreter.
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")])
    env = {"PATH": path, "TOKENIZERS_PARALLELISM": "false", "DS_ACCELERATOR": "cuda"}
    if accelerator is None:
        env |= {
            "DS_ACCELERATOR": "cpu",
            "OMP_NUM_THREADS": str(train.threads_per_worker),
            # Two threads that spin while they wait are 1.4 times as fast on a machine that does
            # nothing else, and a quarter to half as fast beside other work: docs/log.md.
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
            **heap_environment(),
        }
    return env
