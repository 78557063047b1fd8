"""What a method minimises, from the rows that predict a token to one scalar.

Every objective is a sum of shares that adds up to the step's loss: over micro-batches and workers
the parts are simply added, however the step was cut.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

import torch

from distill.train.config import KDConfig, OnPolicyConfig, TrainConfig
from distill.train.divergence import TopLogprobs, divergence, divergence_from_top
from distill.train.encode import Item
from distill.train.head import gathered, logits_of, row_losses
from distill.train.packed import Targets

KINDS = ("answer", "label", "rationale")
Batch = Any
"""A `Targets` with the trunk's own layout."""


class Trunk(Protocol):
    """A language model up to its head."""

    head: torch.nn.Module
    batch: Any
    """Class that lays sequences out as this trunk takes them."""

    def rows(self, batch: Batch) -> torch.Tensor:
        """Hidden rows [N, D], final norm included, of the batch's positions."""

    def reference_rows(self, batch: Batch) -> torch.Tensor:
        """The same of the model as it was before training, without a gradient."""

    def shaped(self, logits: torch.Tensor) -> torch.Tensor:
        """Logits as the model means them: some scale or cap what the head gives."""

    def next_token_losses(self, rows_N_D: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        """−log p of each row's target, [N], nats."""


class Teacher(Protocol):
    """Where the teacher's distributions come from."""

    def divergences(self, student: Trunk, rows: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Loss [N] of the student's rows against the teacher's."""


def target_counts(items: Iterable[Item]) -> dict[str, int]:
    """Count the target tokens of each of `KINDS`."""
    counts = dict.fromkeys(KINDS, 0)
    for item in items:
        for sequence in item.sequences:
            for kind, count in sequence.kinds:
                counts[kind] += count
    return counts


def shares(items: Sequence[Item], train: TrainConfig) -> dict[str, float]:
    """`shares_of` a step with these items."""
    return shares_of(target_counts(items), num_items=len(items), train=train)


def shares_of(counts: Mapping[str, int], *, num_items: int, train: TrainConfig) -> dict[str, float]:
    """What one target token of each kind counts for, so that a step's parts add up to its loss.

    `sft`, `kd`, `on_policy`: a mean over all tokens. `cot`: a weighted mean. `multitask`: means of
    label, rationale and response, weighted 1, alpha, beta. `dpo`: a mean over pairs.
    """
    if train.method == "dpo":
        return {"pair": 1.0 / max(1, num_items)}
    counts = {kind: counts[kind] for kind in KINDS if counts.get(kind)}
    if train.method == "multitask":
        of = {"label": 1.0, "rationale": train.multitask.alpha, "answer": train.multitask.beta}
        return {kind: of[kind] / count for kind, count in counts.items()}
    weights = {"answer": 1.0, "rationale": 1.0}
    if train.method == "cot":
        weights = {"answer": train.cot.answer_weight, "rationale": train.cot.rationale_weight}
    total = sum(weights[kind] * count for kind, count in counts.items())
    return {kind: weights[kind] / total for kind in counts} if total else {}


def tokens_with_loss(counts: Mapping[str, int], of: Mapping[str, float]) -> int:
    """Count a step's target tokens whose share `of` its loss is above zero; of pairs all."""
    if "pair" in of:
        return sum(counts[kind] for kind in KINDS)
    return sum(counts[kind] for kind, share in of.items() if share > 0)


def token_shares(batch: Targets, of: Mapping[str, float]) -> torch.Tensor:
    """Each target token's share [N], from the kinds of its sequence's tokens."""
    values = [of[kind] for s in batch.sequences for kind, count in s.kinds for _ in range(count)]
    return torch.tensor(values, dtype=torch.float32, device=batch.targets.device)


class NextToken:
    """Cross-entropy on the completions: `sft`, `cot`, `multitask`."""

    def loss(self, trunk: Trunk, batch: Batch, of: Mapping[str, float]) -> torch.Tensor:
        """Return the micro-batch's part of the step's loss, nats, a float32 scalar."""
        losses = trunk.next_token_losses(trunk.rows(batch), batch.targets)
        return (losses * token_shares(batch, of)).sum()


class Distillation:
    """`kd` and `on_policy`: distance from a teacher's distributions."""

    def __init__(self, teacher: Teacher):
        """`teacher` says how far each row is from it."""
        self.teacher = teacher

    def loss(self, trunk: Trunk, batch: Batch, of: Mapping[str, float]) -> torch.Tensor:
        """Return the micro-batch's part of the step's loss, a float32 scalar."""
        losses = self.teacher.divergences(trunk, trunk.rows(batch), batch)
        return (losses * token_shares(batch, of)).sum()


class Preference:
    """`dpo`: −log σ(β (Δ_chosen − Δ_rejected)), Δ = log π − log π_ref of a whole answer.

    Rafailov et al. 2023, eq. 7. An item's two sequences are chosen and rejected, in this order.
    """

    def __init__(self, beta: float):
        """`beta` ties the student to its reference."""
        self.beta = beta

    def loss(self, trunk: Trunk, batch: Batch, of: Mapping[str, float]) -> torch.Tensor:
        """Return the micro-batch's part of the step's loss, a float32 scalar."""
        with torch.no_grad():
            reference = trunk.next_token_losses(trunk.reference_rows(batch), batch.targets)
        losses = trunk.next_token_losses(trunk.rows(batch), batch.targets)
        # One empty row more keeps the graph whole for a batch without pairs.
        gains = losses.new_zeros(len(batch.sequences)).index_add(
            0, batch.sequence, reference - losses
        )
        margins = self.beta * (gains[0::2] - gains[1::2])
        return -torch.nn.functional.logsigmoid(margins).sum() * of["pair"] + 0.0 * losses.sum()


class OnlineTeacher:
    """A teacher that runs beside the student, on the same micro-batch."""

    def __init__(self, trunk: Trunk, settings: KDConfig | OnPolicyConfig, *, vocabulary: int):
        """`vocabulary` is the width that both heads have in common."""
        self._trunk, self._settings, self._vocabulary = trunk, settings, vocabulary

    def divergences(self, student: Trunk, rows: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Loss [N]: the divergence, mixed with cross-entropy as the settings say."""
        settings, width = self._settings, self._vocabulary
        with torch.no_grad():
            teacher_rows = self._trunk.rows(batch)

        def of(logits: torch.Tensor, part: slice) -> torch.Tensor:
            logits = student.shaped(logits)
            with torch.no_grad():
                teacher = logits_of(teacher_rows[part], self._trunk.head)
                teacher = self._trunk.shaped(teacher)[:, :width]
            away = divergence(
                logits[:, :width],
                teacher,
                kind=settings.divergence,
                beta=settings.beta,
                temperature=settings.temperature,
            )
            return mixed(away, logits, batch.targets[part], settings)

        with gathered(self._trunk.head):
            return row_losses(rows, student.head, of)


class CachedTeacher:
    """A teacher that was asked before: top-k log-probabilities and a tail."""

    def __init__(self, cache: Any, settings: KDConfig, *, vocabulary: int):
        """`cache` is a `LogprobCache` made at the settings' temperature."""
        self._cache, self._settings, self._vocabulary = cache, settings, vocabulary

    def divergences(self, student: Trunk, rows: torch.Tensor, batch: Batch) -> torch.Tensor:
        """Loss [N]: the divergence, mixed with cross-entropy as the settings say."""
        settings, width = self._settings, self._vocabulary
        found = [self._cache.rows(name) for name in batch.example_ids]
        whole = [
            torch.cat([torch.tensor(getattr(top, name)) for top in found]).to(rows.device)
            if found
            else rows.new_zeros(0)
            for name in ("ids", "logprobs", "tail")
        ]

        def of(logits: torch.Tensor, part: slice) -> torch.Tensor:
            logits = student.shaped(logits)
            ids, logprobs, tail = (x[part] for x in whole)
            away = divergence_from_top(
                logits[:, :width],
                TopLogprobs(ids.long(), logprobs.float(), tail.float()),
                kind=settings.divergence,
                beta=settings.beta,
                temperature=settings.temperature,
            )
            return mixed(away, logits, batch.targets[part], settings)

        return row_losses(rows, student.head, of)


def mixed(
    divergences: torch.Tensor,
    logits: torch.Tensor,
    targets: torch.Tensor,
    settings: KDConfig | OnPolicyConfig,
) -> torch.Tensor:
    """Return weight · T² · divergence + (1 − weight) · cross-entropy; on-policy has no text to fit.

    T² keeps the gradients' size when distributions are softened (Hinton et al. 2015, section 2).
    """
    softened = settings.temperature**2 * divergences
    if isinstance(settings, OnPolicyConfig):
        return softened
    if settings.weight == 1:
        return softened
    entropy = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    return settings.weight * softened + (1 - settings.weight) * entropy
