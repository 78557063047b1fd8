"""Proposed settings of a training, each with its reason and source; nothing is ever applied.

Pure: complexity, number of records and architecture come in, a list of advice goes out. The rules
are data (`advise.toml`).
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import Field

from cluster.config import StrictModel, read_toml, validate
from distill.tasks.complexity import Complexity
from distill.train.config import StudentConfig, TrainConfig
from distill.train.plan.architecture import Architecture
from distill.train.plan.workload import Workload

FILE = Path(__file__).parent / "advise.toml"


@dataclass(frozen=True)
class Advice:
    """One setting: what it is, what it might be, and why."""

    field: str
    """Dotted name, such as `student.rank`."""
    current: Any
    advised: Any
    reason: str
    source: str

    @property
    def differs(self) -> bool:
        """Whether the advice is another value than the current one."""
        return bool(self.current != self.advised)


def advise(
    student: StudentConfig,
    train: TrainConfig,
    *,
    complexity: Complexity,
    architecture: Architecture,
    workload: Workload,
) -> list[Advice]:
    """Propose rank, alpha, rate, epochs and batch for a run."""
    adapter = _adapter(student, complexity, architecture, workload)
    epochs = _epochs(train, workload)
    return [*adapter, _rate(student, train, architecture), epochs, _batch(train, workload, epochs)]


def as_toml(advice: list[Advice]) -> str:
    """Return what differs as TOML to paste; empty if nothing does."""
    sections: dict[str, list[str]] = {}
    for one in advice:
        if one.differs:
            section, _, name = one.field.partition(".")
            value = f"{one.advised:g}" if isinstance(one.advised, float) else str(one.advised)
            sections.setdefault(section, []).append(f"{name} = {value}")
    return "\n\n".join("\n".join([f"[{name}]", *lines]) for name, lines in sections.items())


def _adapter(
    student: StudentConfig, complexity: Complexity, model: Architecture, workload: Workload
) -> list[Advice]:
    """Rank by complexity, raised where the data say more than it can hold; alpha by rank."""
    if student.tuning == "full":
        return []
    rules = _rules()
    row = next(row for row in rules.rank if row.level == complexity.level)
    rank, reason, source = row.rank, row.reason, row.source
    why = f"complexity {complexity.level} of 4, {complexity.name}: {reason}"
    if complexity.category in ("reasoning", "proofs") and rank < rules.reasoning.rank:
        rank, why, source = rules.reasoning.rank, rules.reasoning.reason, rules.reasoning.source
    tokens = workload.tokens * workload.completion_share
    limit = rules.capacity

    def holds(rank: int) -> float:
        adapter = model.adapter_parameters(rank=rank, target_modules=student.target_modules)
        return adapter * limit.bits_per_parameter / limit.bits_per_token

    raised = rank
    while holds(raised) < tokens and raised < limit.most_rank:
        raised *= 2
    if raised > rank:
        why = f"rank {rank} holds {holds(rank):,.0f} completion tokens, there are {tokens:,.0f}"
        rank, source = raised, limit.source
    alpha = rules.alpha.times_rank * rank
    told = f"{rules.alpha.times_rank:g} × rank"
    if student.tuning == "rslora":  # scaled by √rank: the same update
        alpha, told = rules.alpha.times_rank * rank**0.5, f"{rules.alpha.times_rank:g} × √rank"
    return [
        Advice("student.rank", student.rank, rank, why, source),
        Advice("student.alpha", student.alpha, round(alpha, 1), told, rules.alpha.source),
    ]


def _rate(student: StudentConfig, train: TrainConfig, model: Architecture) -> Advice:
    rules, field, full = _rules(), "train.learning_rate", student.tuning == "full"
    if train.method == "dpo":
        rate = rules.dpo.full_rate if full else rules.dpo.lora_rate
        why = "preferences are learnt in small steps"
        return Advice(field, train.learning_rate, rate, why, rules.dpo.source)
    billions = model.parameters / 1e9
    rows = rules.full_rate if full else rules.lora_rate
    row = next(row for row in rows if billions < row.below_billions)
    why = f"{row.reason} ({billions:.2f}B)"
    return Advice(field, train.learning_rate, row.rate, why, row.source)


def _epochs(train: TrainConfig, workload: Workload) -> Advice:
    row = next(row for row in _rules().epochs if workload.records < row.below_records)
    why = f"{workload.records:,} records: {row.reason}"
    return Advice("train.epochs", train.epochs, row.epochs, why, row.source)


def _batch(train: TrainConfig, workload: Workload, epochs: Advice) -> Advice:
    rule = _rules().batch
    many = workload.records >= rule.many_from_records
    batch, source = rule.many if many else rule.few, rule.source
    why = f"{workload.records:,} records"
    steps = epochs.advised * -(-workload.records // batch)
    if steps < rule.least_steps:
        why = f"{workload.records:,} records make only {steps} steps of {batch}"
        batch, source = rule.least, rule.least_source
    if batch % train.workers:
        batch = -(-batch // train.workers) * train.workers
        why += f"; a multiple of {train.workers} workers"
    return Advice("train.batch_size", train.batch_size, batch, why, source)


class _Rank(StrictModel):
    level: int = 0
    rank: int
    reason: str
    source: str


class _Capacity(StrictModel):
    bits_per_parameter: float
    bits_per_token: float
    most_rank: int
    source: str


class _Alpha(StrictModel):
    times_rank: float
    source: str


class _Rate(StrictModel):
    below_billions: float = Field(allow_inf_nan=True)
    rate: float
    reason: str
    source: str


class _Dpo(StrictModel):
    lora_rate: float
    full_rate: float
    source: str


class _Epochs(StrictModel):
    below_records: float = Field(allow_inf_nan=True)
    epochs: int
    reason: str
    source: str


class _Batch(StrictModel):
    few: int
    many: int
    many_from_records: int
    source: str
    least_steps: int
    least: int
    least_source: str


class _Rules(StrictModel):
    rank: list[_Rank]
    reasoning: _Rank
    capacity: _Capacity
    alpha: _Alpha
    lora_rate: list[_Rate]
    full_rate: list[_Rate]
    dpo: _Dpo
    epochs: list[_Epochs]
    batch: _Batch


@cache
def _rules() -> _Rules:
    return validate(_Rules, read_toml(FILE), source=str(FILE))
