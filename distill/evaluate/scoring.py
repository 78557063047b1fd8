"""What the evaluation asks of a task: is this answer valid, is it right, which class is it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol


@dataclass(frozen=True)
class Scored:
    """One answer, scored."""

    valid: bool
    """It fits the output schema."""
    correct: bool
    """Every scored field agrees with the right answer; never true when not valid."""
    label: str
    """The headline field's value; `""` when there is none to read."""
    expected: str
    """The headline field's right value; `""` when the task has no classes."""
    reason: str
    """Why it is not valid or not correct, in words; `""` when it is right."""


class Score(Protocol):
    """A task's scoring function."""

    def __call__(self, completion: str, row: dict[str, Any], /) -> Scored:
        """Score a completion against `row`.

        `row` is a prompt (`distill.records.PROMPT`) with one more key, `teacher_completion`: the
        teacher's answer, `""` where it has none. A task without a `reference` scores against it.
        """
        ...
