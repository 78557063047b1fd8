"""Has production drifted from the evaluation set? `python -m jobs.monitor --config FILE`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError, DriftError
from distill.monitor.monitor import SEVERITY, monitor, reference_rows
from distill.monitor.report import PAGE_FILE, WORDS, sentence, write_metrics, write_report
from distill.monitor.window import Window, parse_time, read_window
from jobs.config import RunConfig, load_run_config
from jobs.display import Display
from jobs.entry import parse_arguments
from jobs.guard import guarded
from jobs.run import Run

STUDENT = "predictions/student.parquet"


def monitor_run(
    files: Sequence[str | Path],
    *,
    overrides: Sequence[str] = (),
    since: str | None = None,
    until: str | None = None,
    metrics: str | None = None,
    display: Display | None = None,
) -> None:
    """Compare a window of the log with the run's held-out prompts; write and show what was found.

    Writes `monitor/monitor.json` and `monitor.html` into the run folder and, with `metrics`, a file
    of Prometheus gauges. DriftError (exit code 4) from `monitor.fail_at` on.
    """
    config = load_run_config(files, overrides=overrides)
    run = Run(config, display or Display())
    settings = config.monitor
    prompts = run.rows("prompts/test.parquet", stage="generate")
    predictions = run.rows(STUDENT, stage="evaluate")
    window = log_window(config, since=since, until=until, max_rows=settings.max_rows)
    report = monitor(
        run.task,
        settings,
        reference=reference_rows(prompts, predictions, masking=config.serve.request_log_masking),
        window=window,
        embeddings=config.curate.embeddings,
        min_valid=config.gates.min_schema_valid,
    )
    adapter = adapter_name(config)
    write_report(run.store, report, title=adapter)
    run.display.table(
        f"{adapter}: {report['num_compared']} requests against {report['num_reference']} held out",
        ["signal", "PSI", "p, corrected", "verdict"],
        [
            [
                signal["name"],
                "–" if signal["psi"] is None else f"{signal['psi']:.3f}",
                "–" if signal["p_adjusted"] is None else f"{signal['p_adjusted']:.3g}",
                WORDS[signal["verdict"]],
            ]
            for signal in report["signals"]
        ],
    )
    valid = report["validity"]["current"]
    if valid:
        low, high = valid["ci95"]
        run.display.say(f"valid answers {valid['share']:.1%} ({low:.1%}–{high:.1%})")
    run.display.say(sentence(report))
    run.display.say(f"report  {run.shown(PAGE_FILE)}")
    if metrics:
        write_metrics(metrics, report, adapter=adapter, now=datetime.now(UTC))
    if SEVERITY.get(report["verdict"], 0) >= SEVERITY[settings.fail_at]:
        raise DriftError(f"{sentence(report)}. See {run.shown(PAGE_FILE)}")


def adapter_name(config: RunConfig) -> str:
    """Name of the adapter whose requests count."""
    from distill.tasks.task import load_task

    name = config.monitor.adapter or config.registry.name
    return name or load_task(config.task.folder).name


def log_window(
    config: RunConfig, *, since: str | None, until: str | None, max_rows: int | None = None
) -> Window:
    """Read the log that the configuration names; ConfigError when it names none."""
    uri = config.monitor.log or config.serve.request_log
    if not uri:
        raise ConfigError(
            "there is no request log to read: set serve.request_log to the folder that the server "
            "writes, or monitor.log to a copy of it."
        )
    now = datetime.now(UTC)
    return read_window(
        uri,
        adapter=adapter_name(config),
        since=parse_time(since, now=now, option="--since"),
        until=parse_time(until, now=now, option="--until"),
        max_rows=max_rows,
        seed=config.monitor.seed,
    )


OPTIONS = ("--since", "--until", "--metrics")


def take_options(
    arguments: Sequence[str], names: Sequence[str]
) -> tuple[list[str], dict[str, Any]]:
    """Split `--since 24h` and the like off a command line; the rest is for `parse_arguments`."""
    rest: list[str] = []
    found: dict[str, Any] = {name.strip("-").replace("-", "_"): None for name in names}
    queue = list(arguments)
    while queue:
        name, equals, value = queue.pop(0).partition("=")
        if name not in names:
            rest.append(name + equals + value)
        elif not equals and not queue:
            raise ConfigError(f"{name}: a value must follow")
        else:
            found[name.strip("-").replace("-", "_")] = value if equals else queue.pop(0)
    return rest, found


def main() -> None:
    """Entry point of `python -m jobs.monitor`."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(
            "usage: python -m jobs.monitor --config FILE [--since 24h] [--until …] "
            "[--metrics FILE] [--section.field value …]"
        )
        raise SystemExit(0)

    def action() -> None:
        rest, options = take_options(sys.argv[1:], OPTIONS)
        files, overrides, _ = parse_arguments(rest)
        monitor_run(files, overrides=overrides, **options)

    raise SystemExit(guarded(action))


if __name__ == "__main__":
    main()
