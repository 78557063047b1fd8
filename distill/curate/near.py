"""Near-duplicates: MinHash signatures, locality-sensitive hashing, exact Jaccard on what it finds.

MinHash: Broder 1997, "On the resemblance and containment of documents". Banding: Leskovec,
Rajaraman, Ullman, "Mining of Massive Datasets", 3.4. Hashing by rensa (Fast Similarity Sketching).

The work is split where the data is small. Workers turn texts into band keys, 8 bytes a text and
band; one process groups the keys by sorting, a band at a time, and compares only the texts that
share a key. Nothing else is held for a text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa

from distill.curate.config import NearDuplicatesConfig
from distill.curate.shingles import FACTOR, Texts, mixed, shingles

SEED = 42
CHUNK_TEXTS = 8192
CHUNK_PAIRS = 16384
# In a bucket of up to so many texts every pair is compared; in a larger one each text with the
# first and with the one before it, so that the work grows with the texts and not their square.
SMALL_BUCKET = 8
# No text has this key: it marks one without words, which is like no other.
NO_KEY = np.uint64(0)


@dataclass(frozen=True)
class Banding:
    """A signature cut into `bands` pieces of `rows` slots; who shares a piece is compared."""

    bands: int
    rows: int

    @property
    def midpoint(self) -> float:
        """Similarity near which the chance of being compared rises steeply: (1/bands)^(1/rows)."""
        return float((1 / self.bands) ** (1 / self.rows))

    def recall(self, similarity: float) -> float:
        """Chance that two texts of this Jaccard similarity are compared: 1 - (1 - s^rows)^bands."""
        return float(1 - (1 - similarity**self.rows) ** self.bands)


@dataclass(frozen=True)
class NearDuplicate:
    """A text that is too like an earlier one. Numbers are places in the texts given."""

    index: int
    kept: int
    """First text of its cluster, which stays."""
    similarity: float
    """Exact Jaccard similarity with `kept`; below the threshold when others link the two."""
    nearest: int
    """The most similar text of its cluster that it was compared with, earlier or later."""
    nearest_similarity: float
    """Exact Jaccard similarity with `nearest`, at least the threshold."""


def choose_banding(config: NearDuplicatesConfig) -> Banding:
    """Choose the most selective banding that still finds a pair at the threshold.

    Setting (1/bands)^(1/rows) to the threshold itself would find only about half of the pairs
    that lie right on it. So the midpoint is moved down as far as `min_recall` asks, and not
    further: exact comparison removes what should not have been found.
    """
    for rows in range(config.num_perm, 0, -1):
        banding = Banding(bands=config.num_perm // rows, rows=rows)
        if banding.recall(config.threshold) >= config.min_recall:
            return banding
    raise AssertionError("NearDuplicatesConfig checks that one row is enough")


def band_keys(texts: Texts, config: NearDuplicatesConfig) -> np.ndarray:
    """Return uint64 (N, bands): texts with the same key in a column are worth comparing.

    Pure, and the same in every process, so that texts can be shared out in any way.
    """
    banding = choose_banding(config)
    keys = np.empty((len(texts), banding.bands), dtype=np.uint64)
    for start in range(0, len(texts), CHUNK_TEXTS):
        part = texts[start : start + CHUNK_TEXTS]
        keys[start : start + len(part)] = _chunk_keys(part, config, banding=banding)
    return keys


def band_keys_on_ray(
    texts: Texts, config: NearDuplicatesConfig, *, tasks: int | None = None
) -> np.ndarray:
    """Like `band_keys`, a Ray task a chunk, at most `tasks` at once; the texts' order is kept."""
    import ray

    blocks = []
    for start in range(0, len(texts), CHUNK_TEXTS):
        part = texts[start : start + CHUNK_TEXTS]
        column = part if isinstance(part, pa.Array) else pa.array(part, type=pa.large_string())
        numbers = np.arange(start, start + len(part))
        blocks.append(pa.table({"index": numbers, "text": column}))
    keys = np.empty((len(texts), choose_banding(config).bands), dtype=np.uint64)
    if not blocks:
        return keys
    dataset = ray.data.from_arrow(blocks).map_batches(
        partial(_batch_keys, config=config),
        batch_size=None,
        batch_format="pyarrow",
        num_cpus=1,
        compute=ray.data.TaskPoolStrategy(size=tasks),
    )
    for batch in dataset.iter_batches(batch_size=None, batch_format="numpy", prefetch_batches=0):
        keys[batch["index"]] = np.stack(list(batch["keys"]))
    return keys


def near_duplicates(
    texts: Texts, config: NearDuplicatesConfig, *, keys: np.ndarray | None = None
) -> list[NearDuplicate]:
    """Return the texts that have an earlier near-duplicate, in order.

    `keys` is what `band_keys` returned for the texts; `None` computes it here. Pairs at or above
    the threshold are joined into clusters (union-find); the first text of each stays and is not in
    the result. So the result depends on the order of the texts, which must be a stable one.
    """
    if keys is None:
        keys = band_keys(texts, config)
    clusters = _Clusters(len(texts))
    for band in range(keys.shape[1]):
        for pairs in _candidate_pairs(np.ascontiguousarray(keys[:, band])):
            pairs = clusters.unjoined(pairs)
            similarities = jaccard(texts, pairs, shingle_words=config.shingle_words)
            found = similarities >= config.threshold
            clusters.join(pairs[found], similarities[found])
    return clusters.duplicates(texts, shingle_words=config.shingle_words)


