"""Configuration of `distillery tune`: what is tried, how often, and when a trial is given up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from pydantic import Field, field_validator, model_validator

from cluster.config import StrictModel

Scale = Literal["log", "linear"]


class IntSpace(StrictModel):
    """Whole numbers to try: `{ choices = [8, 16] }` or `{ min = 1, max = 4 }`."""

    choices: list[int] | None = None
    """Values to try; one value fixes the parameter."""
    min: int | None = None
    """Smallest value of a range; takes the place of `choices`, together with `max`."""
    max: int | None = None
    """Largest value of a range."""
    scale: Scale = "log"
    """How a range is drawn: `log` gives every factor of two the same weight, `linear` every
    number."""

    @model_validator(mode="after")
    def _usable(self) -> IntSpace:
        _check_space(self.choices, low=self.min, high=self.max)
        return self


class FloatSpace(StrictModel):
    """Numbers to try: `{ choices = [1e-4, 4e-4] }` or `{ min = 1e-4, max = 1e-3 }`."""

    choices: list[float] | None = None
    """Values to try; one value fixes the parameter."""
    min: float | None = None
    """Smallest value of a range; takes the place of `choices`, together with `max`."""
    max: float | None = None
    """Largest value of a range."""
    scale: Scale = "log"
    """How a range is drawn: `log` gives every factor of ten the same weight, `linear` every
    number."""

    @model_validator(mode="after")
    def _usable(self) -> FloatSpace:
        _check_space(self.choices, low=self.min, high=self.max)
        return self


def _check_space(choices: Sequence[float] | None, *, low: float | None, high: float | None) -> None:
    """Raise ValueError unless there are choices or a range, of numbers above 0."""
    if choices is None and low is None and high is None:
        raise ValueError("give choices = [...], or min and max")
    if choices is not None:
        if low is not None or high is not None:
            raise ValueError("has both choices and a range; give choices, or min and max")
        if not choices:
            raise ValueError("choices is empty; list at least one value")
        if min(choices) <= 0:
            raise ValueError(f"choices has {min(choices)}; every value must be above 0")
        if len(set(choices)) < len(choices):
            raise ValueError("choices names a value twice")
        return
    if low is None or high is None:
        missing = "min" if low is None else "max"
        raise ValueError(f"{missing} is missing; a range needs min and max")
    if low <= 0:
        raise ValueError(f"min {low} must be above 0")
    if low > high:
        raise ValueError(f"min {low} is above max {high}; swap them")


class TuneConfig(StrictModel):
    """What `distillery tune` tries; no other command looks at it."""

    trials: int = Field(default=12, ge=2, le=1000)
    """Trainings to start at most; ASHA stops the bad ones early."""
    rank: IntSpace = IntSpace(choices=[4, 8, 16])
    """`student.rank`."""
    alpha_ratio: FloatSpace = FloatSpace(choices=[1.0, 2.0])
    """`student.alpha` as a multiple of the rank."""
    learning_rate: FloatSpace = FloatSpace(min=1e-4, max=2e-3)
    """`train.learning_rate`."""
    epochs: IntSpace = IntSpace(choices=[1, 2, 3])
    """`train.epochs`."""
    include_current: bool = True
    """Try the run's own values first, so that the others have something to beat."""
    max_concurrent: int = Field(default=1, ge=1)
    """Trials that train at the same time; each takes `train.workers` CPUs or GPUs."""
    grace_period: int = Field(default=1, ge=1)
    """Looks at the held-out loss (one every `train.eval_every` steps) before a trial can be
    stopped; ASHA's minimum resource (Li et al. 2020)."""
    reduction_factor: float = Field(default=3.0, gt=1)
    """ASHA's eta: of the trials that came as far, one in so many goes on; and the next decision
    comes after so many times as many looks."""
    confirm_seeds: int = Field(default=0, le=10)
    """Train the best two again with so many other seeds (2 or more), to say whether the difference
    between them is more than noise; 0 says nothing about it."""
    budget_minutes: float | None = Field(default=None, gt=0)
    """Stop what runs after so many minutes of one call; the next call goes on from there."""
    seed: int = Field(default=17, ge=0)
    """Seed of the values that are drawn; each training has `train.seed`."""

    @field_validator("confirm_seeds")
    @classmethod
    def _enough_for_an_interval(cls, value: int) -> int:
        if value == 1 or value < 0:
            raise ValueError("an interval needs at least 2 further seeds; give 0, or 2 or more")
        return value

    @model_validator(mode="after")
    def _something_varies(self) -> TuneConfig:
        spaces = (self.rank, self.alpha_ratio, self.learning_rate, self.epochs)
        if all(len(s.choices) == 1 if s.choices else s.min == s.max for s in spaces):
            raise ValueError(
                "rank, alpha_ratio, learning_rate and epochs have one value each, so there is "
                "nothing to try; give one of them more"
            )
        return self
