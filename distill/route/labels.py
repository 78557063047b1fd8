"""Who was right about which prompt: held-out predictions, and the log's checks on top."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.personal_data import PLACEHOLDER
from cluster.prompt_features import prompt_of

WRONG = frozenset({"form", "verifier", "truncated", "length"})
"""Refusals that say the answer was wrong; `confidence` only doubts it."""
PASSED = "passed"

Row = dict[str, Any]


@dataclass(frozen=True)
class HeldOut:
    """Held-out prompts that the student answered, in the order of its predictions."""

    example_ids: list[str]
    texts: list[str]
    wrong: list[bool]
    other_right: list[bool | None]
    """`None` where the other model has no prediction."""


@dataclass
class Logged:
    """Further labels."""

    rows: list[tuple[str, bool]] = field(default_factory=list)
    """Text and whether the student was wrong."""
    left_out: Counter[str] = field(default_factory=Counter)
    """`unchecked`, `known` (held out, or logged before) and `masked`: the server sees the prompt as
    it was asked, and a placeholder would only tell log from held-out prompts."""


def held_out(prompts: Sequence[Row], student: Sequence[Row], other: Sequence[Row]) -> HeldOut:
    """Join the predictions with their prompts; what has none is left out."""
    messages = {row["example_id"]: row["messages"] for row in prompts}
    knows = {row["example_id"]: bool(row["correct"]) for row in other}
    rows = [row for row in student if row["example_id"] in messages]
    return HeldOut(
        example_ids=[row["example_id"] for row in rows],
        texts=[prompt_of(messages[row["example_id"]]) for row in rows],
        wrong=[not row["correct"] for row in rows],
        other_right=[knows.get(row["example_id"]) for row in rows],
    )


def logged(rows: Sequence[Row], *, known: Collection[str]) -> Logged:
    """Take the rows of a window that the gateway checked; `known` are ids of held-out prompts."""
    found = Logged()
    seen = set(known)
    for row in rows:
        quality = row.get("quality")
        text = prompt_of(row["messages"])
        if quality != PASSED and quality not in WRONG:
            found.left_out["unchecked"] += 1
        elif row["example_id"] in seen:
            found.left_out["known"] += 1
        elif PLACEHOLDER.search(text):
            found.left_out["masked"] += 1
        else:
            seen.add(row["example_id"])
            found.rows.append((text, quality != PASSED))
    return found
