"""Answers that refuse, by the patterns of `refusals.toml`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from cluster.config import read_toml

FILE = Path(__file__).with_name("refusals.toml")
# A refusal opens an answer; further down the same words are often somebody else's.
LOOKED_AT_CHARS = 300
APOSTROPHES = str.maketrans("’ʼ‘`´", "'''''")


def refusal(text: str, *, more: Sequence[str] = ()) -> str | None:
    """Return the words by which `text` refuses, or None. `more` are further patterns."""
    opening = " ".join(text[: 2 * LOOKED_AT_CHARS].translate(APOSTROPHES).lower().split())
    for pattern in (*refusal_patterns(), *more):
        found = re.search(pattern, opening[:LOOKED_AT_CHARS])
        if found:
            return found[0]
    return None


@cache
def refusal_patterns() -> tuple[str, ...]:
    """Return the patterns of `refusals.toml`."""
    return tuple(entry["pattern"] for entry in read_toml(FILE)["refusal"])
