"""Configuration of the teachers: who answers the prompts, and how they are asked."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from cluster.config import StrictModel
from cluster.prices import TokenPrice


class Price(StrictModel):
    """Dollars per million tokens."""

    input_usd_per_mtok: float = Field(ge=0)
    """Prompt tokens."""
    output_usd_per_mtok: float = Field(ge=0)
    """Completion tokens."""

    def as_token_price(self, source: str) -> TokenPrice:
        """Return it as the price table has its own; `source` says whose figure it is."""
        return TokenPrice(self.input_usd_per_mtok, self.output_usd_per_mtok, source)


class ProgramTeacher(StrictModel):
    """A Python function that computes the answer. It is no model and is never called one."""

    kind: Literal["program"] = "program"
    """Chooses this kind; the fields beside it are its own."""
    function: str = "rules:answer"
    """`module:function` in the task folder; takes the prompt's variables, returns the answer."""
    price: Price | None = None
    """API price that the cost table compares with; `None`: the answers cost nothing."""


class Sampling(StrictModel):
    """How a model is asked, whoever runs it."""

    temperature: float = Field(default=0.0, ge=0, le=2)
    """Sampling temperature."""
    max_tokens: int = Field(default=1024, ge=1)
    """Longest answer asked for, in tokens."""
    seed: int | None = None
    """Sampling seed, for servers that take one; sample k of a prompt gets seed + k."""
    samples: int = Field(default=1, ge=1, le=64)
    """Answers asked for each prompt; the jury keeps the best, all are in `candidates.parquet`."""
    reasoning: bool = False
    """Ask for the reasoning before the answer (chain of thought, Wei et al. 2022). It is kept apart
    as `rationale`, and only where the answer turns out right."""
    accept_teacher_terms: bool = False
    """Say that you may train on the answers of a teacher whose terms restrict that."""
    max_failed_fraction: float = Field(default=0.05, ge=0, le=1)
    """Share of prompts that may end without an answer."""
    cache: str = ""
    """Folder of the answers that runs share; empty: `answers` beside the run folders."""

    @model_validator(mode="after")
    def _samples_differ(self) -> Sampling:
        if self.samples > 1 and self.temperature == 0:
            raise ValueError(
                f"samples {self.samples} at temperature 0 would be {self.samples} times the same "
                "answer; set a temperature such as 0.7, or samples = 1"
            )
        return self


class LiteLLMTeacher(Sampling):
    """Any provider or OpenAI-compatible server through LiteLLM; keys come from the environment."""

    kind: Literal["litellm"] = "litellm"
    """Chooses this kind; the fields beside it are its own."""
    model: str
    """LiteLLM model name, such as `anthropic/claude-sonnet-4-20250514` or `openai/my-model`."""
    api_base: str | None = None
    """Base URL of an OpenAI-compatible server."""
    api_key_env: str | None = None
    """Environment variable that holds the key; `None`: the provider's usual one."""
    timeout_s: float = Field(default=120.0, gt=0)
    """Seconds before one request is given up."""
    max_retries: int = Field(default=5, ge=0)
    """Attempts after the first, on rate limits, time-outs and server errors only."""
    concurrency: int = Field(default=32, ge=1)
    """Requests in flight at once, over all workers; falls while the provider refuses."""
    requests_per_minute: int | None = Field(default=None, ge=1)
    """The provider's limit for this model, kept by all jobs of the cluster together."""
    tokens_per_minute: int | None = Field(default=None, ge=1)
    """Likewise, prompt plus completion."""
    structured: Literal["auto", "json_schema", "json_object", "off"] = "auto"
    """How JSON is asked for: `auto` sends the task's schema where LiteLLM knows that the provider
    enforces it, and nothing elsewhere."""
    repair: bool = True
    """Ask once more, with what was wrong, when an answer does not fit the task's output."""
    budget_usd: float | None = Field(default=None, gt=0)
    """Asking stops before the dollars of this run, resumes included, pass this."""
    price: Price | None = None
    """Overrides the price tables; needed for a model that they do not know."""


class VLLMTeacher(Sampling):
    """A model that the cluster runs itself, in batches: vLLM through `ray.data.llm`."""

    kind: Literal["vllm"] = "vllm"
    """Chooses this kind; the fields beside it are its own."""
    model: str
    """Local folder or hub name of a model with a chat template."""
    replicas: int = Field(default=1, ge=1)
    """Engines side by side; each takes `tensor_parallel_size` GPUs, or cores without GPUs."""
    batch_size: int = Field(default=64, ge=1)
    """Prompts that are handed to an engine at once; answers are on disk after each batch."""
    engine: dict[str, Any] = Field(default_factory=dict)
    """Further vLLM engine arguments, such as `max_model_len` or `tensor_parallel_size`."""
    structured: bool = True
    """Let vLLM decode by the task's JSON Schema, so that every answer fits it."""
    price: Price | None = None
    """What its tokens are worth in the cost table; `None`: the cluster's hours are not counted."""


class ReplayTeacher(StrictModel):
    """Answers recorded earlier, joined by `example_id` or by the task's prompt id."""

    kind: Literal["replay"] = "replay"
    """Chooses this kind; the fields beside it are its own."""
    file: str
    """JSONL or Parquet with `example_id` or `id`, and `completion`; tokens and latency if known."""
    price: Price | None = None
    """API price that the answers cost when they were made."""


ModelTeacher = LiteLLMTeacher | VLLMTeacher
"""Teachers whose answers are sampled, cached and never asked for twice."""
OneTeacher = ProgramTeacher | LiteLLMTeacher | VLLMTeacher | ReplayTeacher


class SeveralTeachers(StrictModel):
    """Several teachers at once: the jury's choice for each prompt, or a mixture."""

    kind: Literal["several"] = "several"
    """Chooses this kind; the fields beside it are its own."""
    combine: Literal["best_of", "mixture"] = "best_of"
    """`best_of`: all of them answer every prompt and the jury keeps the best answer; `mixture`:
    each prompt goes to one of them, by `weights`."""
    members: tuple[Annotated[OneTeacher, Field(discriminator="kind")], ...] = Field(min_length=2)
    """The teachers, each as it would stand alone under `[teacher]`."""
    weights: tuple[float, ...] = ()
    """Of a mixture, one for each member; empty: equal shares."""
    seed: int = Field(default=17, ge=0)
    """Of a mixture: which prompt goes to whom."""
    price: Price | None = None
    """API price that the cost table compares with, in place of what the members cost together."""

    @model_validator(mode="after")
    def _weights_fit(self) -> SeveralTeachers:
        if self.weights and self.combine != "mixture":
            raise ValueError('weights belong to combine = "mixture"; with best_of all are asked')
        if self.weights and len(self.weights) != len(self.members):
            raise ValueError(
                f"{len(self.weights)} weights for {len(self.members)} members: give one each"
            )
        if any(weight <= 0 for weight in self.weights):
            raise ValueError(f"weights {list(self.weights)} must all be above 0")
        return self


AnyTeacher = OneTeacher | SeveralTeachers
TeacherConfig = Annotated[AnyTeacher, Field(discriminator="kind")]


def members_of(config: AnyTeacher) -> tuple[OneTeacher, ...]:
    """The teachers that are asked."""
    return config.members if isinstance(config, SeveralTeachers) else (config,)


def gives_candidates(config: AnyTeacher) -> bool:
    """Whether a prompt may get several answers, of which the jury keeps one."""
    if isinstance(config, SeveralTeachers) and config.combine == "best_of":
        return True
    return any(isinstance(m, ModelTeacher) and m.samples > 1 for m in members_of(config))
