"""A prompt's text as numbers: hashed character n-grams and a few counts, the same everywhere.

Only integer arithmetic, divisions and square roots, which IEEE 754 rounds in one way: what is
learned offline is read by the gateway to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.example import Message

COUNTS = ("characters", "words", "lines", "digits", "capitals")
"""Square roots of the first three, shares of all characters of the last two."""
NGRAMS = (2, 3, 4, 5)
BUCKETS = 4096
MAX_CHARS = 8192
"""Characters that are read of a longer prompt."""
MULTIPLIER = np.uint32(0x01000193)
"""FNV's prime (Fowler, Noll & Vo 1991)."""
MIX = np.uint32(0x85EBCA6B)
"""Of MurmurHash3's finaliser (Appleby 2011)."""


@dataclass(frozen=True)
class Features:
    """One text."""

    buckets: NDArray[np.int64]
    """Hash buckets that occur, ascending."""
    weights: NDArray[np.float64]
    """√(count / all counts) of each: a row of length one (Hellinger's distance between texts)."""
    counts: tuple[float, ...]
    """In the order of `COUNTS`."""


def prompt_of(messages: Sequence[Message]) -> str:
    """Return what a prompt says but for its system message, which all prompts share."""
    return "\n".join(m["content"] for m in messages if m["role"] != "system")


def features_of(text: str) -> Features:
    """Return a text's features; it costs tens of microseconds."""
    head = text[:MAX_CHARS]
    codes = _codes(f" {' '.join(head.casefold().split())} ")
    hashed = codes
    places = []
    for n in range(2, max(NGRAMS) + 1):
        # Every run of n characters, from those of n - 1; arithmetic is modulo 2³².
        hashed = hashed[:-1] * MULTIPLIER + codes[n - 1 :]
        if n in NGRAMS:
            places.append(_mixed(hashed ^ np.uint32(n)) & np.uint32(BUCKETS - 1))
    found = np.concatenate(places)
    num = np.bincount(found, minlength=BUCKETS)
    buckets = np.flatnonzero(num)
    weights = np.sqrt(num[buckets] / max(1, len(found)))
    return Features(buckets, weights, _counts(text, head))


def _codes(text: str) -> NDArray[np.uint32]:
    # Not every text can be encoded: a lone surrogate is a code point like others here.
    return np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)


def _mixed(hashed: NDArray[np.uint32]) -> NDArray[np.uint32]:
    hashed = (hashed ^ (hashed >> np.uint32(16))) * MIX
    return hashed ^ (hashed >> np.uint32(13))


def _counts(text: str, head: str) -> tuple[float, ...]:
    codes = _codes(head)
    length = max(1, len(codes))
    return (
        math.sqrt(len(text)),
        math.sqrt(len(head.split())),
        math.sqrt(head.count("\n") + 1),
        int(np.count_nonzero((codes >= ord("0")) & (codes <= ord("9")))) / length,
        int(np.count_nonzero((codes >= ord("A")) & (codes <= ord("Z")))) / length,
    )


def settings() -> dict[str, Any]:
    """Return what the features depend on; a file with other settings cannot be read here."""
    return {
        "kind": "hashed-ngrams-v1",
        "ngrams": list(NGRAMS),
        "buckets": BUCKETS,
        "max_chars": MAX_CHARS,
        "counts": list(COUNTS),
    }
