"""The text of a record that the curation compares."""

from __future__ import annotations

from typing import Any

from distill.curate.config import Part

Row = dict[str, Any]


def prompt_text(row: Row) -> str:
    """Return what the prompt says but for its system message, which all records share."""
    return "\n".join(m["content"] for m in row["messages"] if m["role"] != "system")


def completion_text(row: Row) -> str:
    """Return the answer."""
    return str(row["completion"])


def part_text(row: Row, part: Part) -> str:
    """Return the prompt, the completion, or both as one text."""
    if part == "prompt":
        return prompt_text(row)
    if part == "completion":
        return completion_text(row)
    return f"{prompt_text(row)}\n{completion_text(row)}"