def jaccard(texts: Texts, pairs: np.ndarray, *, shingle_words: int) -> np.ndarray:
    """Exact Jaccard similarity of the texts' shingle sets: pairs int64 (M, 2) → float64 (M,)."""
    members, places = np.unique(pairs, return_inverse=True)
    sets = list(shingles(_take(texts, members), size=shingle_words).sets())
    result = np.empty(len(pairs))
    for number, (a, b) in enumerate(places.reshape(-1, 2)):
        shared = len(np.intersect1d(sets[a], sets[b], assume_unique=True))
        result[number] = shared / ((len(sets[a]) + len(sets[b]) - shared) or 1)
    return result


class _Clusters:
    """Union-find over the texts; the smallest number of a cluster is its root."""

    def __init__(self, size: int):
        self._parent = np.arange(size)
        # The most similar text found for each one that is not the first of its cluster.
        self._nearest = np.full(size, -1)
        self._similarity = np.zeros(size)

    def unjoined(self, pairs: np.ndarray) -> np.ndarray:
        """Return the pairs whose texts are not in one cluster yet."""
        self._flatten()
        return pairs[self._parent[pairs[:, 0]] != self._parent[pairs[:, 1]]]

    def join(self, pairs: np.ndarray, similarities: np.ndarray) -> None:
        for (a, b), similarity in zip(pairs.tolist(), similarities.tolist(), strict=True):
            # Either may turn out not to be the first of the cluster.
            for one, other in ((a, b), (b, a)):
                if similarity > self._similarity[one]:
                    self._nearest[one], self._similarity[one] = other, similarity
            low, high = sorted((self._root(a), self._root(b)))
            self._parent[high] = low

    def duplicates(self, texts: Texts, *, shingle_words: int) -> list[NearDuplicate]:
        self._flatten()
        found = np.flatnonzero(self._parent != np.arange(len(self._parent)))
        result = []
        for start in range(0, len(found), CHUNK_PAIRS):
            part = found[start : start + CHUNK_PAIRS]
            kept = self._parent[part]
            similarities = self._similarity[part].copy()
            # Most were found with the first of their cluster; the others are compared with it now.
            other = self._nearest[part] != kept
            pairs = np.stack([part[other], kept[other]], axis=1)
            similarities[other] = jaccard(texts, pairs, shingle_words=shingle_words)
            result += [
                NearDuplicate(
                    int(index),
                    int(first),
                    float(similarity),
                    int(self._nearest[index]),
                    float(self._similarity[index]),
                )
                for index, first, similarity in zip(part, kept, similarities, strict=True)
            ]
        return result

    def _root(self, member: int) -> int:
        parent = self._parent
        while parent[member] != member:
            parent[member] = parent[parent[member]]
            member = int(parent[member])
        return member

    def _flatten(self) -> None:
        while not np.array_equal(above := self._parent[self._parent], self._parent):
            self._parent = above


def _chunk_keys(texts: Texts, config: NearDuplicatesConfig, *, banding: Banding) -> np.ndarray:
    from rensa import RMinHash

    grams = shingles(texts, size=config.shingle_words)
    matrix = RMinHash.digest_matrix_from_flat_token_hashes(
        grams.hashes, grams.offsets.astype(np.uint64), config.num_perm, SEED
    )
    signatures = np.array(matrix.to_rows(), dtype=np.uint64).reshape(len(grams), config.num_perm)
    used = signatures[:, : banding.bands * banding.rows]
    slots = used.reshape(len(grams), banding.bands, banding.rows)
    keys = np.zeros((len(grams), banding.bands), dtype=np.uint64)
    for row in range(banding.rows):
        keys = mixed(keys * FACTOR + slots[:, :, row])
    keys[keys == NO_KEY] = np.uint64(1)
    keys[np.diff(grams.offsets) == 0] = NO_KEY
    return keys


def _batch_keys(batch: pa.Table, config: NearDuplicatesConfig) -> dict[str, Any]:
    return {
        "index": batch["index"].to_numpy(),
        "keys": band_keys(batch["text"].combine_chunks(), config),
    }


def _candidate_pairs(keys: np.ndarray) -> Iterator[np.ndarray]:
    """Yield the pairs (a, b), a < b, of texts that share one band's key, int64 (M, 2)."""
    order = np.argsort(keys, kind="stable")
    order = order[keys[order] != NO_KEY]
    ordered = keys[order]
    is_first = np.ones(len(ordered), dtype=bool)
    is_first[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(is_first)
    sizes = np.diff(np.append(starts, len(ordered)))
    starts, sizes = starts[sizes > 1], sizes[sizes > 1]
    for size in np.unique(sizes):
        first, second = _places(int(size))
        buckets = starts[sizes == size]
        step = max(1, CHUNK_PAIRS // len(first))
        for begin in range(0, len(buckets), step):
            at = buckets[begin : begin + step, None]
            pairs = np.stack([order[at + first].ravel(), order[at + second].ravel()], axis=1)
            for cut in range(0, len(pairs), CHUNK_PAIRS):
                yield pairs[cut : cut + CHUNK_PAIRS]


def _places(size: int) -> tuple[np.ndarray, np.ndarray]:
    """Which members of a bucket are compared with which."""
    if size <= SMALL_BUCKET:
        return np.triu_indices(size, k=1)
    later = np.arange(1, size)
    with_first = np.stack([np.zeros_like(later), later])
    with_previous = np.stack([later[1:] - 1, later[1:]])
    first, second = np.concatenate([with_first, with_previous], axis=1)
    return first, second


def _take(texts: Texts, members: Sequence[int] | np.ndarray) -> Texts:
    if isinstance(texts, pa.Array):
        return texts.take(pa.array(members, type=pa.int64()))
    return [texts[int(i)] for i in members]
