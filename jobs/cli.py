"""The command line: `distillery --help`. Commands import what they need when they run."""

from __future__ import annotations

import sys
from typing import Any

import click

from jobs.adapters_cli import adapters
from jobs.guard import guarded

COUNT = click.IntRange(min=1)
POSITIVE = click.FloatRange(min=0, min_open=True)
OVERRIDES: dict[str, Any] = {"ignore_unknown_options": True, "allow_extra_args": True}


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="distillery")
def cli() -> None:
    """Move a workload off a frontier-model API onto small models that you run.

    \b
    distillery run jobs/runs/demo.toml      distil, gate, publish, serve once, report
    distillery serve jobs/runs/demo.toml    keep the adapters up behind an OpenAI-compatible API
    distillery ask jobs/runs/demo.toml      ask the running server a held-out prompt
    """  # noqa: D301 (click needs the real character)


@cli.command(context_settings=OVERRIDES)
@click.argument("config", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--until", default="deploy", show_default=True, help="Last stage to run.")
@click.option("--again", is_flag=True, help="Do finished stages again.")
@click.option("--skip-bad", is_flag=True, help="Leave out prompt lines that cannot be read.")
@click.option("--dry-run", is_flag=True, help="Print what the teacher would cost, and stop.")
def run(config: tuple[str, ...], until: str, again: bool, skip_bad: bool, dry_run: bool) -> None:
    """Run every stage of CONFIG (TOML files and --section.field value).

    What is finished is not done again; a run that was killed goes on where it stopped. A failed
    gate publishes nothing and exits 3. `distillery config` lists every field.
    """
    from jobs.pipeline import run_pipeline

    files, overrides = _split(config)
    if skip_bad:
        overrides += ["--prompts.skip_bad", "true"]
    if dry_run:
        from jobs.config import load_run_config
        from jobs.estimate import print_estimate

        print_estimate(load_run_config(files, overrides=overrides))
        return
    run_pipeline(files, overrides=overrides, until=until, again=again)


@cli.command(context_settings=OVERRIDES)
@click.argument("config", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--address", default="http://127.0.0.1:8265", show_default=True,
              help="Ray dashboard of the cluster.")  # fmt: skip
@click.option("--until", default="deploy", show_default=True, help="Last stage to run.")
@click.option("--detach", is_flag=True, help="Return once the job is submitted.")
def submit(config: tuple[str, ...], address: str, until: str, detach: bool) -> None:
    """Run CONFIG as a Ray job on a cluster; follows its log and returns its exit code."""
    from jobs.submit import submit_run

    files, overrides = _split(config)
    code = submit_run(files, overrides=overrides, address=address, until=until, detach=detach)
    sys.exit(code)


@cli.command(context_settings=OVERRIDES)
@click.argument("config", nargs=-1, required=True, type=click.UNPROCESSED)
def serve(config: tuple[str, ...]) -> None:
    """Serve the registry's adapters on CONFIG's base model until Ctrl-C."""
    from jobs.serving import serve_forever

    serve_forever(_load(config))


@cli.command(context_settings=OVERRIDES)
@click.argument("config", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--text", help="User message; without it a held-out prompt of the run is asked.")
@click.option("--model", help="reconcile, reconcile@v2, or the base model's name.")
def ask(config: tuple[str, ...], text: str | None, model: str | None) -> None:
    """Ask the running server one question and show the answer beside the expected one."""
    from jobs.serving import ask_once

    ask_once(_load(config), text=text, model=model)


@cli.command(context_settings=OVERRIDES)
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

    files, overrides = _split(config)
    monitor_run(files, overrides=overrides, **options)


@cli.command(context_settings=OVERRIDES)
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

    files, overrides = _split(config)
    run_relabel(files, overrides=overrides, **options)


@cli.command(context_settings=OVERRIDES)
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

    files, overrides = _split(config)
    route_run(files, overrides=overrides, **options)


@cli.command("select-teacher", context_settings=OVERRIDES)
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
    model = "anthropic/claude-sonnet-4-20250514"

    Or answers that were exported, and nothing is asked or paid:

    \b
    [select]
    answers = ["exports/answers"]    example_id, candidate, completion, latency_s, cost_usd
    verdicts = ["exports/verdicts"]  example_id, candidate, judge, dimension, score, issues
    """  # noqa: D301 - click needs the character itself
    from jobs.select_teacher import select_teacher as select

    files, overrides = _split(config)
    select(files, overrides=overrides, dry_run=dry_run)


@cli.command(context_settings=OVERRIDES)
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

    files, overrides = _split(config)
    search(files, overrides=overrides, retry_failed=retry_failed)


@cli.command(context_settings=OVERRIDES)
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
    files, overrides = _split(config)
    if not files and not preset:
        raise click.UsageError("give CONFIG, or --preset NAME (--presets lists them)")
    named = [preset_path(preset)] if preset else []
    sys.exit(plan_run([*named, *files], overrides=overrides, asked=Asked(**asked), as_json=as_json))


@cli.command(context_settings=OVERRIDES)
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

    files, overrides = _split(config)
    if measure:
        if not model or not asked["curve"]:
            raise click.UsageError("--measure needs --model NAME and --curve FILE to write")
        measure_run(measure, model=model, out=asked["curve"], concurrency=concurrency,
                    startup_s=asked["startup_s"], prompt_words=prompt_words,
                    max_tokens=max_tokens, seconds=seconds, stream=stream)  # fmt: skip
        return
    sys.exit(capacity_run(files, overrides=overrides, asked=Asked(**asked), as_json=as_json))


@cli.command(context_settings=OVERRIDES)
@click.argument("config", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--records", type=COUNT, help="Training records, where none are curated yet.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def advise(config: tuple[str, ...], records: int | None, as_json: bool) -> None:
    """Propose rank, alpha, rate, epochs and batch for CONFIG, each with its reason.

    Nothing is applied: what differs is printed as TOML to paste.
    """
    from jobs.advise import advise_run

    files, overrides = _split(config)
    advise_run(files, overrides=overrides, records=records, as_json=as_json)


@cli.command()
@click.argument("folder")
def init(folder: str) -> None:
    """Write a task of your own to FOLDER: prompts, answers, schema, and a run that works."""
    from jobs.init import init_task

    click.echo(init_task(folder))


@cli.command()
@click.argument("source", metavar="IN")
@click.argument("out", metavar="OUT")
@click.option("--to", help="Shape of the rows of OUT; without it they keep theirs.")
@click.option("--split", help="Convert one split of IN.")
@click.option("--drop", multiple=True, metavar="NAME",
              help="Leave out a column, or rejected, system, extra (all columns).")  # fmt: skip
@click.option("--skip-bad", is_flag=True, help="Leave out and count rows that cannot be used.")
def convert(
    source: str, out: str, to: str | None, split: str | None, drop: tuple[str, ...], skip_bad: bool
) -> None:
    """Convert a data set IN (file, folder or run folder) to OUT; both local, s3:// or gs://.

    OUT's name says what it is: .jsonl, .json or .parquet, without a suffix a Hugging Face datasets
    folder. The shapes of --to are messages, prompt-completion, alpaca, sharegpt and preference;
    prompt-completion-chat and preference-chat hold message lists in place of texts. What a shape
    has no place for is an error, and nothing is overwritten.
    """
    from jobs.convert import convert_files

    convert_files(source, out, to=to, split=split, drop=drop, skip_bad=skip_bad)


@cli.command(context_settings=OVERRIDES)
@click.argument("config", nargs=-1, type=click.UNPROCESSED)
def config(config: tuple[str, ...]) -> None:
    """List every configuration field; with CONFIG, print it resolved as the run would see it."""
    from jobs.describe import print_fields, print_resolved

    if config:
        print_resolved(_load(config))
    else:
        print_fields()


@cli.command()
@click.argument("task")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def check(task: str, as_json: bool) -> None:
    """Grade a task, and say whether to distil it.

    TASK is a folder or the name of a task that comes with Distillery. No model is asked.
    Exits 2 when an item failed.
    """
    from jobs.check import check_task

    sys.exit(check_task(task, as_json=as_json))


@cli.command()
@click.argument("config", required=False)
def doctor(config: str | None) -> None:
    """Show what this machine has, what it lacks, and what each missing thing costs."""
    from jobs.doctor import run_doctor

    sys.exit(run_doctor(config))


cli.add_command(adapters)


@cli.group()
def keys() -> None:
    """Make, list and revoke API keys of the gateway; running servers follow without a restart."""


KEYS = click.option("--keys", "uri", default="keys", show_default=True,
                    help="Folder or URI, the same as serve.keys.")  # fmt: skip


@keys.command("create")
@click.argument("name")
@KEYS
@click.option("--model", "models", multiple=True, metavar="PATTERN",
              help="A name it may ask for, 'reconcile*'; repeatable.")  # fmt: skip
@click.option("--expires-days", type=POSITIVE, help="Refused after so many days.")
@click.option("--requests-per-minute", type=COUNT)
@click.option("--tokens-per-minute", type=COUNT, help="Prompt and completion together.")
@click.option("--tokens-per-day", type=COUNT, help="Until midnight UTC.")
@click.option("--usd-per-day", type=POSITIVE, help="By serve.price.")
@click.option("--admin", is_flag=True, help="May change what the server does.")
def create_key(uri: str, name: str, models: tuple[str, ...], **allowed: Any) -> None:
    """Make a key for NAME and print it, once."""
    from jobs.keys import create_key as create

    click.echo(create(uri, name, models=list(models) or ["*"], **allowed))


@keys.command("list")
@KEYS
def list_keys(uri: str) -> None:
    """List keys with their scope and limits; the keys themselves are nowhere kept."""
    from jobs.keys import list_keys as show

    show(uri)


@keys.command("revoke")
@click.argument("id_", metavar="ID")
@KEYS
def revoke_key(uri: str, id_: str) -> None:
    """Refuse a key from now on."""
    from jobs.keys import revoke_key as revoke

    click.echo(revoke(uri, id_))


def _split(arguments: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Separate the files in front from the `--section.field value` behind."""
    first = next((i for i, a in enumerate(arguments) if a.startswith("--")), len(arguments))
    return list(arguments[:first]), list(arguments[first:])


def _load(arguments: tuple[str, ...]) -> Any:
    from jobs.config import load_run_config

    files, overrides = _split(arguments)
    return load_run_config(files, overrides=overrides)


def main() -> None:
    """Entry point of the `distillery` command."""
    sys.exit(guarded(cli))


if __name__ == "__main__":
    main()
