"""Could chance rank the wrong answers as well? A permutation test of a whole cross-validation.

Folds share what they are fitted to, so the ranking's interval alone is too narrow: workloads
without any relation passed it 6 to 10 times in a hundred, in place of 2.5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cluster.prompt_features import Features
from distill.route.regression import STRENGTH, Scales

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

NUM_FOLDS = 5
PERMUTATIONS = 999
LEVEL = 0.025
"""As often as a 95% interval lies above what is true."""
MOST_EXTRA = 1000
"""Logged labels that take part: a fold solves a system of as many equations as it has rows."""


def p_value(
    rows: Sequence[Features],
    labels: Ints,
    *,
    extra: Sequence[Features],
    extra_labels: Ints,
    seed: int,
) -> float:
    """Return how often labels that were shuffled within the folds are ranked as well, one-sided.

    The model is one Newton step of the regression from the constant: linear in the labels, so that
    a thousand shuffles are one product of matrices.
    """
    from sklearn.model_selection import StratifiedKFold

    rng = np.random.default_rng(seed)
    # Column 0 are the labels as they are.
    labels_N_P = np.repeat(labels[:, None], PERMUTATIONS + 1, axis=1).astype(np.float64)
    scores_N_P = np.zeros(labels_N_P.shape)
    splits = list(StratifiedKFold(NUM_FOLDS, shuffle=True, random_state=seed).split(labels, labels))
    for _, tested in splits:
        labels_N_P[tested, 1:] = rng.permuted(labels_N_P[tested, 1:], axis=0)
    for fitted, tested in splits:
        known = [*(rows[place] for place in fitted), *extra[:MOST_EXTRA]]
        also = np.repeat(extra_labels[:MOST_EXTRA, None], PERMUTATIONS + 1, axis=1)
        scores_N_P[tested] = _newton_step(
            known, np.concatenate([labels_N_P[fitted], also]), [rows[place] for place in tested]
        )
    areas_P = _areas(scores_N_P, labels_N_P)
    # Sums in another order differ in their last digits.
    as_well = int((areas_P[1:] >= areas_P[0] - 1e-9).sum())
    return (as_well + 1) / (PERMUTATIONS + 1)


def _newton_step(known: Sequence[Features], labels: Floats, tested: Sequence[Features]) -> Floats:
    """Return scores [tested, P] for labels [known, P], by the kernel form of ridge regression."""
    by = Scales.of(known)
    fitted = by.table(known)
    mean_P = labels.mean(axis=0)
    rate = float(mean_P[0])
    products = (fitted @ fitted.T).toarray()
    penalty = 1 / (STRENGTH * max(rate * (1 - rate), 1e-6))
    weights = np.linalg.solve(products + penalty * np.eye(len(known)), labels - mean_P)
    return np.asarray((by.table(tested) @ fitted.T).toarray() @ weights + mean_P)


def _areas(scores: Floats, labels: Floats) -> Floats:
    """Return the area under the ROC curve of each column, by ranks (Mann and Whitney 1947)."""
    from scipy.stats import rankdata

    num_wrong = labels[:, 0].sum()
    ranks = (rankdata(scores, axis=0) * labels).sum(axis=0)
    won = ranks - num_wrong * (num_wrong + 1) / 2
    return np.asarray(won / (num_wrong * (len(labels) - num_wrong)))
