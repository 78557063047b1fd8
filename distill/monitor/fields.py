"""The fields of answers as columns that can be compared."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from distill.monitor.signals import Signal, compare_categories, compare_numbers

OTHER = "(other)"

Answer = dict[str, Any]


def compare_fields(
    reference: Sequence[Answer],
    current: Sequence[Answer],
    *,
    prefix: str,
    bins: int,
    max_categories: int,
    seed: int,
) -> list[Signal]:
    """Compare every field of `reference` that has few values or is a number; text has no signal.

    What the reference never says is one category, `(other)`.
    """
    names = dict.fromkeys(name for answer in reference for name in answer)
    found = []
    for name in names:
        ours: list[Any] = [answer.get(name) for answer in reference]
        theirs: list[Any] = [answer.get(name) for answer in current]
        labels = [_label(value) for value in ours]
        known = set(labels)
        if len(known) <= max_categories:
            said = [label if (label := _label(v)) in known else OTHER for v in theirs]
            found.append(compare_categories(f"{prefix}.{name}", labels, said, seed=seed))
        elif all(_is_number(value) for value in ours):
            numbers = [[float(v) for v in values if _is_number(v)] for values in (ours, theirs)]
            found.append(compare_numbers(f"{prefix}.{name}", *numbers, bins=bins))
    return found


def flat(value: Any, *, path: str = "") -> dict[str, Any]:
    """Return nested objects as one, with dotted names."""
    if not isinstance(value, dict):
        return {path: value}
    found: dict[str, Any] = {}
    for name, inner in value.items():
        found |= flat(inner, path=f"{path}.{name}" if path else name)
    return found


def _label(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, sort_keys=True, default=str)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
