"""The commands after a student serves: `distillery monitor`, `relabel` and `route`."""

from __future__ import annotations

from typing import Any

import click

from jobs.arguments import OVERRIDES, POSITIVE, split


@click.command(context_settings=OVERRIDES)
@click.argument("config", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--since", help="Start of the window: 2026-05-01, 2026-05-01T12:00, 24h, 7d.")
@click.option("--until", help="Its end; without it, now.")
@click.option("--metrics", metavar="FILE", help="Write gauges for node exporter's textfiles.")
def monitor(config: tuple[str, ...], **options: Any) -> None:
    """Compare the request log with the run's held-out prompts and answers.

    Lengths, fields of the answers, embeddings, and the share of valid answers over time; writes
    monitor.json and monitor.html into the run folder. Exits 4 on drift. `[monitor]` has the
    thresholds.
    """
    from jobs.monitor import monitor_run

    files, overrides = split(config)
    monitor_run(files, overrides=overrides, **options)


@click.command(context_settings=OVERRIDES)
@click.argument("config", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--budget-usd", type=POSITIVE, required=True, help="Dollars for this version.")
@click.option("--since", help="Start of the window: 2026-05-01, 2026-05-01T12:00, 24h, 7d.")
@click.option("--until", help="Its end; without it, now.")
def relabel(config: tuple[str, ...], **options: Any) -> None:
    """Let the teacher answer what the student got wrong, doubted or never saw; grow the dataset.

    Failures, low confidence and uncovered prompts of the request log become a new dataset version,
    checked like any answer. Ends with the command of the next run. What was answered once is not
    asked again. `[relabel]` has the rules.
    """
    from jobs.relabel import relabel as run_relabel

    files, overrides = split(config)
    run_relabel(files, overrides=overrides, **options)


@click.command(context_settings=OVERRIDES)
@click.argument("config", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--since", help="Take the log's outcomes too, from: 2026-05-01, 24h, 7d.")
@click.option("--until", help="And up to; without it, now.")
@click.option("--other", metavar="RUN", help="Folder of a run whose student is the other model; "
              "without it the teacher is.")  # fmt: skip
@click.option("--max-usd-per-1k", type=POSITIVE, help="Most accurate for at most so much.")
@click.option("--min-quality", type=click.FloatRange(0, 1), help="Cheapest of such accuracy.")
@click.option("--teacher-share", type=click.FloatRange(0, 1), help="Most that is sent away.")
def route(config: tuple[str, ...], **options: Any) -> None:
    """Learn which prompts the student gets wrong; show what sending them elsewhere brings.

    Writes routing.json, which `[serve.routing.<name>]` takes, and routing.html with the
    cost-quality curve into the run folder. Says so where difficulty cannot be read off the prompts.
    Without a flag it picks the cheapest threshold within one point of the best accuracy.
    """
    from jobs.route import route_run

    files, overrides = split(config)
    route_run(files, overrides=overrides, **options)
