"""Learn who is wrong about what: a logistic regression, calibrated on folds it has not seen."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from cluster.difficulty import Calibration, Model, Scorer, calibrated
from cluster.prompt_features import BUCKETS, Features, features_of, settings

Floats = NDArray[np.float64]

LEAST_OF_EACH = 8
"""Fewest prompts answered wrongly, and rightly: fewer say nothing about others."""
MOST_FOLDS = 10
STRENGTH = 3.0
"""scikit-learn's C, the inverse of the regularisation."""
COUNTS_SCALE = 0.5
"""Spread of a standardised count beside n-gram rows of length about one or two."""


LEAST_SPREAD = 1e-9
"""Of a count that says anything."""


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
    )


def fit(rows: Sequence[Features], labels: NDArray[np.int64]) -> Model:
    """Fit the regression; scales and inverse document frequencies end up in the coefficients."""
    from scipy.sparse import csr_matrix, hstack
    from sklearn.linear_model import LogisticRegression

    counts = np.array([row.counts for row in rows])
    mean, spread = counts.mean(axis=0), counts.std(axis=0)
    # The mean of equal numbers is rounded, so that their spread need not be nothing.
    scale = COUNTS_SCALE / np.where(spread > LEAST_SPREAD, spread, np.inf)
    starts = np.cumsum([0, *(len(row.buckets) for row in rows)])
    places = np.concatenate([row.buckets for row in rows])
    weights = np.concatenate([row.weights for row in rows])
    # What stands in every prompt says nothing; smoothed as scikit-learn's TfidfTransformer does.
    seen = np.bincount(places, minlength=BUCKETS)
    rare = np.log((1 + len(rows)) / (1 + seen))
    grams = csr_matrix((weights * rare[places], places, starts), shape=(len(rows), BUCKETS))
    table = hstack([csr_matrix((counts - mean) * scale), grams], format="csr")
    found = LogisticRegression(C=STRENGTH, max_iter=2000).fit(table, labels)
    of_counts = found.coef_[0, : counts.shape[1]] * scale
    return Model(
        features=settings(),
        intercept=float(found.intercept_[0] - of_counts @ mean),
        counts=[float(value) for value in of_counts],
        calibration=Calibration(slope=1.0, offset=0.0),
        buckets=[float(value) for value in found.coef_[0, counts.shape[1] :] * rare],
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
