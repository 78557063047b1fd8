"""How varied a dataset is: semantic duplicates, clusters, a picture, and what there is few of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, product
from math import ceil
from typing import Any, Literal

import numpy as np

from distill.curate.balance import cap, group_of
from distill.curate.config import DiversityConfig
from distill.curate.shingles import plain_words
from distill.curate.tokens import LengthCounter

BLOCK = 256
LEAST_CLUSTERS = 3
# Fewer than half of what an even share would be counts as too little.
FEW = 0.5
# In smaller pairs of groups an empty one is often chance.
LEAST_PAIR = 10
TERMS = 6
TERMS_FROM = 200

Row = dict[str, Any]
Verdict = Literal["GOOD", "RISKY"]


@dataclass(frozen=True)
class SemanticDuplicate:
    """A text too like an earlier one that stays; numbers are places in the vectors given."""

    index: int
    kept: int
    cosine: float


@dataclass(frozen=True)
class Cluster:
    """One cluster of k-means."""

    name: str
    """`1` is the largest."""
    size: int
    share: float
    kept: int
    """Records left after the cap."""
    terms: list[str]
    """Words that stand in it more often than elsewhere."""
    example_id: str
    """The record nearest its centre."""


@dataclass(frozen=True)
class Diversity:
    """Clusters, verdict and picture of N records."""

    clusters: list[Cluster]
    labels: np.ndarray
    """int64, (N,): place of each record's cluster in `clusters`."""
    coordinates: np.ndarray
    """float64, (N, 2): the first two principal components."""
    explained: list[float]
    """Share of the variance in each of the two."""
    verdict: Verdict
    reason: str
    keep: list[bool]
    """Which records stay when the dominant cluster is capped."""
    note: str
    """Why the cap could not be met, or empty."""


def semantic_duplicates(vectors: np.ndarray, *, threshold: float) -> list[SemanticDuplicate]:
    """Return the rows whose cosine similarity with an earlier row that stays is above `threshold`.

    `vectors` is float32 (N, D) with rows of length one. A row is only compared with rows that
    stay, so no chain of small steps removes what is unlike everything kept. The work grows with
    N²: 50,000 rows of 64 take some ten seconds on one core.
    """
    stays = np.ones(len(vectors), dtype=bool)
    found = []
    for start in range(0, len(vectors), BLOCK):
        end = min(start + BLOCK, len(vectors))
        cosines = vectors[start:end] @ vectors[:end].T
        for place in np.flatnonzero((np.tril(cosines, start - 1) > threshold).any(axis=1)):
            index = start + int(place)
            likes = np.flatnonzero((cosines[place, :index] > threshold) & stays[:index])
            if len(likes):
                nearest = int(likes[np.argmax(cosines[place, likes])])
                stays[index] = False
                found.append(SemanticDuplicate(index, nearest, float(cosines[place, nearest])))
    return found


def diversity(
    vectors: np.ndarray, config: DiversityConfig, *, keys: Sequence[str], texts: Sequence[str]
) -> Diversity:
    """Cluster records, judge how evenly they spread, and cap the dominant cluster.

    `vectors` is float32 (N, D); `keys` (example ids) and `texts` have N entries. About one cluster
    per `examples_per_cluster` records, three to `max_clusters`. The verdict is that of the records
    given, before the cap.
    """
    labels = _clustered(vectors, config)
    sizes = np.bincount(labels, minlength=1)
    capped = cap([str(n) for n in labels], keys=keys, max_share=config.max_share)
    clusters = [
        Cluster(
            name=str(number + 1),
            size=int(size),
            share=float(size / len(vectors)),
            kept=capped.groups[str(number)][1],
            terms=_terms(number, labels, texts),
            example_id=keys[_central(number, labels, vectors)],
        )
        for number, size in enumerate(sizes)
        if size
    ]
    largest = max((cluster.share for cluster in clusters), default=1.0)
    risky = largest > config.risky_share
    reason = (
        f"the largest of {len(clusters)} clusters holds {largest:.0%} of the records, "
        f"{'above' if risky else 'at most'} {config.risky_share:.0%}"
    )
    coordinates, explained = _principal(vectors)
    return Diversity(
        clusters,
        labels,
        coordinates,
        explained,
        "RISKY" if risky else "GOOD",
        reason if clusters else "there are no records",
        capped.keep,
        capped.note,
    )


