"""Which answers of a model are refused, and what happens then."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field, model_validator

from cluster.config import StrictModel

Step = Literal["repair", "retry", "teacher"]


class QualityConfig(StrictModel):
    """One section a model name: `[serve.quality.reconcile]`. It covers all its versions."""

    task: str = ""
    """Task whose parser, schema and verifier check the answers; empty: the run's own task."""
    verify: bool = True
    """Run the task's `verify` where the request brings the prompt's variables as JSON in
    `metadata.variables`."""
    min_mean_logprob: float | None = Field(default=None, le=0)
    """Least mean log-probability of the answer's tokens, nats a token; `None` asks for none.
    The request log has what answers had."""
    min_chars: int = Field(default=1, ge=0)
    """Shortest answer, in characters."""
    max_chars: int | None = Field(default=None, ge=1)
    """Longest answer, in characters."""
    allow_truncated: bool = False
    """Let answers pass that ended at `max_tokens`."""
    on_failure: list[Step] = Field(default_factory=list)
    """What is tried in order after a refused answer, each at most once: `repair` shows the student
    its answer and what is wrong with it, `retry` samples another, `teacher` asks the teacher."""
    retry_temperature: float = Field(default=0.7, gt=0, le=2)
    """Least sampling temperature of a retry: the same greedy answer would be refused again."""
    max_teacher_rate: float = Field(default=0.1, ge=0, le=1)
    """Largest share of answers that the teacher may give in the long run."""
    teacher_burst: int = Field(default=20, ge=1)
    """Teacher's answers in a row that the rate allows for after a quiet time."""
    usd_per_day: float | None = Field(default=None, gt=0)
    """Dollars that the teacher may cost in a day (UTC); needed for a step `teacher` and for
    `serve.routing.<name>.to = "teacher"`."""
    otherwise: Literal["serve", "refuse"] = "serve"
    """When no step gave an answer that passes: `serve` the student's, marked in a header, or
    `refuse` with status 502."""
    hold_streams: bool = True
    """Check a streamed answer before its first event. Off: streams are checked after the fact,
    counted, and never replaced."""
    teacher: dict[str, Any] = Field(default_factory=dict)
    """The teacher that is asked, as under `[teacher]` of a run; empty: the run's own."""

    @model_validator(mode="after")
    def _complete(self) -> QualityConfig:
        if len(set(self.on_failure)) != len(self.on_failure):
            raise ValueError("on_failure: each step stands there at most once")
        if "teacher" in self.on_failure and self.usd_per_day is None:
            raise ValueError(
                "on_failure has `teacher`: set usd_per_day, the dollars it may cost in a day"
            )
        if self.max_chars is not None and self.max_chars < self.min_chars:
            raise ValueError(f"max_chars {self.max_chars} is below min_chars {self.min_chars}")
        return self
