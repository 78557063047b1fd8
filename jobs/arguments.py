"""What the commands share: kinds of options, and files before fields on the command line."""

from __future__ import annotations

from typing import Any

import click

COUNT = click.IntRange(min=1)
POSITIVE = click.FloatRange(min=0, min_open=True)
OVERRIDES: dict[str, Any] = {"ignore_unknown_options": True, "allow_extra_args": True}


def split(arguments: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Separate the files in front from the `--section.field value` behind."""
    first = next((i for i, a in enumerate(arguments) if a.startswith("--")), len(arguments))
    return list(arguments[:first]), list(arguments[first:])


def load(arguments: tuple[str, ...]) -> Any:
    """Return the run's configuration."""
    from jobs.config import load_run_config

    files, overrides = split(arguments)
    return load_run_config(files, overrides=overrides)
