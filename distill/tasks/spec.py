"""`task.toml`: the definition of a task, readable and writable without Python."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cluster.config import StrictModel

Comparison = Literal["exact", "casefold", "number", "set"]
Category = Literal[
    "classification",
    "extraction",
    "rewriting",
    "qa",
    "support",
    "summaries",
    "code",
    "reasoning",
    "dialogue",
    "proofs",
]


class PromptTemplates(StrictModel):
    """Jinja2 templates; every variable of a prompts record can be used in both."""

    system: str = ""
    """System message; empty for none."""
    user: str
    """User message."""


class OutputSpec(StrictModel):
    """What an answer must look like."""

    format: Literal["json", "sections", "text"] = "json"
    """`json` is parsed and checked by the schema; `sections` are Markdown headings with text
    below; `text` is taken as it is."""
    json_schema: dict[str, Any] = Field(default_factory=dict)
    """JSON Schema (2020-12) of a `json` answer, inline."""
    json_schema_file: str = ""
    """The same from a file in the task folder."""
    sections: list[str] = Field(default_factory=list)
    """Headings that a `sections` answer must have, each with text below it."""

    @model_validator(mode="after")
    def _complete(self) -> OutputSpec:
        if self.format == "json" and bool(self.json_schema) == bool(self.json_schema_file):
            raise ValueError("format json needs either json_schema or json_schema_file")
        if self.format == "sections" and not self.sections:
            raise ValueError('format sections needs sections = ["Title", …]')
        return self


class ScoreSpec(StrictModel):
    """When an answer counts as right: every field listed agrees with the reference."""

    fields: dict[str, Comparison] = Field(default_factory=dict)
    """Field of the answer -> how it is compared. `exact`: equal; `casefold`: equal but for case
    and surrounding space; `number`: within `tolerance`; `set`: the same items in any order.
    A `text` answer has one field, `text`."""
    headline: str = ""
    """The field whose classes the confusion matrix and macro-F1 show; empty: the first one."""
    tolerance: float = Field(default=1e-6, ge=0)
    """Relative tolerance of `number`."""

    @model_validator(mode="after")
    def _headline_known(self) -> ScoreSpec:
        if self.headline and self.headline not in self.fields:
            raise ValueError(f"headline {self.headline!r} must be one of {sorted(self.fields)}")
        return self


class GridSpec(StrictModel):
    """Combinatorial prompts: every prompt is one entry of each axis, no combination comes twice."""

    axes: dict[str, str] = Field(min_length=1)
    """Axis -> where its entries are, in the task folder: a folder of TOML or JSON files, one entry
    a file; a JSONL file, one a line; or a TOML file with one array of tables. Each entry has a
    unique `id`. The templates see the entry under the axis's name: `{{ problem.title }}`."""
    strata: list[str] = Field(default_factory=list)
    """Fields (dotted paths such as `problem.difficulty`) whose crossed values get equal shares of
    each split."""
    test_share: float = Field(default=0.1, gt=0, lt=1)
    """Share of what `disjoint` keeps apart that only the test split may use. It does not follow
    the size of the run: what is held out stays held out when the training set grows."""
    validation_share: float = Field(default=0.05, gt=0, lt=1)
    """The same of the validation split."""

    @model_validator(mode="after")
    def _usable(self) -> GridSpec:
        for axis in self.axes:
            if not axis.isidentifier() or axis in ("id", "split", "reference"):
                raise ValueError(
                    f"axis {axis!r}: take a name such as 'problem'; id, split and reference are "
                    "fields of every record already"
                )
        if self.test_share + self.validation_share >= 1:
            raise ValueError("test_share + validation_share must leave something to train on")
        return self


class PromptSource(StrictModel):
    """Where the task's prompts come from, and what keeps the splits apart."""

    file: str = ""
    """JSONL or Parquet in the task folder: one record a prompt. `id`, `split` and `reference` are
    understood; every other field is a variable of the templates."""
    generator: str = ""
    """`module:function` in the task folder: `function(count, seed)` yields such records."""
    grid: GridSpec | None = None
    """Combinations of data files, as `[prompts.grid]`."""
    disjoint: list[Annotated[list[str], Field(min_length=1)]] = Field(default_factory=list)
    """Combinations of variables (dotted paths) that no two splits may share. Whatever is listed,
    no prompt stands in two splits."""
    reader: str = ""
    """`module:function` in the task folder: `function(messages)` returns the variables of a prompt
    that was asked, or None. A request log holds messages, and `verify` needs variables. Templates
    without conditions, loops and filters need none."""
    stratum: str = ""
    """Variable that names a prompt's category: the splits are stratified and reported by it."""

    @model_validator(mode="after")
    def _one_source(self) -> PromptSource:
        if bool(self.file) + bool(self.generator) + (self.grid is not None) != 1:
            raise ValueError("give exactly one of file, generator and grid")
        return self


class Deployment(StrictModel):
    """What is known about the workload. `None` is unknown: `distillery check` says what to write.

    Nothing else reads it: no stage trains or serves otherwise because of it.
    """

    category: Category | None = None
    """Kind of task; it settles the complexity that is otherwise read from the definition."""
    requests_per_day: int | None = Field(default=None, ge=0)
    """Requests on an ordinary day."""
    max_latency_ms: int | None = Field(default=None, gt=0)
    """Time that nine of ten whole answers may take (P90), milliseconds."""
    private: bool | None = None
    """Whether prompts or answers must stay on your own machines."""
    facts_change: bool | None = None
    """Whether a right answer needs facts that change (prices, rules, a catalogue) and that do not
    stand in the prompt. Facts that the prompt brings along do not count."""
    few_shot_solves: bool | None = None
    """Whether a prompt with a few examples is already good enough, on a model that you could
    afford to keep (the teacher at its price is not meant)."""


class TaskSpec(StrictModel):
    """A whole `task.toml`."""

    name: str = Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    """Name of the task, and by default of its adapters."""
    description: str = ""
    """One sentence for people."""
    prompt: PromptTemplates
    output: OutputSpec
    score: ScoreSpec = ScoreSpec()
    prompts: PromptSource
    verify: str = ""
    """`module:function` in the task folder: `function(variables, answer)` returns whether the
    answer holds by execution, as a bool, a score 0–1, or (score, reason)."""
    rubric: dict[str, str] = Field(default_factory=dict)
    """Dimension -> what a judge looks at."""
    deployment: Deployment = Deployment()
    """What `distillery check` should know about the workload; optional."""


def bundled_tasks() -> list[str]:
    """Names of the tasks that come with Distillery."""
    here = Path(__file__).parent
    return sorted(p.parent.name for p in here.glob("*/task.toml") if p.parent.name != "starter")
