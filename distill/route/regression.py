"""Logistic regression over a prompt's features, as the server's model has it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from cluster.difficulty import Calibration, Model
from cluster.prompt_features import BUCKETS, Features, settings

Floats = NDArray[np.float64]

STRENGTH = 3.0
"""scikit-learn's C, the inverse of the regularisation."""
COUNTS_SCALE = 0.5
"""Spread of a standardised count beside n-gram rows of length about one or two."""


LEAST_SPREAD = 1e-9
"""Of a count that says anything."""


def fit(rows: Sequence[Features], labels: NDArray[np.int64]) -> Model:
    """Fit the regression; scales and inverse document frequencies end up in the coefficients."""
    by = Scales.of(rows)
    coefficients, intercept = regression(by.table(rows), labels)
    of_counts = coefficients[: len(by.scale)] * by.scale
    return Model(
        features=settings(),
        intercept=float(intercept - of_counts @ by.mean),
        counts=[float(value) for value in of_counts],
        calibration=Calibration(slope=1.0, offset=0.0),
        buckets=[float(value) for value in coefficients[len(by.scale) :] * by.rare],
    )


@dataclass(frozen=True)
class Scales:
    """What the rows that are fitted to say about any row's numbers; their labels say nothing."""

    mean: Floats
    scale: Floats
    """Of the counts."""
    rare: Floats
    """Inverse document frequency of every bucket."""

    @classmethod
    def of(cls, rows: Sequence[Features]) -> Scales:
        """Read them off rows."""
        counts = np.array([row.counts for row in rows])
        spread = counts.std(axis=0)
        # The mean of equal numbers is rounded, so that their spread need not be nothing.
        scale = COUNTS_SCALE / np.where(spread > LEAST_SPREAD, spread, np.inf)
        # What stands in every prompt says nothing; smoothed as scikit-learn's TfidfTransformer is.
        seen = np.bincount(np.concatenate([row.buckets for row in rows]), minlength=BUCKETS)
        return cls(counts.mean(axis=0), scale, np.log((1 + len(rows)) / (1 + seen)))

    def table(self, rows: Sequence[Features]) -> Any:
        """Return rows as scipy's CSR [N, counts + buckets]."""
        from scipy.sparse import csr_matrix, hstack

        counts = np.array([row.counts for row in rows])
        starts = np.cumsum([0, *(len(row.buckets) for row in rows)])
        places = np.concatenate([row.buckets for row in rows])
        weights = np.concatenate([row.weights for row in rows]) * self.rare[places]
        grams = csr_matrix((weights, places, starts), shape=(len(rows), BUCKETS))
        return hstack([csr_matrix((counts - self.mean) * self.scale), grams], format="csr")


def regression(table: Any, labels: NDArray[np.int64]) -> tuple[Floats, float]:
    """Return coefficients and intercept of the logistic regression."""
    from sklearn.linear_model import LogisticRegression

    found = LogisticRegression(C=STRENGTH, max_iter=2000).fit(table, labels)
    return found.coef_[0], float(found.intercept_[0])
