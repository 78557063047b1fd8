"""Checks an answer against the lines themselves, without looking at the recorded answer."""

from __future__ import annotations

from typing import Any

from distill.tasks.reconcile.rules import decide


def verify(variables: dict[str, Any], answer: dict[str, Any]) -> tuple[float, str]:
    """Score 1.0 when class and action follow from the lines, 0.5 when only the class does."""
    classification, *_, action = decide(variables)
    if answer["classification"] != classification:
        return 0.0, f"the rules give {classification}"
    if answer["action"] != action:
        return 0.5, f"the class is right, its action is {action}"
    return 1.0, ""
