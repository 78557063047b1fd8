"""The commands that decide before they pay: teacher, hardware, settings, replicas."""

from __future__ import annotations

import sys
from typing import Any

import click

from jobs.arguments import COUNT, OVERRIDES, POSITIVE, split


@click.command("select-teacher", context_settings=OVERRIDES)
@click.argument("config", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--dry-run", is_flag=True, help="Print what the candidates would cost, and stop.")
def select_teacher(config: tuple[str, ...], dry_run: bool) -> None:
    """Have candidates answer the same prompts, let the jury score, name the best teacher.

    Writes selection.json, selection.md and selection.html, and says when the difference between
    the first two is noise. What was asked once is not asked again, here or in a run. CONFIG is
    TOML files: [task], [prompts] and [jury] as the run has them, and

    \b
    [[select.candidates]]            each as it would stand under [teacher]
    kind = "litellm"
    model = "deepseek/deepseek-chat"

    Or answers that were exported, and nothing is asked or paid:

    \b
    [select]
    answers = ["exports/answers"]    example_id, candidate, completion, latency_s, cost_usd
    verdicts = ["exports/verdicts"]  example_id, candidate, judge, dimension, score, issues
    """  # noqa: D301 - click needs the character itself
    from jobs.select_teacher import select_teacher as select

    files, overrides = split(config)
    select(files, overrides=overrides, dry_run=dry_run)


@click.command(context_settings=OVERRIDES)
@click.argument("config", nargs=-1, type=click.UNPROCESSED)
@click.option("--preset", metavar="NAME", help="A run that comes with Distillery; see --presets.")
@click.option("--presets", "list_presets", is_flag=True, help="List the presets, and stop.")
@click.option("--hardware", metavar="NAME", help="cpu, h100, a100, l40s, rtx4090, a10, l4.")
@click.option("--gpus", type=COUNT, help="How many of it; without it [train] workers.")
@click.option("--memory-gib", type=POSITIVE, help="Memory of one, for another card.")
@click.option("--tflops", type=POSITIVE, help="Dense bfloat16 TFLOP/s of one, for another card.")
@click.option("--usd-per-hour", type=POSITIVE, help="Price of one.")
@click.option("--records", type=COUNT, help="Training records, where none are curated yet.")
@click.option("--mean-tokens", type=POSITIVE, help="Their mean length, prompt and completion.")
@click.option("--max-tokens", type=COUNT, help="Length of the longest.")
@click.option("--completion-share", type=click.FloatRange(0, 1, min_open=True),
              help="Share of the tokens that are completion.")  # fmt: skip
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def plan(config: tuple[str, ...], preset: str | None, list_presets: bool, as_json: bool,
         **asked: Any) -> None:  # fmt: skip
    """Say what memory, hours and dollars training CONFIG takes, and whether it fits.

    No weight is read. Exits 2 when it cannot fit, and says what would.
    """
    from jobs.plan import Asked, plan_run, preset_path, print_presets

    if list_presets:
        print_presets()
        return
    files, overrides = split(config)
    if not files and not preset:
        raise click.UsageError("give CONFIG, or --preset NAME (--presets lists them)")
    named = [preset_path(preset)] if preset else []
    sys.exit(plan_run([*named, *files], overrides=overrides, asked=Asked(**asked), as_json=as_json))


@click.command(context_settings=OVERRIDES)
@click.argument("config", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--records", type=COUNT, help="Training records, where none are curated yet.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def advise(config: tuple[str, ...], records: int | None, as_json: bool) -> None:
    """Propose rank, alpha, rate, epochs and batch for CONFIG, each with its reason.

    Nothing is applied: what differs is printed as TOML to paste.
    """
    from jobs.advise import advise_run

    files, overrides = split(config)
    advise_run(files, overrides=overrides, records=records, as_json=as_json)


@click.command(context_settings=OVERRIDES)
@click.argument("config", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--retry-failed", is_flag=True, help="Train trials that failed again.")
def tune(config: tuple[str, ...], retry_failed: bool) -> None:
    """Search rank, alpha, learning rate and epochs with Ray Tune and ASHA; write best.toml.

    Each trial trains the student of CONFIG on the run's curated records; what is missing before
    that is made. A search that was killed goes on, and no finished trial is trained twice.

    \b
    [tune]                           every field has a default
    trials = 12
    rank = { choices = [8, 16] }
    learning_rate = { min = 1e-4, max = 1e-3 }
    """  # noqa: D301 - click needs the character itself
    from jobs.tune import tune as search

    files, overrides = split(config)
    search(files, overrides=overrides, retry_failed=retry_failed)


@click.command(context_settings=OVERRIDES)
@click.argument("config", nargs=-1, type=click.UNPROCESSED)
@click.option("--trace", metavar="FILE", help="JSONL, CSV, Parquet or a request log's folder.")
@click.option("--rate", type=POSITIVE, help="Or synthetic traffic: requests a second.")
@click.option("--daily-peak", type=POSITIVE, help="Requests a second at noon; --rate is midnight.")
@click.option("--hours", type=POSITIVE, default=24.0, show_default=True, help="Of such traffic.")
@click.option("--scale", type=POSITIVE, default=1.0, help="The same traffic so many times over.")
@click.option("--curve", metavar="FILE", help="Service curve of one replica, JSON.")
@click.option("--startup-s", type=click.FloatRange(min=0), help="Seconds until a replica answers.")
@click.option("--usd-per-hour", type=POSITIVE, help="Price of one replica.")
@click.option("--margin", type=click.FloatRange(0, 1, max_open=True), default=0.1,
              show_default=True, help="Search below the objective by this share.")  # fmt: skip
@click.option("--search/--no-search", default=True, help="Look for the cheapest setting.")
@click.option("--plot", metavar="FILE", help="Draw it to a .png, .svg or .pdf file.")
@click.option("--seed", type=int, default=0, help="Of what is drawn at random.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--measure", metavar="URL", help="Measure a curve there instead, into --curve.")
@click.option("--model", help="Model to measure.")
@click.option("--concurrency", type=COUNT, multiple=True, help="Clients to measure with.")
@click.option("--prompt-words", type=COUNT, default=80, show_default=True, help="When measuring.")
@click.option("--max-tokens", type=COUNT, default=32, show_default=True, help="When measuring.")
@click.option("--seconds", type=POSITIVE, default=20.0, show_default=True,
              help="Of measuring at each concurrency.")  # fmt: skip
@click.option("--stream/--no-stream", default=True, help="Measure streams, or whole answers.")
def capacity(config: tuple[str, ...], as_json: bool, measure: str | None, model: str | None,
             concurrency: tuple[int, ...], prompt_words: int, max_tokens: int, seconds: float,
             stream: bool, **asked: Any) -> None:  # fmt: skip
    """Say how many replicas some traffic needs, its P90 and dollars, and the cheapest setting.

    The autoscaler of `serve` decides in a simulation. [serve] is CONFIG's, or the defaults;
    serve.slo_p90_s is the objective, and the command exits 2 when no setting holds it.

    \b
    distillery capacity --measure http://127.0.0.1:8000 --model reconcile --curve curve.json
    distillery capacity --curve curve.json --trace runs/requests --serve.slo_p90_s 3
    distillery capacity --curve curve.json --rate 2 --daily-peak 40 --serve.slo_p90_s 3
    """  # noqa: D301 - click needs the character itself
    from jobs.capacity import Asked, capacity_run, measure_run

    files, overrides = split(config)
    if measure:
        if not model or not asked["curve"]:
            raise click.UsageError("--measure needs --model NAME and --curve FILE to write")
        measure_run(measure, model=model, out=asked["curve"], concurrency=concurrency,
                    startup_s=asked["startup_s"], prompt_words=prompt_words,
                    max_tokens=max_tokens, seconds=seconds, stream=stream)  # fmt: skip
        return
    sys.exit(capacity_run(files, overrides=overrides, asked=Asked(**asked), as_json=as_json))
