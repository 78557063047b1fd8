"""The training stage: one student through Ray Train, from records to an adapter folder."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from cluster.models import model_digest, model_location
from cluster.storage import digest_of
from distill.train.cache_logprobs import cache_location
from distill.train.checkpoint import STUDENT
from distill.train.config import RUNNING, StudentConfig, TrainConfig
from distill.train.fit import fit
from distill.train.follow import Progress, Say, following, read_rows
from distill.train.items import rows_digest
from distill.train.liger import check_liger
from distill.train.loop import STARTS
from distill.train.prepare import check_model_folder, check_settings
from distill.train.snapshot import mend_snapshot
from distill.train.track import check_trackers, tracking
from distill.train.watch import FINDINGS


@dataclass(frozen=True)
class TrainResult:
    """What a training run came to; losses are nats a completion token."""

    adapter: str
    """Folder of the best checkpoint's PEFT adapter, or of its whole model where all was trained."""
    base_validation_loss: float
    final_validation_loss: float
    best_validation_loss: float
    steps: int
    tokens: int
    """Prompt and completion tokens trained on, without padding."""
    seconds: float
    """Time in optimiser steps, without set-up and evaluation."""
    tokens_per_s: float
    dropped_train: int
    """Records left out because they exceed `student.max_length`."""
    dropped_validation: int
    restarts: int
    """How often the workers started again after a failure or a killed driver."""
    stopped_early: bool
    findings: list[dict[str, Any]] = field(default_factory=list)
    """Trouble that was named on the way: the rows of `findings.jsonl`."""


def train(
    config: StudentConfig,
    train: TrainConfig,
    *,
    records: list[dict[str, Any]],
    validation: list[dict[str, Any]],
    run_folder: str | Path,
    accelerator: str | None = None,
    on_progress: Progress | None = None,
    say: Say | None = None,
) -> TrainResult:
    """Train a student on the connected Ray and leave its adapter in `<run_folder>/adapter`.

    A record has `example_id`, `messages` and what `make_items` takes for the method. A second call
    with the same arguments resumes what was interrupted and returns what was finished. From other
    threads `on_progress` is called with rows of `curves.jsonl` and `say` with trouble in words; it
    is also told where the teacher's vocabulary is padded.
    Raises ConfigError or DataError before anything is loaded for what can be known then, and
    StageError when training cannot go on.
    """
    check_settings(config, train)
    if train.in_process and accelerator is not None:
        raise ConfigError(
            f"train.in_process trains on CPU and cluster.accelerator is {accelerator!r}; set "
            "train.in_process = false, or leave the accelerator out"
        )
    check_liger(train, on_gpu=accelerator is not None)
    train = with_absolute_paths(train.for_hardware(accelerator))
    check_model_folder(config.model)
    check_trackers(train.track)
    folder = Path(run_folder).absolute()
    checkpoints = folder / "checkpoints"
    made_from = _fingerprint(config, train, records, validation)
    _claim(checkpoints, made_from)
    mend_snapshot(checkpoints)
    done = _finished(folder / output_folder(config), made_from)
    if done is not None:
        return done

    settings = {"train.records": len(records)} | {
        f"{section}.{name}": value
        for section, model in (("student", config), ("train", train))
        for name, value in model.model_dump(exclude={"track"}).items()
    }
    with (
        following(folder, on_progress=on_progress, say=say),
        tracking(train.track, folder=folder, settings=settings, say=say),
    ):
        summary, outcome, best = fit(
            config,
            train,
            records=records,
            validation=validation,
            folder=folder,
            accelerator=accelerator,
            say=say,
        )
    output = folder / output_folder(config)
    _replace_folder(Path(best["path"]) / STUDENT, output)
    starts = (checkpoints / STARTS).read_text().splitlines()
    result = TrainResult(
        adapter=str(output),
        base_validation_loss=outcome["base_loss"],
        final_validation_loss=outcome["last_loss"],
        best_validation_loss=best["validation_loss"],
        steps=outcome["step"],
        tokens=outcome["tokens"],
        seconds=round(outcome["seconds"], 2),
        tokens_per_s=round(outcome["tokens"] / max(outcome["seconds"], 1e-9), 1),
        dropped_train=len(summary["dropped_train"]),
        dropped_validation=len(summary["dropped_validation"]),
        restarts=len(starts) - 1,
        stopped_early=outcome["stopped"] == "early",
        findings=read_rows(folder / FINDINGS),
    )
    _write_json(folder / "train.json", {"made_from": made_from, "result": asdict(result)})
    return result


