"""Metrics against closed forms and hand-made counts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from distill.evaluate.metrics import (
    Bootstrap,
    classification,
    latencies,
    model_metrics,
    requests_per_s,
    transfer_ratio,
)


def row(expected: str, label: str, **over: Any) -> dict[str, Any]:
    return {
        "example_id": over.pop("example_id", f"{expected}-{label}"),
        "valid": label != "",
        "correct": label == expected,
        "label": label,
        "expected": expected,
        "stratum": "",
        "prompt_tokens": 10,
        "completion_tokens": 5,
        "latency_s": 1.0,
        "error": "",
        **over,
    }


# Rows are the right class, columns the answer: A 3 right of 4, B 1 right of 3 and one invalid.
ROWS = [
    *[row("A", "A")] * 3,
    row("A", "B"),
    row("B", "B"),
    row("B", "A"),
    row("B", ""),
]


def bootstrap(num_rows: int, *, samples: int = 1000, seed: int = 0) -> Bootstrap:
    return Bootstrap(num_rows, samples=samples, seed=seed)


def test_shares_and_f1_by_hand() -> None:
    figures = model_metrics(ROWS, bootstrap(7))

    assert figures["schema_valid"] == pytest.approx(6 / 7)
    assert figures["accuracy"] == pytest.approx(4 / 7)
    # A: 3 hits, 4 predicted, 4 expected. B: 1 hit, 2 predicted, 3 expected.
    assert figures["per_class"]["A"]["f1"] == pytest.approx(2 * 3 / 8)
    assert figures["per_class"]["B"]["f1"] == pytest.approx(2 * 1 / 5)
    assert figures["macro_f1"] == pytest.approx((0.75 + 0.4) / 2)
    assert figures["per_class"]["B"]["precision"] == pytest.approx(1 / 2)
    assert figures["per_class"]["B"]["recall"] == pytest.approx(1 / 3)
    assert figures["confusion"] == {
        "rows": ["A", "B"],
        "columns": ["A", "B", "(invalid)"],
        "matrix": [[3, 1, 0], [1, 1, 1]],
    }
    for name in ("schema_valid", "accuracy", "macro_f1"):
        low, high = figures[f"{name}_ci95"]
        assert low <= figures[name] <= high


def test_a_label_outside_the_classes_gets_its_own_column() -> None:
    figures = classification([row("A", "A"), row("A", "Z")], bootstrap(2))
    assert figures["confusion"]["columns"] == ["A", "Z", "(invalid)"]
    assert figures["macro_f1"] == pytest.approx(2 * 1 / 3)


def test_a_class_that_is_never_predicted_has_no_precision() -> None:
    figures = classification([row("A", "B"), row("B", "B")], bootstrap(2))
    assert figures["per_class"]["A"]["precision"] is None
    assert figures["per_class"]["A"]["f1"] == 0.0


@pytest.mark.parametrize("labels", [[""] * 50, [f"text {i}" for i in range(50)]])
def test_free_text_has_no_classes(labels: list[str]) -> None:
    figures = classification([row(label, label) for label in labels], bootstrap(50))
    assert figures["macro_f1"] is None
    assert figures["confusion"] is None


def test_strata() -> None:
    rows = [
        row("A", "A", stratum="easy"),
        row("A", "A", stratum="easy"),
        row("A", "B", stratum="hard"),
    ]
    strata = model_metrics(rows, bootstrap(3))["by_stratum"]
    assert strata["easy"]["accuracy"] == 1.0
    assert (strata["hard"]["num_prompts"], strata["hard"]["accuracy"]) == (1, 0.0)


def test_latency_percentiles_leave_out_refused_prompts() -> None:
    rows = [row("A", "A", latency_s=float(i)) for i in range(1, 101)]
    rows.append(row("A", "", latency_s=0.001, error="prompt too long"))
    figures = latencies(rows, bootstrap(101))
    # Linear interpolation between order statistics: 1 + 0.9 · 99.
    assert figures["latency_p50_s"] == pytest.approx(50.5)
    assert figures["latency_p90_s"] == pytest.approx(90.1)
    low, high = figures["latency_p90_s_ci95"]
    assert 80 < low < 90.1 < high < 100


def test_latency_that_was_not_recorded_is_none() -> None:
    rows = [row("A", "A"), row("A", "A", latency_s=None)]
    assert latencies(rows, bootstrap(2))["latency_p90_s"] is None


def test_transfer_ratio_is_paired() -> None:
    # Both models fail on the same half: whatever is drawn, the ratio stays 1.
    same = [row("A", "A" if i % 2 else "B", example_id=str(i)) for i in range(40)]
    ratio, ends = transfer_ratio(same, same, bootstrap(40))
    assert ratio == 1.0
    assert ends == [1.0, 1.0]
    # A student that is right on 30 of the 40 that the teacher has all right.
    teacher = [row("A", "A", example_id=str(i)) for i in range(40)]
    student = [row("A", "A" if i < 30 else "B", example_id=str(i)) for i in range(40)]
    ratio, ends = transfer_ratio(student, teacher, bootstrap(40))
    assert ratio == pytest.approx(0.75)
    assert ends is not None
    assert ends[0] < 0.75 < ends[1]


def test_no_transfer_ratio_against_a_teacher_that_is_never_right() -> None:
    wrong = [row("A", "B")] * 3
    assert transfer_ratio(wrong, wrong, bootstrap(3)) == (None, None)


def test_throughput_is_answers_over_the_whole_span() -> None:
    rows = [
        row("A", "A", started_s=0.0, latency_s=2.0),
        row("A", "A", started_s=0.5, latency_s=3.5),
        row("A", "", started_s=0.0, latency_s=9.0, error="refused"),
    ]
    assert requests_per_s(rows) == pytest.approx(2 / 4.0)


def test_intervals_are_the_same_for_the_same_seed() -> None:
    seconds = np.random.default_rng(0).random(50)
    first, again, other = (bootstrap(50, seed=seed).mean_interval(seconds) for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_a_quantiles_interval_is_numpys() -> None:
    resamples = bootstrap(30)
    seconds = np.random.default_rng(0).random(30)
    seconds[:3] = np.nan
    expected = np.nanquantile(seconds[resamples.indices_S_N], 0.9, axis=1)
    assert resamples.quantile_interval(seconds, 0.9) == pytest.approx(
        np.quantile(expected, [0.025, 0.975]).tolist()
    )


def test_the_interval_of_a_mean_has_the_width_of_the_normal_one() -> None:
    values = np.array([1.0] * 120 + [0.0] * 80)
    ends = bootstrap(200, samples=4000).mean_interval(values)
    assert ends is not None
    # ± 1.96 · sqrt(p (1 − p) / n); a resample moves in steps of 1/200.
    assert ends == pytest.approx([0.6 - 0.0679, 0.6 + 0.0679], abs=0.008)


def test_the_interval_covers_the_truth_as_often_as_it_says() -> None:
    truth, num_rows, trials = 0.8, 100, 300
    draws = np.random.default_rng(1).random((trials, num_rows)) < truth
    covered = 0
    for trial, outcomes in enumerate(draws):
        ends = bootstrap(num_rows, samples=400, seed=trial).mean_interval(outcomes.astype(float))
        assert ends is not None
        covered += ends[0] <= truth <= ends[1]
    # 95% nominal; the percentile bootstrap is a little short at n = 100, the binomial error of
    # 300 trials is 1.3%.
    assert 0.90 <= covered / trials <= 0.985
