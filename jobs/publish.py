"""Publish the adapter as an immutable version and move the alias: `python -m jobs.publish …`."""

from __future__ import annotations

import json

from cluster.errors import StageError
from cluster.models import model_digest, model_name
from cluster.registry import AdapterManifest, Registry
from cluster.storage import digest_of
from distill.teach.config import ModelTeacher, members_of
from distill.teach.identity import teacher_name
from distill.teach.terms import describe_terms
from jobs.display import StepProgress
from jobs.entry import stage_main
from jobs.run import Run, StageResult
from jobs.train import training_records


def work(run: Run, progress: StepProgress) -> StageResult:
    """Write the next version to the registry; only a run whose gates passed gets here."""
    if run.finished("gate") is None or not run.read_json("gates.json")["passed"]:
        raise StageError(
            "the gates have not passed for this configuration, so nothing is published: run "
            "`python -m jobs.gate --config …` and see gates.json."
        )
    config = run.config
    base_digest = trained_on(run)
    adapter = run.folder / "adapter"
    lora = json.loads((adapter / "adapter_config.json").read_text())
    records = training_records(run, "train")
    registry = Registry(config.registry.uri)
    manifest = registry.publish(
        adapter,
        AdapterManifest(
            name=config.registry.name or run.task.name,
            base_model=model_name(config.student.model),
            base_digest=base_digest,
            rank=int(lora["r"]),
            alpha=float(lora["lora_alpha"]),
            target_modules=sorted(lora["target_modules"]),
            task=run.task.name,
            task_digest=run.task.digest,
            dataset_digest=digest_of([[r["example_id"], r["completion"]] for r in records]),
            teacher=teacher_name(config.teacher, run.task),
            teacher_terms="; ".join(
                describe_terms(member)
                for member in members_of(config.teacher)
                if isinstance(member, ModelTeacher)
            ),
            train=config.train.model_dump(mode="json"),
            gates=run.read_json("gates.json")["gates"],
        ),
    )
    note = f"{manifest.model_name} in {config.registry.uri}"
    if config.registry.promote:
        name, alias = manifest.name, config.registry.alias
        if registry.aliases(name).get(alias) != manifest.version:
            registry.promote(name, manifest.version, alias=alias)
        note += f", alias {alias} -> v{manifest.version}"
    return StageResult(rows_in=1, rows_out=1, note=note, figures={"version": manifest.version})


def trained_on(run: Run) -> str:
    """`model_digest` of the base; StageError where it is no longer what the adapter was made on."""
    model = run.config.student.model
    found = model_digest(model)
    report = run.read_json("train.json") if run.store.exists("train.json") else {}
    # Trainings from before it was noted have none.
    before = report.get("made_from", {}).get("weights", found)
    if before != found:
        raise StageError(
            f"student.model: config.json or weights in {model!r} have changed since {run.shown()} "
            "was trained on them, and its adapter fits no other: put the old ones back, or train "
            "again with `distillery run … --again`"
        )
    return found


if __name__ == "__main__":
    stage_main("publish", work, needs_ray=False)