def with_absolute_paths(train: TrainConfig) -> TrainConfig:
    """Return the settings with paths that workers in other folders understand.

    ConfigError for a teacher's folder without a model.
    """
    changes: dict[str, Any] = {}
    if train.method in ("kd", "on_policy"):
        settings = getattr(train, train.method)
        teacher = model_location(settings.teacher, field=f"train.{train.method}.teacher")
        found = {"teacher": teacher}
        if train.method == "kd":
            found["cache"] = cache_location(train.kd.cache)
        changes[train.method] = settings.model_copy(update=found)
    if train.mix is not None and "://" not in train.mix.data:
        data = str(Path(train.mix.data).expanduser().absolute())
        changes["mix"] = train.mix.model_copy(update={"data": data})
    return train.model_copy(update=changes)


def _fingerprint(
    config: StudentConfig,
    train: TrainConfig,
    records: list[dict[str, Any]],
    validation: list[dict[str, Any]],
) -> dict[str, str]:
    """Digests of what decides the outcome; fields that only tune the running are left out."""
    return {
        "student": digest_of(config.model_dump()),
        "train": digest_of(train.model_dump(exclude=set(RUNNING))),
        "records": rows_digest(records, validation),
        # A folder keeps its name when the model in it changes.
        "weights": model_digest(config.model),
    }


def _differing(before: dict[str, str], made_from: dict[str, str]) -> list[str]:
    """Names of the digests that differ from what a folder was made from."""
    # Folders from before the weights were noted: theirs are taken for the same.
    before = {"weights": made_from["weights"], **before}
    return [key for key, digest in made_from.items() if before.get(key) != digest]


def _claim(checkpoints: Path, made_from: dict[str, str]) -> None:
    """Mark the checkpoint folder as this configuration's, or refuse another's checkpoints."""
    marker = checkpoints / "made_from.json"
    if marker.is_file():
        before = json.loads(marker.read_text())
        differs = _differing(before, made_from)
        if differs:
            raise ConfigError(
                f"{checkpoints} holds checkpoints of another run: its {', '.join(differs)} "
                "differ; give the run another name or delete the folder"
            )
        if before == made_from:  # there may be no room left to write it once more
            return
    _write_json(marker, made_from)


def output_folder(config: StudentConfig) -> str:
    """Name of the folder for what was trained: `adapter`, or `model` where all weights were."""
    return "model" if config.tuning == "full" else "adapter"


def _finished(output: Path, made_from: dict[str, str]) -> TrainResult | None:
    report = output.parent / "train.json"
    if not report.is_file() or not output.is_dir():
        return None
    before = json.loads(report.read_text())
    return None if _differing(before["made_from"], made_from) else TrainResult(**before["result"])


def _replace_folder(source: Path, target: Path) -> None:
    """Copy a folder beside its place and rename it."""
    beside = target.with_name(f".{target.name}.tmp")
    shutil.rmtree(beside, ignore_errors=True)
    shutil.copytree(source, beside)
    shutil.rmtree(target, ignore_errors=True)
    beside.rename(target)


def _write_json(path: Path, value: dict[str, Any]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    beside.write_text(json.dumps(value, indent=2) + "\n")
    beside.replace(path)
