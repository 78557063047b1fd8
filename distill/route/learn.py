"""Learn who is wrong about what: a logistic regression, calibrated on folds it has not seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.difficulty import Calibration, Model, Scorer, calibrated
from cluster.prompt_features import features_of
from distill.route.chance import p_value
from distill.route.regression import fit

Floats = NDArray[np.float64]

LEAST_OF_EACH = 8
"""Fewest prompts answered wrongly, and rightly: fewer say nothing about others."""
MOST_FOLDS = 10


@dataclass(frozen=True)
class Learned:
    """The model for the server, and what it would have said of prompts it was not fitted to."""

    model: Model
    scores: Floats
    """Of the held-out prompts, out of fold, before calibration: what ranks them."""
    probabilities: Floats
    """The same by the model's own calibration: what thresholds are compared with."""
    honest: Floats
    """With each fold calibrated by the others: what Brier score and ECE are read from."""
    folds: int
    p_value: float
    """That labels without any relation to the prompts are ranked as well."""


def learn(
    texts: Sequence[str], wrong: Sequence[bool], *, more: Sequence[tuple[str, bool]], seed: int
) -> Learned:
    """Learn P(wrong | text) from held-out prompts and, for fitting only, `more` labelled texts.

    At least `LEAST_OF_EACH` of both outcomes among the held-out ones. What is logged joins every
    fold's fitting and no fold's test: its outcomes are the checks', not the right answer's.
    """
    from sklearn.model_selection import StratifiedKFold

    labels = np.asarray(wrong, dtype=np.int64)
    assert min(labels.sum(), len(labels) - labels.sum()) >= LEAST_OF_EACH
    rows = [features_of(text) for text in texts]
    extra = [features_of(text) for text, _ in more]
    extra_labels = np.array([label for _, label in more], dtype=np.int64)
    folds = min(MOST_FOLDS, int(labels.sum()), int(len(labels) - labels.sum()))
    splits = StratifiedKFold(folds, shuffle=True, random_state=seed)
    raw = np.zeros(len(texts))
    fold_of = np.zeros(len(texts), dtype=np.int64)
    for fold, (fitted, tested) in enumerate(splits.split(raw, labels)):
        scorer = Scorer(
            fit(
                [*(rows[place] for place in fitted), *extra],
                np.concatenate([labels[fitted], extra_labels]),
            )
        )
        raw[tested] = [scorer.score(texts[place]) for place in tested]
        fold_of[tested] = fold
    calibration = platt(raw, labels)
    model = fit([*rows, *extra], np.concatenate([labels, extra_labels]))
    honest = np.zeros(len(texts))
    for fold in range(folds):
        inside = fold_of == fold
        by = platt(raw[~inside], labels[~inside])
        honest[inside] = [calibrated(value, by) for value in raw[inside]]
    return Learned(
        model=model.model_copy(update={"calibration": calibration}),
        scores=raw,
        probabilities=np.array([calibrated(value, calibration) for value in raw]),
        honest=honest,
        folds=folds,
        p_value=p_value(rows, labels, extra=extra, extra_labels=extra_labels, seed=seed),
    )


def platt(raw: Floats, labels: NDArray[np.int64]) -> Calibration:
    """Fit slope and offset to out-of-fold scores (Platt 1999, with his smoothed targets).

    A slope is never negative: scores that rank the wrong way round say nothing.
    """
    from scipy.optimize import minimize

    num_wrong = int(labels.sum())
    num_right = len(labels) - num_wrong
    high, low = (num_wrong + 1) / (num_wrong + 2), 1 / (num_right + 2)
    target = np.where(labels == 1, high, low)
    centre, spread = float(raw.mean()), float(raw.std()) or 1.0
    standard = (raw - centre) / spread

    def loss(values: Floats) -> tuple[float, Floats]:
        logits = values[0] * standard + values[1]
        off = 1 / (1 + np.exp(-np.clip(logits, -500, 500))) - target
        value = np.logaddexp(0, logits).sum() - target @ logits
        return float(value), np.array([off @ standard, off.sum()])

    start = np.array([0.0, math.log(num_wrong / num_right)])
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(0, None), (None, None)]).x
    slope = float(best[0]) / spread
    return Calibration(slope=slope, offset=float(best[1]) - slope * centre)
