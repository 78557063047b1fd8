"""Gates: thresholds on the evaluation that a student must pass before it is published."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from cluster.errors import GateError
from cluster.storage import Store
from distill.config import GatesConfig

GATES_FILE = "gates.json"


@dataclass(frozen=True)
class GateResult:
    """One gate's figure against its threshold."""

    name: str
    figure: float | None
    """`None`: it could not be measured, which fails the gate."""
    threshold: float
    comparison: Literal[">=", "<="]
    passed: bool
    reason: str
    """One sentence for people."""


def run_gates(
    config: GatesConfig, evaluation: dict[str, Any], validation_loss: float | None
) -> list[GateResult]:
    """Hold the figures of `evaluation.json` and the held-out loss against the thresholds.

    A threshold of `None` leaves its gate out; a figure that is missing or not finite fails it.
    """
    models = evaluation.get("models", {})
    student = models.get("student", {})
    student_accuracy = student.get("accuracy")
    base_accuracy = models.get("base", {}).get("accuracy")
    gain = (
        student_accuracy - base_accuracy
        if student_accuracy is not None and base_accuracy is not None
        else None
    )
    results = [
        _at_least(
            "schema_valid",
            student.get("schema_valid"),
            config.min_schema_valid,
            "share of the student's answers that fit the output schema",
        ),
        _at_least(
            "transfer_ratio",
            evaluation.get("transfer_ratio"),
            config.min_transfer_ratio,
            "student's accuracy ÷ teacher's accuracy",
        ),
        _at_least(
            "gain_over_base",
            gain,
            config.min_gain_over_base,
            "student's accuracy − base model's accuracy",
        ),
        _at_most(
            "validation_loss",
            validation_loss,
            config.max_validation_loss,
            "held-out loss, nats a completion token",
        ),
    ]
    return [result for result in results if result is not None]


def write_gates(run: Store, results: Sequence[GateResult]) -> None:
    """Write `gates.json`: `passed`, and every gate with figure, threshold, verdict and reason."""
    run.write_json(
        GATES_FILE,
        {"passed": all(r.passed for r in results), "gates": [asdict(r) for r in results]},
    )


def require_passed(results: Sequence[GateResult]) -> None:
    """Raise GateError (exit code 3) that lists every gate that failed."""
    failed = [result.reason for result in results if not result.passed]
    if failed:
        raise GateError(
            "the student may not ship:\n  " + "\n  ".join(failed) + "\n"
            "More or better data, a higher rank or more epochs help; [gates] holds the thresholds."
        )


def _at_least(
    name: str, figure: float | None, threshold: float | None, meaning: str
) -> GateResult | None:
    return _gate(name, figure, threshold, comparison=">=", meaning=meaning)


def _at_most(
    name: str, figure: float | None, threshold: float | None, meaning: str
) -> GateResult | None:
    return _gate(name, figure, threshold, comparison="<=", meaning=meaning)


def _gate(
    name: str,
    figure: float | None,
    threshold: float | None,
    *,
    comparison: Literal[">=", "<="],
    meaning: str,
) -> GateResult | None:
    if threshold is None:
        return None
    if figure is None or not math.isfinite(figure):
        reason = f"{name}: there is no figure ({meaning}), and what is not measured does not pass."
        return GateResult(name, None, threshold, comparison, False, reason)
    passed = figure >= threshold if comparison == ">=" else figure <= threshold
    bound = "at least" if comparison == ">=" else "at most"
    verdict = "passes" if passed else "fails"
    reason = f"{name}: {figure:.4g} {verdict}, it must be {bound} {threshold:g} ({meaning})."
    return GateResult(name, float(figure), threshold, comparison, passed, reason)
