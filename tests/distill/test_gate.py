"""Each gate passes, fails and fails for want of a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.errors import GateError
from cluster.storage import Store
from distill.config import GatesConfig
from distill.gate import require_passed, run_gates, write_gates

CONFIG = GatesConfig(
    min_schema_valid=0.98,
    min_transfer_ratio=0.9,
    min_gain_over_base=0.05,
    max_validation_loss=0.5,
)


def evaluation(
    *, valid: float = 1.0, student: float = 0.95, base: float = 0.1, ratio: float | None = 0.95
) -> dict[str, Any]:
    return {
        "models": {
            "base": {"schema_valid": 0.2, "accuracy": base},
            "student": {"schema_valid": valid, "accuracy": student},
        },
        "transfer_ratio": ratio,
    }


def failed(found: dict[str, Any], loss: float | None = 0.1) -> list[str]:
    return [gate.name for gate in run_gates(CONFIG, found, loss) if not gate.passed]


def test_a_good_student_passes_every_gate() -> None:
    results = run_gates(CONFIG, evaluation(), 0.1)
    assert [gate.name for gate in results] == [
        "schema_valid",
        "transfer_ratio",
        "gain_over_base",
        "validation_loss",
    ]
    assert all(gate.passed for gate in results)
    require_passed(results)


def test_each_gate_fails_on_its_own_figure() -> None:
    assert failed(evaluation(valid=0.979)) == ["schema_valid"]
    assert failed(evaluation(ratio=0.89)) == ["transfer_ratio"]
    assert failed(evaluation(base=0.92)) == ["gain_over_base"]
    assert failed(evaluation(), loss=0.51) == ["validation_loss"]


def test_a_figure_on_the_threshold_passes() -> None:
    assert failed(evaluation(valid=0.98, ratio=0.9), loss=0.5) == []


@pytest.mark.parametrize("loss", [None, float("nan"), float("inf")])
def test_what_is_not_measured_does_not_pass(loss: float | None) -> None:
    assert failed(evaluation(ratio=None), loss=loss) == ["transfer_ratio", "validation_loss"]
    missing = run_gates(CONFIG, {}, 0.1)
    assert [gate.passed for gate in missing] == [False, False, False, True]
    assert "no figure" in missing[0].reason


def test_none_switches_a_gate_off() -> None:
    config = GatesConfig(min_transfer_ratio=None, min_gain_over_base=None, max_validation_loss=None)
    assert [gate.name for gate in run_gates(config, evaluation(), None)] == ["schema_valid"]


def test_gates_json_and_the_error_name_figure_and_threshold(tmp_path: Path) -> None:
    results = run_gates(CONFIG, evaluation(ratio=0.5), 0.1)
    write_gates(Store(tmp_path), results)

    written = Store(tmp_path).read_json("gates.json")
    assert written["passed"] is False
    assert written["gates"][1] == {
        "name": "transfer_ratio",
        "figure": 0.5,
        "threshold": 0.9,
        "comparison": ">=",
        "passed": False,
        "reason": "transfer_ratio: 0.5 fails, it must be at least 0.9 "
        "(student's accuracy ÷ teacher's accuracy).",
    }
    with pytest.raises(GateError, match=r"transfer_ratio: 0\.5 fails") as error:
        require_passed(results)
    assert error.value.exit_code == 3
