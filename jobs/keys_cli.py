"""The commands of `distillery keys`: the gateway's API keys."""

from __future__ import annotations

from typing import Any

import click

from jobs.arguments import COUNT, POSITIVE


@click.group()
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
