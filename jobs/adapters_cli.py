"""`distillery adapters`: the registry, and what running servers do with it."""

from __future__ import annotations

import click

REGISTRY = click.option("--registry", default="registry", show_default=True, help="Registry URI.")
ALIAS = click.option("--alias", default="prod", show_default=True, help="Alias to move.")
VERSION = click.argument("version", metavar="NAME@vN")
SHARE = click.FloatRange(min=0, max=1, min_open=True)


@click.group()
def adapters() -> None:
    """List adapters and move aliases; running servers follow without a restart."""


@adapters.command("list")
@click.argument("name", required=False)
@REGISTRY
def list_adapters(name: str | None, registry: str) -> None:
    """List versions with their aliases, base, rank and gates."""
    from jobs.adapters import show

    show(registry, name)


@adapters.command()
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@click.option("--name", required=True, help="Name to publish under.")
@click.option("--base", required=True, help="Folder or hub name of the model it was trained on.")
@REGISTRY
def publish(folder: str, name: str, base: str, registry: str) -> None:
    """Publish a PEFT adapter that was trained elsewhere as the next version of a name.

    It has passed no gates here, and its manifest says so. `distillery run` publishes its own.
    """
    from jobs.adapters import publish_folder

    click.echo(publish_folder(registry, folder, name=name, base_model=base))


@adapters.command()
@VERSION
@REGISTRY
@ALIAS
@click.option(
    "--if-at",
    "seen",
    type=click.IntRange(min=1),
    metavar="N",
    help="Only if the alias is at version N; otherwise nothing moves and the exit code is 2.",
)
def promote(version: str, registry: str, alias: str, seen: int | None) -> None:
    """Point an alias at a version; a canary behind it ends."""
    from jobs.adapters import promote_version

    click.echo(promote_version(registry, version, alias=alias, seen=seen))


@adapters.command()
@click.argument("name")
@REGISTRY
@ALIAS
def rollback(name: str, registry: str, alias: str) -> None:
    """Point an alias back at the version before."""
    from jobs.adapters import roll_back

    click.echo(roll_back(registry, name, alias=alias))


@adapters.command()
@VERSION
@REGISTRY
@ALIAS
@click.option(
    "--mode",
    type=click.Choice(["canary", "ab", "shadow"]),
    default="canary",
    show_default=True,
    help="`ab` stays until it is ended; nobody sees a shadow's answers.",
)
@click.option(
    "--weight",
    type=SHARE,
    default=0.1,
    show_default=True,
    help="Share of users, or of requests for a shadow; below 1 for a canary.",
)
@click.option(
    "--max-p90-ratio",
    type=click.FloatRange(min=0, min_open=True),
    default=1.2,
    show_default=True,
    help="P90 over that of the alias's own version.",
)
@click.option("--max-more-errors", type=click.FloatRange(0, 1), default=0.02, show_default=True)
@click.option("--max-more-refused", type=click.FloatRange(0, 1), default=0.03, show_default=True)
@click.option("--max-more-fallbacks", type=click.FloatRange(0, 1), default=0.03, show_default=True)
@click.option("--min-samples", type=click.IntRange(min=1), default=100, show_default=True)
@click.option(
    "--max-hours",
    type=click.FloatRange(min=0, min_open=True),
    default=24.0,
    show_default=True,
    help="Undecided by then, it is rolled back.",
)
def canary(
    version: str, registry: str, alias: str, mode: str, weight: float, **bounds: float
) -> None:  # fmt: skip
    """Try a version behind an alias on a share of its users.

    A canary ends by itself: promoted once it is shown to be within its bounds, rolled back as soon
    as it is shown not to be.
    """
    from jobs.adapters import split_alias

    click.echo(
        split_alias(registry, version, alias=alias, mode=mode, weight=weight, bounds=dict(bounds))
    )


@adapters.command()
@click.argument("name")
@REGISTRY
@ALIAS
@click.option("--promote", is_flag=True, help="Point the alias at the version that was tried.")
def end(name: str, registry: str, alias: str, promote: bool) -> None:
    """End an alias's canary, A/B test or shadow."""
    from jobs.adapters import end_split

    click.echo(end_split(registry, name, alias=alias, promote=promote))


@adapters.command()
@VERSION
@REGISTRY
def pin(version: str, registry: str) -> None:
    """Have servers keep a version loaded, whatever else is asked for."""
    from jobs.adapters import pin_version

    click.echo(pin_version(registry, version, pinned=True))


@adapters.command()
@VERSION
@REGISTRY
def unpin(version: str, registry: str) -> None:
    """Let a version go again when another needs its slot."""
    from jobs.adapters import pin_version

    click.echo(pin_version(registry, version, pinned=False))


@adapters.command()
@VERSION
@click.option("--url", default="http://127.0.0.1:8000", show_default=True, help="The gateway.")
def unload(version: str, url: str) -> None:
    """Unload a version from every replica of a running server, once its requests have drained.

    The key comes from DISTILLERY_API_KEY where the server asks for one.
    """
    from jobs.adapters import unload_version

    click.echo(unload_version(url, version))


@adapters.command()
@click.argument("name")
@REGISTRY
@ALIAS
def history(name: str, registry: str, alias: str) -> None:
    """Show who moved an alias, where to, and when."""
    from jobs.adapters import show_history

    show_history(registry, name, alias=alias)
