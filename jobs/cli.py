"""The command line: `distillery --help`. Commands import what they need when they run."""

from __future__ import annotations

import sys

import click

from jobs.adapters_cli import adapters
from jobs.arguments import OVERRIDES, load, split
from jobs.choosing_cli import advise, capacity, plan, select_teacher, tune
from jobs.guard import guarded
from jobs.keys_cli import keys
from jobs.loop_cli import monitor, relabel, route


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
@click.option("--dry-run", is_flag=True,
              help="Check the input, print what the teacher would cost, and stop.")  # fmt: skip
def run(config: tuple[str, ...], until: str, again: bool, skip_bad: bool, dry_run: bool) -> None:
    """Run every stage of CONFIG (TOML files and --section.field value).

    What is finished is not done again; a run that was killed goes on where it stopped. A failed
    gate publishes nothing and exits 3. `distillery config` lists every field.
    """
    from jobs.pipeline import run_pipeline

    files, overrides = split(config)
    if skip_bad:
        overrides += ["--prompts.skip_bad", "true"]
    if dry_run:
        from jobs.config import load_run_config
        from jobs.estimate import print_estimate

        config_of_run = load_run_config(files, overrides=overrides)
        print_estimate(config_of_run, until=until, again=again)
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

    files, overrides = split(config)
    code = submit_run(files, overrides=overrides, address=address, until=until, detach=detach)
    sys.exit(code)


@cli.command(context_settings=OVERRIDES)
@click.argument("config", nargs=-1, required=True, type=click.UNPROCESSED)
def serve(config: tuple[str, ...]) -> None:
    """Serve the registry's adapters on CONFIG's base model until Ctrl-C."""
    from jobs.serving import serve_forever

    serve_forever(load(config))


@cli.command(context_settings=OVERRIDES)
@click.argument("config", nargs=-1, required=True, type=click.UNPROCESSED)
@click.option("--text", help="User message; without it a held-out prompt of the run is asked.")
@click.option("--model", help="reconcile, reconcile@v2, or the base model's name.")
def ask(config: tuple[str, ...], text: str | None, model: str | None) -> None:
    """Ask the running server one question and show the answer beside the expected one."""
    from jobs.serving import ask_once

    ask_once(load(config), text=text, model=model)


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
        print_resolved(load(config))
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


for command in (
    monitor, relabel, route, select_teacher, plan, advise, tune, capacity, adapters, keys,
):  # fmt: skip
    cli.add_command(command)


def main() -> None:
    """Entry point of the `distillery` command."""
    sys.exit(guarded(cli))


if __name__ == "__main__":
    main()
