"""What is trained on, as a plan needs it: how many records, how long, how wide a micro-batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from distill.train.batches import plan_epoch
from distill.train.config import TrainConfig


@dataclass(frozen=True)
class Workload:
    """Records with their lengths in tokens, prompt and completion."""

    records: int
    mean_tokens: float
    max_tokens: int
    completion_share: float
    """Share of the tokens that have a loss."""
    source: str
    """Where the figures are from."""
    lengths: tuple[int, ...] = ()
    """Lengths of the records, or of records like them; empty where none are known."""

    @property
    def tokens(self) -> float:
        """Tokens of one epoch."""
        return self.records * self.mean_tokens


@dataclass(frozen=True)
class RecordTokens:
    """Tokens of all that a method trains of one record."""

    prompt: int
    completion: int
    longest: int
    """Tokens of its longest sequence, which `student.max_length` is about."""

    @property
    def total(self) -> int:
        """Tokens that are computed for it."""
        return self.prompt + self.completion


@dataclass(frozen=True)
class MicroBatch:
    """What one worker holds at once."""

    sequences: int
    width: int
    """Tokens of the longest sequence."""
    tokens: int
    """Tokens of all of them; nothing is padded."""
    completion_rows: int
    """Tokens that have a loss, and so a row of logits."""


def record_tokens(sequences: Sequence[tuple[int, int]]) -> RecordTokens:
    """Add up a record's sequences, (prompt, completion) tokens of each; the answer's is first.

    The further ones ask the same with a sentence more: their common prompt is computed once.
    """
    shared = sequences[0][0]
    prompt = shared + sum(max(0, p - shared) for p, _ in sequences[1:])
    return RecordTokens(prompt, sum(c for _, c in sequences), max(p + c for p, c in sequences))


def known_lengths(lengths: Sequence[int], *, completion_share: float, source: str) -> Workload:
    """Describe records of which every length is known; there must be one."""
    mean = sum(lengths) / len(lengths)
    return Workload(len(lengths), mean, max(lengths), completion_share, source, tuple(lengths))


def steps(workload: Workload, train: TrainConfig) -> int:
    """Optimiser steps of the whole run."""
    total = train.epochs * -(-workload.records // train.batch_size)
    return min(total, train.max_steps or total)


def largest_micro_batch(workload: Workload, train: TrainConfig) -> MicroBatch:
    """Return the micro-batch that needs the most memory.

    Where every length is known it is the largest that the first epoch deals; otherwise as many
    records as a micro-batch takes, all of the greatest length: what memory must be enough for.
    """
    share = workload.completion_share
    if len(workload.lengths) == workload.records and max(workload.lengths) == workload.max_tokens:
        found = _dealt(workload, train)
        sizes = max(found, key=lambda part: (sum(part), max(part)))
        return micro_batch_of(sizes, completion_share=share)
    most = min(train.micro_batch_size, -(-train.batch_size // train.workers))
    tokens = most * workload.max_tokens
    return MicroBatch(most, workload.max_tokens, tokens, _rows(tokens, share))


def mean_micro_batch(workload: Workload, train: TrainConfig) -> MicroBatch:
    """Return the usual micro-batch, from which the speed follows."""
    if workload.lengths:
        found = _dealt(workload, train)
        tokens = sum(map(sum, found)) / len(found)
        sequences = sum(map(len, found)) / len(found)
        width = sum(map(max, found)) / len(found)
    else:
        sequences = min(train.micro_batch_size, train.batch_size / train.workers)
        tokens = sequences * workload.mean_tokens
        width = (workload.mean_tokens + workload.max_tokens) / 2
    count = max(1, round(sequences))
    rows = _rows(tokens, workload.completion_share)
    return MicroBatch(count, max(1, round(width)), round(tokens), rows)


def typical_lengths(workload: Workload, train: TrainConfig) -> tuple[int, ...]:
    """Lengths of the records of one micro-batch that stands for all of them.

    Work grows with the lengths and, in attention, with their squares: it is the first epoch's
    micro-batch that comes nearest to the mean of both. Where no length is known they differ by a
    token or two around the mean: equal ones would be computed faster than a run's are.
    """
    if not workload.lengths:
        usual = mean_micro_batch(workload, train)
        width, more = divmod(usual.tokens, usual.sequences)
        lengths = [width + (i < more) for i in range(usual.sequences)]
        if not more and len(lengths) > 1 and width > 1:
            lengths[0], lengths[-1] = width + 1, width - 1
        return tuple(lengths)
    found = _dealt(workload, train)
    tokens = sum(map(sum, found)) / len(found)
    squares = sum(sum(n * n for n in part) for part in found) / len(found)

    def distance(part: list[int]) -> float:
        return abs(sum(part) / tokens - 1) + abs(sum(n * n for n in part) / squares - 1)

    typical = min(found, key=distance)
    return tuple(typical)


def micro_batch_of(lengths: Sequence[int], *, completion_share: float) -> MicroBatch:
    """Describe a micro-batch of records that have these lengths."""
    rows = _rows(sum(lengths), completion_share)
    return MicroBatch(len(lengths), max(lengths), sum(lengths), rows)


def micro_batches_per_step(workload: Workload, train: TrainConfig) -> float:
    """Micro-batches that a worker computes for one optimiser step, on the mean."""
    if workload.lengths:
        steps_an_epoch = -(-len(workload.lengths) // train.batch_size)
        return len(_dealt(workload, train)) / train.workers / steps_an_epoch
    return -(-train.batch_size // (train.workers * train.micro_batch_size))


def _dealt(workload: Workload, train: TrainConfig) -> list[list[int]]:
    """Lengths of the records of every micro-batch of the first epoch, over all workers."""
    plan = plan_epoch(
        workload.lengths,
        seed=train.seed,
        epoch=0,
        batch_size=train.batch_size,
        workers=train.workers,
        micro_batch_size=train.micro_batch_size,
    )
    dealt = [[workload.lengths[i] for i in m] for step in plan for worker in step for m in worker]
    return [part for part in dealt if part]


def _rows(tokens: float, share: float) -> int:
    return max(1, round(tokens * share))
