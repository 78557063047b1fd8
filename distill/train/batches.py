"""Which records meet in which step: a pure function of seed and epoch, so a resume needs no state.

The records of an optimiser step do not depend on the number of workers; only who computes which
of them does. That is what makes two workers equal to one.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise

from distill.train.encode import Item
from distill.train.prefix import group_by_prefix

Step = list[list[list[int]]]
"""`step[worker][micro]` lists record indices; every worker has equally many micro-batches."""


def plan_epoch(
    lengths: Sequence[int],
    *,
    seed: int,
    epoch: int,
    batch_size: int,
    workers: int,
    micro_batch_size: int,
    related: Sequence[int] | None = None,
    prefix_group: int = 1,
) -> list[Step]:
    """Shuffle the records by (seed, epoch) and cut them into optimiser steps.

    `lengths` are tokens a record. Steps are drawn from all records alike: sorting by length across
    steps would save padding, but length goes with the class in many tasks, and a step of one class
    undoes what the step before it taught (docs/log.md). The last step may be smaller.

    With `related`, the family of each record, up to `prefix_group` of a family are drawn together
    and meet in one micro-batch as far as it holds them.
    """
    draw = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    draw.shuffle(order)
    if related is not None and prefix_group > 1:
        order = _together(order, related, prefix_group, draw)
    steps = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    if related is None or prefix_group == 1:
        return [deal(step, lengths, workers, micro_batch_size) for step in steps]
    return [deal_families(step, lengths, workers, micro_batch_size, related) for step in steps]


def indices_of(steps: Sequence[Step]) -> list[int]:
    """Record indices of some steps, over all workers."""
    return [i for step in steps for worker in step for micro in worker for i in micro]


def families(items: Sequence[Item]) -> list[int]:
    """Number of the family of each item: those whose first sequences begin alike."""
    of = [0] * len(items)
    for number, group in enumerate(group_by_prefix([item.sequences[0] for item in items])):
        for index in group.members:
            of[index] = number
    return of


def _together(
    order: Sequence[int], related: Sequence[int], prefix_group: int, draw: random.Random
) -> list[int]:
    """Put shuffled records behind each other in groups of one family; the groups are shuffled."""
    by_family: dict[int, list[int]] = defaultdict(list)
    for index in order:
        by_family[related[index]].append(index)
    groups = [
        members[start : start + prefix_group]
        for members in by_family.values()
        for start in range(0, len(members), prefix_group)
    ]
    draw.shuffle(groups)
    return [index for group in groups for index in group]


def deal_families(
    indices: Sequence[int],
    lengths: Sequence[int],
    workers: int,
    micro_batch_size: int,
    related: Sequence[int],
) -> Step:
    """Deal whole families to workers, the longest first to whoever has least.

    A family larger than a worker's share of the records is cut. All workers have equally many
    micro-batches, as in `deal`.
    """
    share = -(-len(indices) // workers)
    by_family: dict[int, list[int]] = defaultdict(list)
    for index in indices:
        by_family[related[index]].append(index)
    hands: list[list[int]] = [[] for _ in range(workers)]

    def load(worker: int) -> int:
        return sum(lengths[i] for i in hands[worker])

    for family in sorted(by_family.values(), key=lambda f: -sum(lengths[i] for i in f)):
        rest = family
        while rest:
            free = [worker for worker in range(workers) if len(hands[worker]) < share]
            to = min(free, key=lambda worker: (load(worker), worker))
            room = share - len(hands[to])
            hands[to] += rest[:room]
            rest = rest[room:]
    num_micro = max(1, -(-share // micro_batch_size))
    return [
        [hand[k * micro_batch_size : (k + 1) * micro_batch_size] for k in range(num_micro)]
        for hand in hands
    ]


def deal(
    indices: Sequence[int], lengths: Sequence[int], workers: int, micro_batch_size: int
) -> Step:
    """Deal records to workers and micro-batches: like lengths together, and like amounts of tokens.

    Micro-batch `k` of all workers holds neighbours in length, which costs little padding where
    there is any, and there the longest record goes to whoever has fewest tokens, and records change
    hands as long as that takes some from whoever has most: ZeRO's collectives run once a
    micro-batch, and each waits for the slowest. For the same reason all workers have equally many
    micro-batches; one can be empty when there are fewer records than places, and one of short
    records can hold a quarter more than `micro_batch_size`.
    """
    by_length = sorted(indices, key=lambda i: (-lengths[i], i))
    num_micro = max(1, -(-len(by_length) // (workers * micro_batch_size)))
    bounds = [round(k * len(by_length) / num_micro) for k in range(num_micro + 1)]
    step: Step = [[] for _ in range(workers)]
    dealt = [0] * workers
    for first, end in pairwise(bounds):
        group = by_length[first:end]
        share = -(-len(group) // workers)
        hands: list[list[int]] = [[] for _ in range(workers)]
        tokens = [0] * workers
        for index in group:
            free = [worker for worker in range(workers) if len(hands[worker]) < share]
            to = min(free, key=lambda worker: (tokens[worker], dealt[worker], worker))
            hands[to].append(index)
            tokens[to] += lengths[index]
        _even_out(hands, lengths, share=share)
        for worker in range(workers):
            step[worker].append(hands[worker])
            dealt[worker] += sum(lengths[i] for i in hands[worker])
    return step


def _even_out(hands: list[list[int]], lengths: Sequence[int], *, share: int) -> None:
    """Exchange or move records from the fullest to the emptiest hand until that helps no more.

    One that is moved leaves a hand with more records than the others, and fewer tokens than the
    fullest had before: tokens are what takes memory and time where nothing is padded. Elsewhere a
    hand can become wider, so it takes at most a quarter more than its `share` of the records.
    """
    while True:
        tokens = [sum(lengths[i] for i in hand) for hand in hands]
        most, least = tokens.index(max(tokens)), tokens.index(min(tokens))
        gap = tokens[most] - tokens[least]
        in_return = [(j, lengths[i]) for j, i in enumerate(hands[least])]
        if len(hands[least]) < share + share // 4:
            in_return.append((len(hands[least]), 0))
        # A record that is longer by d than what comes back for it changes the gap by 2 d.
        found = min(
            (
                (abs(gap - 2 * d), i, j)
                for i, one in enumerate(hands[most])
                for j, back in in_return
                if 0 < (d := lengths[one] - back) < gap
            ),
            default=None,
        )
        if found is None:
            return
        _, i, j = found
        given, back = hands[most].pop(i), hands[least][j : j + 1]
        hands[least][j : j + 1] = [given]
        hands[most] += back
