"""What `distillery config` prints: every field with its type, default and documentation."""

from __future__ import annotations

from rich.console import Console
from rich.markup import escape

from cluster.config import describe
from jobs.config import RunConfig


def print_fields() -> None:
    """Print all fields, a section at a time."""
    console = Console(highlight=False)
    section = ""
    for name, kind, default, text in describe(RunConfig):
        head = name.split(".")[0]
        if head != section:
            section = head
            console.print(f"\n[bold]\\[{escape(section)}][/bold]")
        console.print(f"  --{escape(name)}  [dim]{escape(kind)} = {escape(default)}[/dim]")
        console.print(f"      {escape(text)}")


def print_resolved(config: RunConfig) -> None:
    """Print a configuration with every default filled in, as JSON."""
    print(config.model_dump_json(indent=2))
