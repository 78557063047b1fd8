"""The main job: every stage in order, then the closing tables. Reads top to bottom.

`distillery run jobs/runs/demo.toml` or `python -m jobs.pipeline --config jobs/runs/demo.toml`
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from importlib import import_module

from jobs.config import load_run_config
from jobs.entry import Work, connected, opened_run, parse_arguments
from jobs.guard import guarded
from jobs.preflight import preflight
from jobs.run import stages_until
from jobs.summary import print_summary

WITHOUT_RAY = {"gate", "publish"}


def run_pipeline(
    files: Sequence[str],
    *,
    overrides: Sequence[str] = (),
    until: str = "deploy",
    again: bool = False,
) -> None:
    """Run the stages up to `until`; what is done is not done again unless `again`.

    Raises GateError (exit code 3) after the evaluation when a gate fails.
    """
    stages = stages_until(until)
    config = load_run_config(files, overrides=overrides)
    with ExitStack() as stack:
        run = stack.enter_context(opened_run(config))
        run.display.say(f"run {run.shown()}, engine logs in {run.shown('logs')}")
        todo = run.unfinished(stages, again=again)
        preflight(run, todo)
        if set(todo) - WITHOUT_RAY:
            stack.enter_context(connected(run))
        for stage in stages:
            run.perform(stage, _work(stage), again=again)
        print_summary(run, arguments=[*files, *overrides])


def _work(stage: str) -> Work:
    # Imported when its turn comes: a run that only publishes loads no trainer.
    work: Callable[..., object] = import_module(f"jobs.{stage}").work
    return work  # type: ignore[return-value]


def _main() -> None:
    if {"-h", "--help"} & set(sys.argv[1:]):
        print("usage: python -m jobs.pipeline --config FILE [--again] [--section.field value …]")
        return
    files, overrides, again = parse_arguments(sys.argv[1:])
    run_pipeline(files, overrides=overrides, again=again)


if __name__ == "__main__":
    raise SystemExit(guarded(_main))
