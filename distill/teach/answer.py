"""One answer of a teacher, and the line of the journal that keeps it."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any

from distill.surrogates import without_halves

TRUNCATED = "truncated"
"""The failure of an answer that reached `max_tokens`."""


@dataclass(frozen=True)
class Answer:
    """One answer, or the error that stands in its place."""

    completion: str = ""
    rationale: str = ""
    """Reasoning that came before the answer, where it was asked for."""
    error: str = ""
    prompt_tokens: int = 0
    cached_tokens: int = 0
    """Of the prompt's, those that the provider had kept and charged less for."""
    completion_tokens: int = 0
    latency_s: float = 0.0
    cost_usd: float = 0.0
    requests: int = 1
    """Requests that were answered: two when the first answer was repaired."""
    failure: str = ""
    """What kind of error: the last retry's reason, `refused`, `empty` or `truncated` (the text is
    what came before the limit)."""
    retried: tuple[str, ...] = ()
    """The reason of each retry."""

    def __post_init__(self) -> None:
        # What was paid for is written down, whatever a model or a server made of it.
        for name in ("completion", "rationale", "error"):
            object.__setattr__(self, name, without_halves(getattr(self, name)))

    def with_usage(
        self, *, prompt_tokens: int, cached_tokens: int, completion_tokens: int, cost_usd: float
    ) -> Answer:
        """Return this answer with what the provider counted."""
        return replace(
            self,
            prompt_tokens=prompt_tokens,
            cached_tokens=cached_tokens,
            completion_tokens=completion_tokens,
            cost_usd=cost_usd,
        )

    def followed_by(self, again: Answer, *, kept: Answer) -> Answer:
        """Return `kept`'s text with the tokens, seconds and dollars of both requests."""
        return replace(
            kept,
            prompt_tokens=self.prompt_tokens + again.prompt_tokens,
            cached_tokens=self.cached_tokens + again.cached_tokens,
            completion_tokens=self.completion_tokens + again.completion_tokens,
            latency_s=self.latency_s + again.latency_s,
            cost_usd=self.cost_usd + again.cost_usd,
            requests=self.requests + again.requests,
            retried=self.retried + again.retried,
        )


def problem_of(
    text: str, *, truncated: bool, max_tokens: int, finish_reason: str = ""
) -> tuple[str, str]:
    """Return (error, failure) of what a model wrote; both are empty when it can be used."""
    if truncated:
        return f"cut off at teacher.max_tokens {max_tokens}; raise it", TRUNCATED
    if not text:
        return f"empty answer ({finish_reason})" if finish_reason else "empty answer", "empty"
    return "", ""


def is_final(row: dict[str, Any]) -> bool:
    """Whether asking again for a journal's line would only bring the same.

    A request's key has `max_tokens` in it: what was cut off is asked again once that is raised.
    """
    return not row["error"] or row["failure"] == TRUNCATED


def journal_row(row: dict[str, Any], answer: Answer, *, teacher: str, payer: str) -> dict[str, Any]:
    """Return the journal's line of an answer to a request.

    `payer` is the run that pays for it; a row that is no request for an answer has its `stage`.
    """
    return {
        "request_key": row["request_key"],
        "example_id": row["example_id"],
        "teacher": teacher,
        "payer": payer,
        "stage": row.get("stage", "answers"),
        **asdict(answer),
    }
