"""A micro-batch without padding: sequences behind each other, what they share in there once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from distill.train.encode import Encoded
from distill.train.prefix import group_by_prefix

ROWS_TOGETHER = 128
"""On GPU rows are filled up to a multiple of FlexAttention's block: kernels compile by shape."""


@dataclass(frozen=True)
class Segment:
    """A run of rows that attends to itself, causally, and to all of its prefix."""

    start: int
    length: int
    prefix: Segment | None = None

    @property
    def seen_before(self) -> tuple[int, int]:
        """Start and length of the prefix; zeros without one."""
        return (self.prefix.start, self.prefix.length) if self.prefix else (0, 0)

    def heads(self, flat: torch.Tensor, num_rows: int, width: int) -> torch.Tensor:
        """View this segment's part of a head-major tensor as [heads, length, width]."""
        per_row = flat.numel() // num_rows
        mine = flat[self.start * per_row : (self.start + self.length) * per_row]
        return mine.view(-1, self.length, width)


class Targets:
    """Which tokens of a micro-batch's sequences are predicted with loss, in their order.

    Shapes, of N such tokens: `targets` [N], the token; `sequence` [N], number of the sequence it
    belongs to, from 0 as given.
    """

    def __init__(self, sequences: Sequence[Encoded], *, device: torch.device):
        """Collect them from `sequences`."""
        self.sequences = list(sequences)
        self.example_ids = [sequence.example_id for sequence in sequences]
        tokens = [t for s in sequences for t in s.tokens[s.num_prompt :]]
        self.targets = torch.tensor(tokens, dtype=torch.long, device=device)
        counts = torch.tensor([s.num_completion for s in sequences], dtype=torch.long)
        self.sequence = torch.arange(len(counts)).repeat_interleave(counts).to(device)


class PackedBatch(Targets):
    """One micro-batch without padding; a prefix that sequences share is in it once.

    Shapes, of M rows: `tokens` [M]; `places` [M], each token's place in its sequence; `bounds`
    [M, 2], start and length of the segment a row belongs to; `table` [segments, 4], start and
    length of each segment and of its prefix (length 0: none); `positions` [N], rows whose next
    token counts. A prefix lies before the segments that need it.
    """

    def __init__(self, sequences: Sequence[Encoded], *, pad_token: int, device: torch.device):
        """Lay `sequences` behind each other; none at all make a batch without loss."""
        super().__init__(sequences, device=device)
        self.segments: list[Segment] = []
        tokens: list[int] = []
        places: list[int] = []
        rows_of: dict[int, range] = {}

        def lay(part: list[int], *, first: int, prefix: Segment | None) -> Segment:
            segment = Segment(len(tokens), len(part), prefix)
            self.segments.append(segment)
            tokens.extend(part)
            places.extend(range(first, first + len(part)))
            return segment

        for group in group_by_prefix(sequences):
            shared, prefix = group.shared, None
            if shared:
                head = sequences[group.members[0]].tokens[:shared]
                prefix = lay(head, first=0, prefix=None)
            for index in group.members:
                sequence = sequences[index]
                mine = lay(sequence.tokens[shared:], first=shared, prefix=prefix)
                offset = mine.start - shared - 1
                rows_of[index] = range(offset + sequence.num_prompt, offset + len(sequence.tokens))
        blank = -len(tokens) % ROWS_TOGETHER if device.type == "cuda" else int(not tokens)
        if blank:
            lay([pad_token] * blank, first=0, prefix=None)
        bounds = [(s.start, s.length) for s in self.segments for _ in range(s.length)]
        table = [(s.start, s.length, *s.seen_before) for s in self.segments]
        positions = [row for index in range(len(sequences)) for row in rows_of[index]]
        self.tokens = torch.tensor(tokens, device=device)
        self.places = torch.tensor(places, device=device)
        self.bounds = torch.tensor(bounds, device=device)
        self.table = torch.tensor(table, device=device)
        self.positions = torch.tensor(positions, dtype=torch.long, device=device)

    def may_attend(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Number of each row's segment and of the prefix it also sees (its own without one), [M].

        Row q sees row k where k ≤ q and k is of q's segment or of its prefix.
        """
        number = {segment.start: i for i, segment in enumerate(self.segments)}
        own, prefix = [], []
        for i, segment in enumerate(self.segments):
            seen = i if segment.prefix is None else number[segment.prefix.start]
            own += [i] * segment.length
            prefix += [seen] * segment.length
        device = self.tokens.device
        return torch.tensor(own, device=device), torch.tensor(prefix, device=device)


class PaddedBatch(Targets):
    """One micro-batch, padded on the right, for models whose state runs through a whole row.

    Shapes: `tokens` [B, T]; `positions` [N], places in the flattened [B·T] whose next token
    counts. Right padding needs no attention mask: under causal attention nothing looks at what
    comes later.
    """

    def __init__(self, sequences: Sequence[Encoded], *, pad_token: int, device: torch.device):
        """Pad `sequences` to their longest; none at all make a batch without loss."""
        super().__init__(sequences, device=device)
        rows = [sequence.tokens for sequence in sequences] or [[pad_token]]
        width = max(map(len, rows))
        self.tokens = torch.full((len(rows), width), pad_token, device=device)
        for i, row in enumerate(rows):
            self.tokens[i, : len(row)] = torch.tensor(row, device=device)
        positions = [
            i * width + place
            for i, sequence in enumerate(sequences)
            for place in range(sequence.num_prompt - 1, len(sequence.tokens) - 1)
        ]
        self.positions = torch.tensor(positions, dtype=torch.long, device=device)
