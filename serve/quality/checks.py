"""Whether an answer passes: the cheap checks first, the task's own last."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serve.quality.config import QualityConfig


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an answer does not pass."""

    reason: str
    """A metric's label: `truncated`, `length`, `form`, `verifier` or `confidence`."""
    detail: str
    """What is wrong, for the repair's prompt; it may quote the answer."""


TaskCheck = Callable[[str, dict[str, Any] | None], Refusal | None]
"""(answer, the prompt's variables if the request brought them) -> refusal. It may block."""


@dataclass(frozen=True, slots=True)
class Given:
    """An answer as the checks see it."""

    text: str
    finish_reason: str | None = None
    """OpenAI's: `length` says that the answer was cut off."""
    mean_logprob: float | None = None
    """Mean log-probability of its tokens, nats; `None` when nobody asked for it."""
    variables: dict[str, Any] | None = None


def refusal(given: Given, config: QualityConfig, task_check: TaskCheck | None) -> Refusal | None:
    """Return the first check that the answer fails, or `None`. Blocks as long as the task's does.

    A check that raises refuses nothing: a broken verifier must not turn every answer away. Its
    exception is the caller's to log and count.
    """
    text = given.text.strip()
    if given.finish_reason == "length" and not config.allow_truncated:
        return Refusal("truncated", "it was cut off at max_tokens")
    if len(text) < config.min_chars:
        return Refusal("length", f"it has {len(text)} characters, at least {config.min_chars}")
    if config.max_chars is not None and len(text) > config.max_chars:
        return Refusal("length", f"it has {len(text)} characters, at most {config.max_chars}")
    lowest = config.min_mean_logprob
    if lowest is not None and given.mean_logprob is not None and given.mean_logprob < lowest:
        return Refusal(
            "confidence", f"its mean log-probability is {given.mean_logprob:.3f}, below {lowest:g}"
        )
    return task_check(given.text, given.variables) if task_check else None
