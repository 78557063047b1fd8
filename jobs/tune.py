"""Search rank, alpha, learning rate and epochs: `python -m jobs.tune --config FILE`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import ExitStack
from importlib import import_module
from pathlib import Path

from cluster.models import model_location
from distill.tune.ledger import Study, settled
from distill.tune.outcome import outcome_of
from distill.tune.report import (
    BEST_FILE,
    COLUMNS,
    JSON_FILE,
    PAGE_FILE,
    table_rows,
    write_outcome,
)
from distill.tune.search import check_search, confirmation_points, remaining, run_search
from distill.tune.space import draw_points
from jobs.config import load_run_config
from jobs.entry import connected, opened_run, parse_arguments
from jobs.guard import guarded
from jobs.preflight import preflight
from jobs.run import Run
from jobs.summary import command_name
from jobs.train import rows_for

BEFORE = ("generate", "curate")


def tune(
    files: Sequence[str | Path], *, overrides: Sequence[str] = (), retry_failed: bool = False
) -> None:
    """Do the stages before training if need be, search, and write what was found.

    Trials that are settled are not trained again; a search that was killed goes on.
    """
    config = load_run_config(files, overrides=overrides)
    local_cpu = config.cluster.address == "local" and config.cluster.accelerator is None
    check_search(
        config.tune,
        student=config.student,
        train=config.train,
        max_lora_rank=config.serve.max_lora_rank,
        logical_cpus=config.cluster.logical_cpus if local_cpu else None,
    )
    with ExitStack() as stack:
        run = stack.enter_context(opened_run(config))
        run.display.say(f"run {run.shown()}, engine logs in {run.shown('logs')}")
        todo = run.unfinished(BEFORE)
        preflight(run, [*todo, "train"])
        if todo:
            stack.enter_context(connected(run))
        for stage in BEFORE:
            run.perform(stage, import_module(f"jobs.{stage}").work)
        study = _study(run)
        if _is_complete(study) and not retry_failed:
            run.display.say("✓ tune      every trial is settled (done before)")
        else:
            stack.enter_context(connected(run))
            with run.display.step("tune") as progress:
                run_search(study, retry_failed=retry_failed, on_progress=progress.update)
        show(run, study, files=files)


def show(run: Run, study: Study, *, files: Sequence[str | Path]) -> None:
    """Write the outcome's files, print the table, the sentences and the next command."""
    outcome = outcome_of(study)
    write_outcome(run.store, outcome, name=run.config.run.name)
    titles = [column.replace("_", " ") for column in COLUMNS]
    run.display.table("trials", titles, table_rows(outcome))
    for sentence in outcome["sentences"]:
        run.display.say(sentence)
    run.display.say(f"figures  {run.shown(JSON_FILE)}")
    run.display.say(f"plots    {run.shown(PAGE_FILE)}")
    if outcome["best"] is not None:
        best = run.shown(BEST_FILE)
        run.display.say(f"use it   {command_name()} run {' '.join(map(str, files))} {best}")


def _study(run: Run) -> Study:
    config = run.config
    records, validation = rows_for(run)
    return Study(
        folder=run.folder / "tune",
        config=config.tune,
        student=config.student.model_copy(update={"model": model_location(config.student.model)}),
        train=config.train,
        records=records,
        validation=validation,
        accelerator=config.cluster.accelerator,
    )


def _is_complete(study: Study) -> bool:
    points = draw_points(study.config, student=study.student, train=study.train)
    if remaining(study, points):
        return False
    trials = [trial for point in points if (trial := settled(study, point))]
    return not remaining(study, confirmation_points(study, trials))


def main() -> None:
    """Entry point of `python -m jobs.tune`."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print("usage: python -m jobs.tune --config FILE [--retry-failed] [--tune.field value …]")
        raise SystemExit(0)

    def action() -> None:
        retry = "--retry-failed" in sys.argv[1:]
        arguments = [argument for argument in sys.argv[1:] if argument != "--retry-failed"]
        files, overrides, _ = parse_arguments(arguments)
        tune(files, overrides=overrides, retry_failed=retry)

    raise SystemExit(guarded(action))


if __name__ == "__main__":
    main()
