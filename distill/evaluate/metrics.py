"""Metrics over scored predictions. Pure numpy; every interval is a 95% percentile bootstrap.

Rows are dictionaries of `distill.records.PREDICTION`. The bootstrap (Efron 1979) draws whole
prompts, the same ones for every metric and for every model, so that ratios are paired.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Row = dict[str, Any]

CONFIDENCE = 0.95
QUANTILES = {"latency_p50_s": 0.50, "latency_p90_s": 0.90, "latency_p99_s": 0.99}
MAX_CLASSES = 40
NO_LABEL = "(invalid)"


class Bootstrap:
    """Resamples of `num_rows` rows: `weights[s, i]` says how often resample s drew row i."""

    def __init__(self, num_rows: int, *, samples: int, seed: int):
        """Draw the resamples; equal arguments give equal resamples."""
        self.indices_S_N = np.random.default_rng(seed).integers(num_rows, size=(samples, num_rows))
        offsets = np.arange(samples)[:, None] * num_rows
        counts = np.bincount((self.indices_S_N + offsets).ravel(), minlength=samples * num_rows)
        self.weights_S_N: Floats = counts.reshape(samples, num_rows).astype(np.float64)

    def sums(self, values: Floats) -> Floats:
        """Sum of `values` [N] or [N, K] over each resample: [S] or [S, K]."""
        return np.asarray(self.weights_S_N @ values)

    def mean_interval(self, values: Floats, *, where: Floats | None = None) -> list[float] | None:
        """Interval of a mean, over the rows where `where` is 1."""
        mask = np.ones(len(values)) if where is None else where
        return interval(_ratio(self.sums(values * mask), self.sums(mask)))

    def quantile_interval(self, values: Floats, quantile: float) -> list[float] | None:
        """Interval of a quantile, linear between neighbours; rows that are NaN do not count."""
        drawn_S_N = np.sort(values[self.indices_S_N], axis=1)  # NaN last
        counts_S = np.isfinite(drawn_S_N).sum(axis=1)
        place_S = quantile * np.maximum(counts_S - 1, 0)
        below_S = np.floor(place_S).astype(int)
        above_S = np.ceil(place_S).astype(int)
        every = np.arange(len(drawn_S_N))
        low_S, high_S = drawn_S_N[every, below_S], drawn_S_N[every, above_S]
        return interval(low_S + (place_S - below_S) * (high_S - low_S))


def interval(statistics: Floats) -> list[float] | None:
    """`[low, high]` of a bootstrapped statistic; resamples in which it is undefined are left out.

    Where every resample agrees (0 or all of n answers valid) the ends coincide although the true
    share is not known exactly; by the rule of three it may still differ by 3/n.
    """
    defined = statistics[np.isfinite(statistics)]
    if not defined.size:
        return None
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(defined, [tail, 1 - tail])
    return [float(low), float(high)]


def model_metrics(rows: Sequence[Row], bootstrap: Bootstrap) -> dict[str, Any]:
    """All figures of one model; each with its interval under `<name>_ci95` where it has one."""
    valid = _column(rows, "valid")
    correct = _column(rows, "correct")
    figures: dict[str, Any] = {
        "schema_valid": float(valid.mean()),
        "schema_valid_ci95": bootstrap.mean_interval(valid),
        "accuracy": float(correct.mean()),
        "accuracy_ci95": bootstrap.mean_interval(correct),
    }
    figures |= classification(rows, bootstrap)
    figures |= latencies(rows, bootstrap)
    figures["by_stratum"] = by_stratum(rows, bootstrap)
    figures["tokens"] = {
        name: float(_column(rows, name).mean()) for name in ("prompt_tokens", "completion_tokens")
    }
    figures["errors"] = sum(bool(row["error"]) for row in rows)
    return figures


def classification(rows: Sequence[Row], bootstrap: Bootstrap) -> dict[str, Any]:
    """`macro_f1`, `per_class` and `confusion` over the classes that occur among the right labels.

    F1 of a class is 2·TP ÷ (predicted + expected); macro-F1 is the plain mean over classes. An
    invalid answer predicts no class. Without classes (no label, or more than 40: free text) the
    figures are `None`.
    """
    expected = [str(row["expected"]) for row in rows]
    classes = sorted(set(expected) - {""})
    if not classes or len(classes) > MAX_CLASSES:
        return {"macro_f1": None, "macro_f1_ci95": None, "per_class": None, "confusion": None}
    predicted = [str(row["label"]) if row["valid"] else "" for row in rows]
    expected_N_C = _one_hot(expected, classes)
    predicted_N_C = _one_hot(predicted, classes)
    hits_N_C = expected_N_C * predicted_N_C
    correct = _column(rows, "correct")
    f1 = _f1(hits_N_C.sum(0), predicted_N_C.sum(0), expected_N_C.sum(0))
    f1_S_C = _f1(
        bootstrap.sums(hits_N_C), bootstrap.sums(predicted_N_C), bootstrap.sums(expected_N_C)
    )
    per_class = {}
    for k, name in enumerate(classes):
        support = expected_N_C[:, k]
        per_class[name] = {
            "num_prompts": int(support.sum()),
            "accuracy": float(correct @ support / support.sum()),
            "accuracy_ci95": bootstrap.mean_interval(correct, where=support),
            "precision": _number(_ratio(hits_N_C[:, k].sum(), predicted_N_C[:, k].sum())),
            "recall": float(hits_N_C[:, k].sum() / support.sum()),
            "f1": float(f1[k]),
            "f1_ci95": interval(f1_S_C[:, k]),
        }
    with np.errstate(invalid="ignore"):
        # A class that a resample did not draw at all has no F1 there.
        macro_S = np.nansum(f1_S_C, axis=1) / np.isfinite(f1_S_C).sum(axis=1)
    return {
        "macro_f1": float(f1.mean()),
        "macro_f1_ci95": interval(macro_S),
        "per_class": per_class,
        "confusion": confusion(expected, predicted, classes),
    }


def confusion(
    expected: Sequence[str], predicted: Sequence[str], classes: Sequence[str]
) -> dict[str, Any]:
    """Counts: `matrix[i][j]` prompts of class `rows[i]` were answered with `columns[j]`.

    The columns are the classes, then other labels the model used, then `(invalid)`.
    """
    others = sorted(set(predicted) - set(classes) - {""})
    columns = [*classes, *others, NO_LABEL]
    place = {name: j for j, name in enumerate(columns)}
    matrix = np.zeros((len(classes), len(columns)), dtype=int)
    for right, answer in zip(expected, predicted, strict=True):
        if right:
            matrix[classes.index(right), place[answer or NO_LABEL]] += 1
    return {"rows": list(classes), "columns": columns, "matrix": matrix.tolist()}


def latencies(rows: Sequence[Row], bootstrap: Bootstrap) -> dict[str, Any]:
    """Latency percentiles of the answered prompts, seconds; `None` where one was not measured."""
    answered = [row for row in rows if not row["error"]]
    measured = bool(answered) and all(row["latency_s"] for row in answered)
    seconds = np.array([np.nan if row["error"] else row["latency_s"] or np.nan for row in rows])
    figures: dict[str, Any] = {}
    for name, quantile in QUANTILES.items():
        figures[name] = float(np.nanquantile(seconds, quantile)) if measured else None
        figures[f"{name}_ci95"] = (
            bootstrap.quantile_interval(seconds, quantile) if measured else None
        )
    return figures


def by_stratum(rows: Sequence[Row], bootstrap: Bootstrap) -> dict[str, dict[str, Any]]:
    """Schema-valid share and accuracy of every stratum."""
    valid, correct = _column(rows, "valid"), _column(rows, "correct")
    strata = [str(row["stratum"]) for row in rows]
    figures: dict[str, dict[str, Any]] = {}
    for name in sorted(set(strata) - {""}):
        inside = np.array([stratum == name for stratum in strata], dtype=np.float64)
        figures[name] = {
            "num_prompts": int(inside.sum()),
            "schema_valid": float(valid @ inside / inside.sum()),
            "accuracy": float(correct @ inside / inside.sum()),
            "accuracy_ci95": bootstrap.mean_interval(correct, where=inside),
        }
    return figures


def transfer_ratio(
    student: Sequence[Row], teacher: Sequence[Row], bootstrap: Bootstrap
) -> tuple[float | None, list[float] | None]:
    """Student's accuracy ÷ teacher's, and its interval over the same prompts for both.

    `None` when the teacher got nothing right. Rows must be of the same prompts in the same order.
    """
    assert [r["example_id"] for r in student] == [r["example_id"] for r in teacher]
    ours, theirs = _column(student, "correct"), _column(teacher, "correct")
    if not theirs.any():
        return None, None
    ratio_S = _ratio(bootstrap.sums(ours), bootstrap.sums(theirs))
    return float(ours.sum() / theirs.sum()), interval(ratio_S)


def requests_per_s(rows: Sequence[Row]) -> float:
    """Answered requests ÷ seconds from the first one's start to the last one's end."""
    answered = [row for row in rows if not row["error"]]
    if not answered:
        return 0.0
    return len(answered) / max(row["started_s"] + row["latency_s"] for row in answered)


def _column(rows: Sequence[Row], name: str) -> Floats:
    return np.array([float(row[name] or 0.0) for row in rows], dtype=np.float64)


def _one_hot(labels: Sequence[str], classes: Sequence[str]) -> Floats:
    return (np.array(labels)[:, None] == np.array(classes)[None, :]).astype(np.float64)


def _f1(hits: Floats, predicted: Floats, expected: Floats) -> Floats:
    return _ratio(2 * hits, predicted + expected)


def _ratio(numerator: Any, denominator: Any) -> Floats:
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(np.true_divide(numerator, denominator))


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None
