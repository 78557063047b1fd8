"""The field's rules of thumb, read from `rules_of_thumb.toml`: each row carries its source."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Literal

from pydantic import Field

from cluster.config import StrictModel, read_toml, validate
from distill.tasks.spec import Category

Advice = Literal["distil", "prompt", "retrieve", "compute"]
FILE = Path(__file__).parent / "rules_of_thumb.toml"


class LevelRule(StrictModel):
    """What to expect of a task of one complexity."""

    level: Literal[1, 2, 3, 4]
    """1 simple … 4 very complex."""
    name: str
    """The level in a word."""
    examples: str
    """Kinds of task at this level."""
    data: list[int] = Field(min_length=1, max_length=2)
    """Training examples, low and high; one number: that many and more."""
    student_billions: list[float] = Field(min_length=2, max_length=2)
    """Parameters of the student in billions, low and high."""
    chain_of_thought: bool = False
    """Whether the student should write its reasoning."""
    transfer: list[float] = Field(min_length=2, max_length=2)
    """Student's score ÷ teacher's score, low and high."""
    source: str
    """Where the row is from."""


class CategoryRule(StrictModel):
    """What to expect of one kind of task."""

    name: Category
    """As `[deployment] category` names it."""
    levels: list[int] = Field(min_length=2, max_length=2)
    """Lowest and highest complexity that tasks of this kind have."""
    data: list[int] | None = Field(default=None, min_length=3, max_length=3)
    """Training examples: minimum, recommended, ideal; `None`: the sources give none."""
    source: str
    """Where the row is from."""


class VolumeRule(StrictModel):
    """What a number of requests a day says about distilling."""

    from_requests_per_day: int
    """The row holds from this number up to the next row's."""
    recommend: Advice
    """What to do."""
    reason: str
    """One clause for people."""
    source: str
    """Where the row is from."""


class SignRule(StrictModel):
    """What one property of the workload says about distilling."""

    name: Literal["facts_change", "few_shot_solves", "private", "fast"]
    """The property."""
    recommend: Advice
    """What to do when it holds."""
    reason: str
    """One clause for people."""
    source: str
    """Where the row is from."""


class Figure(StrictModel):
    """One number, or low and high."""

    values: list[float] = Field(min_length=1, max_length=2)
    """The number, or low and high."""
    source: str
    """Where it is from."""


class Figures(StrictModel):
    """Single figures."""

    fast_below_ms: Figure
    """Latency under which a large model behind an API is too slow, ms."""
    inconsistent_below_examples: Figure
    """Training examples under which a model is inconsistent."""
    style_examples: Figure
    """Training examples when only the style is to change."""
    format_examples: Figure
    """Training examples when only the format is new."""
    preference_pairs: Figure
    """Pairs for preference training."""
    teacher_times_student: Figure
    """Teacher's parameters ÷ student's parameters."""
    raw_yield: Figure
    """Share of raw answers that all filters together keep."""
    example_tokens: Figure
    """Length of an example, prompt and answer, in tokens."""
    risky_stratum_share: Figure
    """Share of the data above which one group is risky."""


class Reading(StrictModel):
    """Thresholds at which a definition counts as more complex."""

    short_text_chars: int
    """Longest text field that counts as a label with words, characters."""
    moderate_answer_tokens: int
    """Longer answers are at least level 2."""
    complex_answer_tokens: int
    """Longer answers are at least level 3."""
    complex_code_tokens: int
    """Longer programs are at least level 3."""
    many_scored_fields: int
    """More scored fields are at least level 2."""
    chars_per_token: int
    """Characters a token, to estimate lengths without a tokenizer."""
    source: str
    """Where the thresholds are from."""


class RulesOfThumb(StrictModel):
    """The whole file."""

    level: list[LevelRule]
    """By complexity, simple first."""
    category: list[CategoryRule]
    """By kind of task."""
    volume: list[VolumeRule]
    """By requests a day, few first."""
    sign: list[SignRule]
    """By property of the workload, the strongest first."""
    figure: Figures
    """Single figures."""
    reading: Reading
    """How a definition is read to a level."""

    def for_level(self, level: int) -> LevelRule:
        """Return the row of a level, 1 to 4."""
        return next(row for row in self.level if row.level == level)

    def for_category(self, category: str) -> CategoryRule:
        """Return the row of a category."""
        return next(row for row in self.category if row.name == category)

    def for_volume(self, requests_per_day: int) -> VolumeRule:
        """Return the row that a number of requests a day falls into."""
        return [row for row in self.volume if row.from_requests_per_day <= requests_per_day][-1]


@cache
def rules_of_thumb() -> RulesOfThumb:
    """Read the tables once."""
    return validate(RulesOfThumb, read_toml(FILE), source=str(FILE))
