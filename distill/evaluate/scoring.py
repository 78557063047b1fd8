"""What evaluation needs to know about one answer."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scored:
    """One answer against its reference."""

    valid: bool
    """It can be read and fits the output schema."""
    correct: bool
    """It is valid and every scored field agrees with the reference."""
    label: str
    """Predicted class (the headline field), "" when invalid."""
    expected: str
    """The reference's class."""
    reason: str = ""
    """Why it is invalid or wrong."""
