"""Which records meet in which step: a pure function of seed and epoch, so a resume needs no state.

The records of an optimiser step do not depend on the number of workers; only who computes which
of them does. That is what makes two workers equal to one.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

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
) -> list[Step]:
    """Shuffle the records by (seed, epoch) and cut them into optimiser steps.

    `lengths` are tokens a record. Steps are drawn from all records alike: sorting by length across
    steps would save padding, but length goes with the class in many tasks, and a step of one class
    undoes what the step before it taught (docs/log.md). The last step may be smaller.
    """
    draw = random.Random(f"{seed}/{epoch}")
    order = list(range(len(lengths)))
    draw.shuffle(order)
    steps = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [deal(step, lengths, workers, micro_batch_size) for step in steps]


def deal(
    indices: Sequence[int], lengths: Sequence[int], workers: int, micro_batch_size: int
) -> Step:
    """Deal records to workers and micro-batches so that like lengths are padded together.

    Neighbours in length go to different workers, which therefore finish together. A micro-batch
    can be empty when there are fewer records than places; all workers still have the same number,
    because ZeRO's collectives run once a micro-batch.
    """
    by_length = sorted(indices, key=lambda i: (-lengths[i], i))
    num_micro = max(1, -(-len(by_length) // (workers * micro_batch_size)))
    bounds = [round(k * len(by_length) / num_micro) for k in range(num_micro + 1)]
    groups = [by_length[bounds[k] : bounds[k + 1]] for k in range(num_micro)]
    # Every second group is dealt from the other end: nobody always gets the longer one.
    return [
        [
            group[worker if k % 2 == 0 else workers - 1 - worker :: workers]
            for k, group in enumerate(groups)
        ]
        for worker in range(workers)
    ]