def under_represented(
    kept: Sequence[Row], given: Sequence[Row], by: Sequence[str], *, counter: LengthCounter
) -> list[dict[str, Any]]:
    """List the groups, and pairs of groups, with under half of an even share of the kept records.

    `given` are the records before curation: a group that lost all of them is listed with 0, and so
    is a pair of known groups that never stood together, where an even share is `LEAST_PAIR` records
    or more. Each entry is `{by, group, count, wanted,
    missing}`: `missing` records make `wanted`, the even share. The emptiest come first.
    """
    found = []
    for names in [*((name,) for name in by), *combinations(by, 2)]:
        counts = Counter(_groups(row, names, counter) for row in kept)
        seen = [sorted({group_of(row, name, counter=counter) for row in given}) for name in names]
        wholes = list(product(*seen))
        wanted = len(kept) / len(wholes) if wholes else 0.0
        if len(names) == 2 and wanted < LEAST_PAIR:
            continue
        found += [
            {
                "by": " × ".join(names),
                "group": ", ".join(whole),
                "count": counts[whole],
                "wanted": ceil(wanted),
                "missing": ceil(wanted) - counts[whole],
            }
            for whole in wholes
            if counts[whole] < FEW * wanted
        ]
    return sorted(found, key=lambda entry: (entry["count"] / entry["wanted"], entry["by"]))


def num_clusters(num: int, config: DiversityConfig) -> int:
    """About one cluster per `examples_per_cluster` records, within the limits."""
    return min(max(LEAST_CLUSTERS, num // config.examples_per_cluster), config.max_clusters, num)


def _clustered(vectors: np.ndarray, config: DiversityConfig) -> np.ndarray:
    """Return cluster numbers int64 (N,), 0 the largest."""
    from sklearn.cluster import KMeans

    # Fewer different rows than clusters would leave some empty.
    wanted = min(num_clusters(len(vectors), config), len(np.unique(vectors, axis=0)))
    if wanted < 2:
        return np.zeros(len(vectors), dtype=np.int64)
    raw = KMeans(wanted, n_init=10, random_state=config.seed).fit_predict(vectors)
    order = np.argsort(-np.bincount(raw, minlength=wanted), kind="stable")
    rank = np.empty(wanted, dtype=np.int64)
    rank[order] = np.arange(wanted)
    ranked: np.ndarray = rank[raw]
    return ranked


def _principal(vectors: np.ndarray) -> tuple[np.ndarray, list[float]]:
    """Return the first two principal components of (N, D), (N, 2), and their share of variance."""
    from sklearn.decomposition import PCA

    size = min(2, *vectors.shape)
    if size < 1 or not vectors.var(axis=0).any():
        return np.zeros((len(vectors), 2)), [0.0, 0.0]
    pca = PCA(size, random_state=0)
    found = pca.fit_transform(vectors.astype(np.float64))
    coordinates = np.zeros((len(vectors), 2))
    coordinates[:, :size] = found
    return coordinates, [*map(float, pca.explained_variance_ratio_), 0.0][:2]


def _central(number: int, labels: np.ndarray, vectors: np.ndarray) -> int:
    members = np.flatnonzero(labels == number)
    distances = ((vectors[members] - vectors[members].mean(axis=0)) ** 2).sum(axis=1)
    return int(members[np.argmin(distances)])


def _terms(number: int, labels: np.ndarray, texts: Sequence[str]) -> list[str]:
    """Words by how much larger their share of texts is inside the cluster than outside."""
    shares = []
    for inside in (True, False):
        members = np.flatnonzero((labels == number) == inside)
        # Evenly spaced, so that the first records do not speak for all.
        looked_at = members[:: max(1, len(members) // TERMS_FROM)]
        words = plain_words([texts[i] for i in looked_at])
        counts = Counter(word for each in words for word in set(each))
        shares.append({word: count / len(looked_at) for word, count in counts.items()})
    within, without = shares
    gains = {word: share - without.get(word, 0.0) for word, share in within.items()}
    return sorted((w for w in gains if gains[w] > 0), key=lambda w: (-gains[w], w))[:TERMS]


def _groups(row: Row, names: Sequence[str], counter: LengthCounter) -> tuple[str, ...]:
    return tuple(group_of(row, name, counter=counter) for name in names)
