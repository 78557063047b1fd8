"""Configuration of the distillation: one section a part, documented under each field."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal

from pydantic import Field, field_validator, model_validator

from cluster.config import StrictModel
from distill.curate.config import (
    BalanceRule,
    ContaminationConfig,
    DiversityConfig,
    EmbeddingsConfig,
    NearDuplicatesConfig,
    SemanticDuplicatesConfig,
    StructureConfig,
)
from distill.prompts.config import FromTask, MakeConfig
from distill.teach.config import OneTeacher, Price


class TaskConfig(StrictModel):
    """Which task is distilled."""

    folder: str
    """Folder with `task.toml`. A plain name such as `reconcile` means a task that comes with
    Distillery."""


class PromptsConfig(StrictModel):
    """How many prompts of each split; they never share the task's disjoint fields."""

    train: int = Field(default=600, ge=1)
    """Prompts the student learns from."""
    validation: int = Field(default=48, ge=1)
    """Prompts for the loss that early stopping and the held-out-loss gate watch."""
    test: int = Field(default=200, ge=1)
    """Held-out prompts of the evaluation; nothing is trained or selected on them."""
    seed: int = Field(default=17, ge=0)
    """Seed of generated prompts and of the split of given ones."""
    skip_bad: bool = False
    """Go on without the lines of a prompts file that cannot be read (`--skip-bad`)."""
    make: MakeConfig = FromTask()
    """How they are made: `task` takes those that the task brings; `self_instruct` and
    `evol_instruct` let a model write further ones to train on; `logs` takes what was asked in
    production."""


class JudgeVerify(StrictModel):
    """The task's own `verify.py`, executed: a judge that does not guess."""

    kind: Literal["verify"] = "verify"
    """Chooses this kind; the fields beside it are its own."""
    dimension: str = Field(default="verified", min_length=1)
    """Dimension that it scores; one of the rubric's averages it with what the models say there."""


class JudgeParse(StrictModel):
    """The task's own parser: 1.0 for an answer that can be read and fits its format, else 0.0."""

    kind: Literal["parse"] = "parse"
    """Chooses this kind; the fields beside it are its own."""
    dimension: str = Field(default="parsed", min_length=1)
    """Dimension that it scores; one of the rubric's averages it with what the models say there."""


class JudgeLiteLLM(StrictModel):
    """A model that scores an answer on the task's rubric, 0.0 to 1.0 a dimension."""

    kind: Literal["litellm"] = "litellm"
    """Chooses this kind; the fields beside it are its own."""
    model: str
    """LiteLLM model name."""
    name: str = ""
    """Name in verdicts and reports; empty takes `model`. Two judges never share one."""
    api_base: str | None = None
    """Base URL of an OpenAI-compatible server."""
    api_key_env: str | None = None
    """Environment variable that holds the key."""
    response_format: Literal["auto", "json_schema", "json_object"] = "auto"
    """How the verdict's JSON is asked for. `auto` sends the schema where LiteLLM says that the
    model supports it; set it where LiteLLM does not know your server."""
    concurrency: int = Field(default=16, ge=1)
    """Requests in flight at once."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds before one request is given up."""
    max_retries: int = Field(default=5, ge=0)
    """Attempts after the first, on rate limits, time-outs and server errors only."""
    price: Price | None = None
    """Overrides the price tables; a judge whose price nobody knows has no cost in the reports."""


JudgeConfig = Annotated[JudgeVerify | JudgeParse | JudgeLiteLLM, Field(discriminator="kind")]


class JuryConfig(StrictModel):
    """Who scores the answers, and which score keeps one."""

    judges: tuple[JudgeConfig, ...] = (JudgeVerify(),)
    """The jury; the score of a dimension is the mean over judges."""
    min_score: float = Field(default=0.8, ge=0, le=1)
    """An answer below this overall score is not trained on (4 of 5, FACTS: filters)."""


class SelectConfig(StrictModel):
    """Which candidate should teach: asked now, or from answers and verdicts that were exported."""

    candidates: tuple[Annotated[OneTeacher, Field(discriminator="kind")], ...] = ()
    """Who is asked, each as it would stand under `[teacher]`; `[jury]` scores what they say."""
    answers: tuple[str, ...] = ()
    """Instead, JSONL or Parquet files, or folders of them: example_id, candidate, completion,
    latency_s, cost_usd; `scores` (dimension -> 0.0 to 1.0) where they were scored already."""
    verdicts: tuple[str, ...] = ()
    """The same of the judges: example_id, candidate, judge, and dimension with score or `scores`;
    issues and confidence if known."""
    out: str = "selection"
    """Folder or URI for `selection.json`, `selection.md` and `selection.html`."""
    sample: int | None = Field(default=None, ge=1)
    """Prompts compared, the same for every candidate; `None` takes 50 where they are asked, else
    all that they share."""
    seed: int = Field(default=17, ge=0)
    """Seed of the sample and of the bootstrap."""
    bootstrap_samples: int = Field(default=1000, ge=100)
    """Resamples of the 95% percentile bootstrap intervals (Efron 1979)."""
    pairwise: tuple[JudgeLiteLLM, ...] = ()
    """Judges that also compare the first with the second, each prompt in both orders; exported
    answers then need `messages`, the prompt."""

    @model_validator(mode="after")
    def _asked_or_exported(self) -> SelectConfig:
        if bool(self.candidates) == bool(self.answers):
            raise ValueError(
                "give candidates, who are asked now, or answers, exported files: one of the two"
            )
        if self.candidates and self.verdicts:
            raise ValueError("verdicts belong to exported answers; [jury] scores candidates")
        if len(self.candidates) == 1:
            raise ValueError("one candidate alone cannot be compared; give two or more")
        several = [n for n, c in enumerate(self.candidates, 1) if getattr(c, "samples", 1) > 1]
        if several:
            raise ValueError(
                f"candidate {several[0]} has samples above 1: a candidate gives one answer a "
                "prompt; leave samples out"
            )
        return self


