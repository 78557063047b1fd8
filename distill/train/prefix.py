"""Which records of a micro-batch begin alike, so that what they share is computed once. Pure.

A prompt's opening (system prompt, context, the same prompt of two answers) is often most of its
tokens. Under causal attention its keys and values do not depend on what follows, so one copy serves
every record that begins with it, and its gradient is the sum of theirs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

from distill.train.encode import Encoded

MIN_SHARED = 16
"""Fewer tokens than this in common (a template's first words) are not worth a segment."""


@dataclass(frozen=True)
class Group:
    """Records whose first `shared` tokens are the same; a record that shares nothing is alone."""

    shared: int
    members: list[int]


def group_by_prefix(records: Sequence[Encoded]) -> list[Group]:
    """Cut the records into groups, in lexicographic order of their tokens.

    A record joins its neighbour's group when that saves more tokens than the group saves without
    it. What is shared ends before each member's last prompt token: that one predicts the first
    token of the completion and so has a loss of its own.
    """
    order = sorted(range(len(records)), key=lambda i: records[i].tokens)
    groups: list[Group] = []
    for index in order:
        if groups:
            last = groups[-1]
            shared = _common(records[last.members[0]], records[index], limit=_limit(last, records))
            saved = last.shared * (len(last.members) - 1)
            if shared >= MIN_SHARED and shared * len(last.members) > saved:
                groups[-1] = Group(shared, [*last.members, index])
                continue
        groups.append(Group(0, [index]))
    return groups


def _limit(group: Group, records: Sequence[Encoded]) -> int:
    return group.shared if len(group.members) > 1 else records[group.members[0]].num_prompt - 1


def _common(a: Encoded, b: Encoded, *, limit: int) -> int:
    width = min(limit, b.num_prompt - 1)
    pairs = zip(a.tokens[:width], b.tokens[:width], strict=False)
    return sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], pairs))
