"""Caps on what takes too much of a dataset: categories, difficulties, lengths, clusters."""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from typing import Any

from cluster.storage import digest_of
from distill.curate.config import BalanceRule
from distill.curate.tokens import LengthCounter

NONE = "(none)"

Row = dict[str, Any]


@dataclass(frozen=True)
class Capped:
    """What a cap did to the groups of one kind."""

    keep: list[bool]
    """One a record, in their order."""
    limit: int | None
    """Most records of a group; `None` when nothing had to go."""
    groups: dict[str, tuple[int, int]] = field(default_factory=dict)
    """Group -> (records before, records after)."""
    note: str = ""
    """Why a cap could not be met."""


def balance(
    rows: Sequence[Row], rules: Sequence[BalanceRule], *, counter: LengthCounter
) -> tuple[list[Row], list[Row], list[str]]:
    """Apply the rules one after the other; return kept rows, rejected rows and notes.

    Rejected rows carry reason `balance` and a detail that names the group and its limit.
    """
    kept = list(rows)
    rejected: list[Row] = []
    notes: list[str] = []
    for rule in rules:
        groups = [group_of(row, rule.by, counter=counter) for row in kept]
        result = cap(
            groups,
            keys=[row["example_id"] for row in kept],
            max_share=rule.max_share,
            max_count=rule.max_count,
        )
        if result.note:
            notes.append(f"{rule.by}: {result.note}")
        rejected += [
            {**row, "reason": "balance", "detail": _detail(rule.by, group, result)}
            for row, group, stays in zip(kept, groups, result.keep, strict=True)
            if not stays
        ]
        kept = [row for row, stays in zip(kept, result.keep, strict=True) if stays]
    return kept, rejected, notes


def cap(
    groups: Sequence[str],
    *,
    keys: Sequence[str],
    max_share: float | None = None,
    max_count: int | None = None,
) -> Capped:
    """Limit each group to `max_share` of what is kept and to `max_count` records.

    `groups` and `keys` have one entry a record; keys are unique. Which records of a group stay is
    decided by a hash of their keys: the same ones whatever their order, and a fair sample of the
    group. A share below 1 ÷ (number of groups) cannot be met by leaving records out; then nothing
    is left out for it, and the note says so.
    """
    sizes = Counter(groups)
    limits = [max_count] if max_count is not None else []
    note = ""
    if max_share is not None and sizes:
        by_share = _largest_limit(sizes, Fraction(str(max_share)))
        if by_share:
            limits.append(by_share)
        else:
            note = (
                f"{len(sizes)} group(s) cannot all stay at or below {max_share:.0%} of the whole; "
                "nothing is left out for it"
            )
    limit = min(limits, default=None)
    if limit is None or max(sizes.values(), default=0) <= limit:
        same = {name: (size, size) for name, size in sizes.items()}
        return Capped([True] * len(groups), None, same, note)
    members: dict[str, list[int]] = defaultdict(list)
    for place, group in enumerate(groups):
        members[group].append(place)
    keep = [True] * len(groups)
    for places in members.values():
        for place in sorted(places, key=lambda p: digest_of(keys[p]))[limit:]:
            keep[place] = False
    after = {name: (size, min(size, limit)) for name, size in sizes.items()}
    return Capped(keep, limit, after, note)


def group_of(row: Row, by: str, *, counter: LengthCounter) -> str:
    """Return the group of a record: its stratum, its length's power of two, or a variable."""
    if by == "stratum":
        return row["stratum"] or NONE
    if by == "length":
        return length_group(counter.count(row["completion"]), unit=counter.unit)
    value: Any = json.loads(row["variables"])
    for part in by.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return NONE if value is None else str(value)


def length_group(size: int, *, unit: str) -> str:
    """Return the range of lengths that `size` falls in, such as `64–127 words`."""
    low = 1 << (size.bit_length() - 1) if size else 0
    return f"{low}–{2 * low - 1} {unit}" if low > 1 else f"{low} {unit}"


def _largest_limit(sizes: Counter[str], share: Fraction) -> int:
    """Largest c with c <= share · (sum of min(size, c)); 0 when there is none."""
    # The sum grows by ever fewer groups a step: once the condition fails, it fails from there on.
    low, high = 0, max(sizes.values())
    while low < high:
        middle = (low + high + 1) // 2
        if middle <= share * sum(min(size, middle) for size in sizes.values()):
            low = middle
        else:
            high = middle - 1
    return low


def _detail(by: str, group: str, result: Capped) -> str:
    before, after = result.groups[group]
    whole = sum(size for size, _ in result.groups.values())
    return f"{by} {group!r} held {before / whole:.0%} of the records; {after} of {before} stay"