class CurateConfig(StrictModel):
    """Hard checks, cheapest first. Rejects are kept with their reason."""

    min_completion_chars: int = Field(default=2, ge=1)
    """Shorter answers are rejected as `too_short`."""
    max_completion_chars: int = Field(default=8000, ge=1)
    """Longer answers are rejected as `too_long`."""
    min_printable_fraction: float = Field(default=0.99, ge=0, le=1)
    """Least share of printable characters; below it the reason is `encoding`."""
    language: str | None = None
    """Expected script of the answer, `latin` or `None` for no check."""
    max_repetition: float = Field(default=0.5, gt=0, le=1)
    """Largest share of an answer that one repeated line may take (`repetition`)."""
    refusals: bool = True
    """Reject answers that open with a refusal (`refusal`), by the list `curate/refusals.toml`."""
    refusal_patterns: tuple[str, ...] = ()
    """Further regular expressions for refusals, against lower-case text."""
    min_completion_tokens: int | None = Field(default=None, ge=1)
    """Shorter answers are rejected (`length`), counted by `tokenizer`; 50 suits prose."""
    max_completion_tokens: int | None = Field(default=None, ge=1)
    """Longer answers are rejected (`length`), counted by `tokenizer`; 2,000 suits prose."""
    tokenizer: str = ""
    """Folder with the `tokenizer.json` that lengths are counted with; empty counts words."""
    structure: StructureConfig = StructureConfig()
    near_duplicates: NearDuplicatesConfig | None = None
    """Reject near-duplicates (`near_duplicate`); off without its section."""
    embeddings: EmbeddingsConfig = EmbeddingsConfig()
    semantic_duplicates: SemanticDuplicatesConfig | None = None
    """Reject semantic duplicates (`semantic_duplicate`); off without its section."""
    min_verified: float | None = Field(default=None, ge=0, le=1)
    """Reject answers that the task's `verify` scores below this (`verification`), whatever the
    jury's mean says; `None` leaves it to the jury."""
    balance: tuple[BalanceRule, ...] = ()
    """Caps on groups of training records (`balance`), one after the other."""
    diversity: DiversityConfig | None = None
    """Cluster the training records and cap the dominant cluster; off without its section."""
    contamination: ContaminationConfig | None = None
    """Compare training records with the evaluation sets; off without its section."""
    strata: tuple[str, ...] = ()
    """Dotted paths of prompt variables, such as `problem.difficulty`, whose distribution and gaps
    the dataset card shows beside the stratum's."""

    @field_validator("refusal_patterns")
    @classmethod
    def _patterns_compile(cls, patterns: tuple[str, ...]) -> tuple[str, ...]:
        for pattern in patterns:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"{pattern!r} is no regular expression: {error}") from None
        return patterns

    @model_validator(mode="after")
    def _lengths_ordered(self) -> CurateConfig:
        least, most = self.min_completion_tokens, self.max_completion_tokens
        if least is not None and most is not None and least > most:
            raise ValueError(f"min_completion_tokens {least} is above max_completion_tokens {most}")
        return self


class EvaluateConfig(StrictModel):
    """Base, student and teacher on the held-out prompts."""

    max_tokens: int = Field(default=128, ge=1)
    """Longest answer, in tokens; a base model that rambles is cut here."""
    concurrency: int = Field(default=16, ge=1)
    """Requests in flight at once; the latencies are measured under this load."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Further vLLM engine arguments."""
    kv_cache_gb: int = Field(default=1, ge=1)
    """KV cache on CPU, GiB."""
    bootstrap_samples: int = Field(default=1000, ge=100)
    """Resamples of the 95% percentile bootstrap intervals (Efron 1979)."""
    self_hosted_usd_per_hour: float = Field(default=0.10, ge=0)
    """What the machine that serves the student costs an hour; with the measured rate it gives
    dollars per 1,000 requests. An H100 is about 3.29, a 2-core machine about 0.10."""


class GatesConfig(StrictModel):
    """Thresholds that decide whether a student may ship. `None` switches a gate off."""

    min_schema_valid: float | None = Field(default=0.98, ge=0, le=1)
    """Least share of held-out answers that fit the output schema."""
    min_transfer_ratio: float | None = Field(default=0.9, ge=0, le=2)
    """Least student accuracy ÷ teacher accuracy."""
    min_gain_over_base: float | None = Field(default=0.05, ge=-1, le=1)
    """Least student accuracy − base accuracy."""
    max_validation_loss: float | None = Field(default=0.5, gt=0)
    """Largest held-out loss, nats a completion token."""
