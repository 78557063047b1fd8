"""One comparison each: of numbers, of categories, of embeddings. The statistics are scipy's.

Every comparison has a p-value (may chance explain it?) and a population stability index (how much
is it?), PSI = Σ (c − r) · ln(c ÷ r) over the shares r of the reference and c of what is current.
Without any drift PSI is about (bins − 1) · (1/N + 1/M) for samples of N and M (Yurdakul 2018), so
it decides nothing alone.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

LEAST_EXPECTED = 5.0
"""Expected count from which the chi-squared distribution holds (Cochran 1954)."""
RESAMPLES = 1999
HALF = 0.5


@dataclass
class Signal:
    """One thing that is compared, and what was found."""

    name: str
    kind: str
    """Whose test it is: `ks`, `chi2` or `permutation`."""
    num_reference: int
    num_current: int
    statistic: float | None = None
    """KS: largest difference of the distribution functions; chi2: χ²; permutation: distance of the
    two mean embeddings."""
    p_value: float | None = None
    p_adjusted: float | None = None
    """Corrected for the number of signals; filled in by `judge_signals`."""
    psi: float | None = None
    bins: list[dict[str, Any]] = field(default_factory=list)
    """`{"label", "reference", "current"}`: the shares that the PSI compares."""
    verdict: str = "not_enough_rows"
    """`none`, `moderate`, `major` or `not_enough_rows`."""


def compare_numbers(
    name: str, reference: Sequence[float], current: Sequence[float], *, bins: int
) -> Signal:
    """Two-sample Kolmogorov–Smirnov; the PSI's bins lie at the reference's quantiles."""
    signal = Signal(name, "ks", len(reference), len(current))
    if not reference or not current:
        return signal
    found = stats.ks_2samp(reference, current)
    signal.statistic, signal.p_value = float(found.statistic), float(found.pvalue)
    inner = np.unique(np.quantile(reference, np.linspace(0, 1, bins + 1)[1:-1]))
    labels = [
        f"{f'> {low:g}' if low is not None else ''}"
        f"{' and ' if low is not None and high is not None else ''}"
        f"{f'≤ {high:g}' if high is not None else ''}"
        for low, high in zip([None, *inner], [*inner, None], strict=True)
    ]
    counts = [
        np.bincount(np.searchsorted(inner, values, side="left"), minlength=len(labels))
        for values in (reference, current)
    ]
    _put_psi(signal, labels, *counts)
    return signal


def compare_categories(
    name: str, reference: Sequence[str], current: Sequence[str], *, seed: int
) -> Signal:
    """χ² of the table of counts, by Monte Carlo where expected counts are small."""
    signal = Signal(name, "chi2", len(reference), len(current))
    if not reference or not current:
        return signal
    tables = Counter(reference), Counter(current)
    labels = [label for label, _ in (tables[0] + tables[1]).most_common()]
    counts = np.array([[table[label] for label in labels] for table in tables])
    signal.statistic, signal.p_value = _chi2(counts, seed=seed)
    _put_psi(signal, labels, *counts)
    return signal


def compare_embeddings(
    name: str,
    reference: np.ndarray,
    current: np.ndarray,
    *,
    clusters: int,
    permutations: int,
    seed: int,
) -> Signal:
    """Distance of the means of (N, D) and (M, D) by permutation; PSI over k-means clusters.

    The clusters are those of both together, so that neither is nearer to its own by fitting.
    """
    from sklearn.cluster import KMeans

    signal = Signal(name, "permutation", len(reference), len(current))
    if min(len(reference), len(current)) < 2:
        return signal
    vectors = np.concatenate([reference, current]).astype(np.float32)
    everything = np.arange(len(vectors))

    def distance(one: np.ndarray, other: np.ndarray, axis: int = -1) -> Any:
        gap = vectors[one].mean(axis=-2) - vectors[other].mean(axis=-2)
        return np.linalg.norm(gap, axis=-1)

    found = stats.permutation_test(
        (everything[: len(reference)], everything[len(reference) :]),
        distance,
        vectorized=True,
        n_resamples=permutations,
        batch=8,
        alternative="greater",
        rng=np.random.default_rng(seed),
        axis=-1,
    )
    signal.statistic, signal.p_value = float(found.statistic), float(found.pvalue)
    wanted = min(clusters, len(np.unique(vectors, axis=0)))
    labels = KMeans(wanted, n_init="auto", random_state=seed).fit_predict(vectors)
    counts = [
        np.bincount(part, minlength=wanted)
        for part in (labels[: len(reference)], labels[len(reference) :])
    ]
    _put_psi(signal, [f"cluster {number + 1}" for number in range(wanted)], *counts)
    return signal


def judge_signals(
    signals: Sequence[Signal], *, min_rows: int, alpha: float, moderate: float, major: float
) -> None:
    """Correct the p-values of those with enough rows (Benjamini–Hochberg), and judge each."""
    enough = [
        s
        for s in signals
        if s.p_value is not None and min(s.num_reference, s.num_current) >= min_rows
    ]
    if not enough:
        return
    adjusted = stats.false_discovery_control([s.p_value for s in enough], method="bh")
    for signal, p_adjusted in zip(enough, adjusted, strict=True):
        signal.p_adjusted = float(p_adjusted)
        psi = signal.psi or 0.0
        changed = signal.p_adjusted <= alpha and psi >= moderate
        signal.verdict = ("major" if psi >= major else "moderate") if changed else "none"


def _chi2(counts: np.ndarray, *, seed: int) -> tuple[float, float]:
    """Return (χ², p) of a 2 × K table; one category cannot differ."""
    if counts.shape[1] < 2:
        return 0.0, 1.0
    expected = stats.contingency.expected_freq(counts)
    # The tables' margins stay as they are, which is Fisher's way of asking.
    method = (
        stats.MonteCarloMethod(n_resamples=RESAMPLES, rng=np.random.default_rng(seed))
        if expected.min() < LEAST_EXPECTED
        else None
    )
    found = stats.chi2_contingency(counts, correction=False, method=method)
    return float(found.statistic), float(found.pvalue)


def _put_psi(
    signal: Signal, labels: Sequence[str], reference: np.ndarray, current: np.ndarray
) -> None:
    shares = [counts / counts.sum() for counts in (reference, current)]
    signal.bins = [
        {"label": label, "reference": float(r), "current": float(c)}
        for label, r, c in zip(labels, *shares, strict=True)
    ]
    # Half a row more in each bin (Jeffreys): an empty one would make the index infinite.
    r, c = (counts + HALF for counts in (reference, current))
    signal.psi = float(stats.entropy(r, c) + stats.entropy(c, r))
