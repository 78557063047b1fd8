from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from cluster.errors import ConfigError, DataError
from distill.train.config import StudentConfig, TrainConfig
from distill.train.prepare import prepare

pytestmark = pytest.mark.model

RECORDS = [
    {
        "example_id": f"e{i}",
        "messages": [{"role": "user", "content": "Bank: ACME Ltd USD 1,204.50" + "!" * i}],
        "completion": '{"classification": "TIMING_DIFFERENCE"}',
    }
    for i in range(8)
]
REASONED = [{**record, "rationale": "The amounts agree."} for record in RECORDS]


def prepared(model: Path, **changes: Any) -> tuple[dict[str, Any], Any]:
    student = {k: v for k, v in changes.items() if k not in ("records", "validation", "train")}
    return prepare(
        StudentConfig(**{"model": str(model), **student}),
        TrainConfig(**{"workers": 2, **changes.get("train", {})}),
        records=changes.get("records", RECORDS),
        validation=changes.get("validation", RECORDS[:2]),
    )


def test_records_come_back_encoded_with_what_was_left_out(tiny_model: Path) -> None:
    long = {**RECORDS[0], "example_id": "long", "completion": "no " * 500}
    summary, (training, validation) = prepared(
        tiny_model, max_length=200, records=[*RECORDS, long], validation=[RECORDS[0], long]
    )
    assert [r.example_id for r in training] == [r["example_id"] for r in RECORDS]
    assert summary["dropped_train"] == summary["dropped_validation"] == ["long"]
    assert len(validation) == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"records": RECORDS[:1]}, DataError, "1 training records for 2 workers"),
        ({"max_length": 16}, DataError, "8 above student.max_length 16"),
        ({"validation": []}, DataError, "no validation record is left"),
        ({"target_modules": ["q_prj"]}, ConfigError, "did you mean 'q_proj'"),
        ({"rank": 512}, ConfigError, "student.rank: 512 is above 64"),
        (
            {"train": {"learning_rates": {"lora-B": 16.0}}},
            ConfigError,
            "train.learning_rates.lora-B: no trained parameter's name holds it; did you mean "
            "'lora_B'",
        ),
        (
            {"train": {"learning_rates": {"lora": 2.0, "lora_B": 16.0}}},
            ConfigError,
            "train.learning_rates.lora_B: the keys before it take every parameter that it fits; "
            "put it before them",
        ),
        (
            {"tuning": "full", "train": {"learning_rates": {"lora_B": 16.0}}},
            ConfigError,
            "train.learning_rates.lora_B: no trained parameter's name holds it",
        ),
        (
            {"records": REASONED, "train": {"method": "cot"}},
            DataError,
            "no validation record is left: method 'cot' learns from reasoning, and none of 2 "
            "validation records has a rationale; set teacher.reasoning = true",
        ),
        (
            {
                "records": REASONED,
                "validation": [*RECORDS[:2], {**REASONED[0], "completion": "no " * 500}],
                "train": {"method": "cot"},
                "max_length": 200,
            },
            DataError,
            "no validation record is left .3 given, 1 above student.max_length 200, 2 without a "
            "rationale.; .* raise student.max_length, set teacher.reasoning = true",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(
    tiny_model: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prepared(tiny_model, **changes)


@pytest.mark.parametrize("tuning", ["lora", "dora", "qlora", "full"])
def test_rates_by_names_that_the_student_has_pass(tiny_model: Path, tuning: str) -> None:
    key = "q_proj.weight" if tuning == "full" else "lora_B"
    _, (training, _) = prepared(tiny_model, tuning=tuning, train={"learning_rates": {key: 16.0}})
    assert len(training) == len(RECORDS)
