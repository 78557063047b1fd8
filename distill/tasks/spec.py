"""`task.toml`: the definition of a task, readable and writable without Python."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, model_validator

from cluster.config import StrictModel

Comparison = Literal["exact", "casefold", "number", "set"]


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


class PromptSource(StrictModel):
    """Where the task's prompts come from, and what keeps the splits apart."""

    file: str = ""
    """JSONL or Parquet in the task folder: one record a prompt. `id`, `split` and `reference` are
    understood; every other field is a variable of the templates."""
    generator: str = ""
    """`module:function` in the task folder: `function(count, seed)` yields such records."""
    disjoint: list[list[str]] = Field(default_factory=list)
    """Combinations of variables (dotted paths) that no two splits may share. Whatever is listed,
    no prompt stands in two splits."""
    stratum: str = ""
    """Variable that names a prompt's category: the splits are stratified and reported by it."""

    @model_validator(mode="after")
    def _one_source(self) -> PromptSource:
        if bool(self.file) == bool(self.generator):
            raise ValueError("give either file or generator")
        return self


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


def bundled_tasks() -> list[str]:
    """Names of the tasks that come with Distillery."""
    here = Path(__file__).parent
    return sorted(p.parent.name for p in here.glob("*/task.toml") if p.parent.name != "starter")
