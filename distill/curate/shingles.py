"""Word n-grams of many texts as 64-bit hashes, in flat arrays: what similarity is measured on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

# Odd, so that multiplying by it modulo 2^64 loses nothing; the bits of the golden ratio.
FACTOR = np.uint64(0x9E3779B97F4A7C15)
NOT_WORD = r"[^\pL\pM\pN]+"
# Scripts that put no space between words: each character counts as one.
UNSPACED = r"([\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}])"

Texts: TypeAlias = Sequence[str] | pa.Array


@dataclass(frozen=True)
class Shingles:
    """The n-grams of N texts: those of text i are `hashes[offsets[i]:offsets[i + 1]]`."""

    hashes: np.ndarray
    """uint64, (T,), in reading order, repeats included."""
    offsets: np.ndarray
    """int64, (N + 1,)."""

    def __len__(self) -> int:
        """Return the number of texts."""
        return len(self.offsets) - 1

    def sets(self) -> Iterator[np.ndarray]:
        """Yield each text's distinct n-grams, sorted."""
        for start, end in zip(self.offsets[:-1], self.offsets[1:], strict=True):
            yield np.unique(self.hashes[start:end])


def shingles(texts: Texts, *, size: int, short: bool = True) -> Shingles:
    """Return the word n-grams of `texts`, `size` words each.

    Words are runs of letters, marks and digits, in lower case and NFKC; in scripts without spaces
    a character is a word. A text of fewer than `size` words is one shingle if `short`, else it has
    none; a text without words never has one. The same text has the same hashes in every process.
    Two n-grams share a hash with a chance near 2^-64, so sets of hashes stand for sets of n-grams.
    """
    words, offsets = _word_hashes(texts)
    lengths = np.diff(offsets)
    counts = np.where(lengths >= size, lengths - size + 1, np.minimum(lengths, int(short)))
    ends = np.concatenate([[0], np.cumsum(counts)])
    # Place of every n-gram's first word: its text's first word plus its number in the text.
    first = np.repeat(offsets[:-1] - ends[:-1], counts) + np.arange(ends[-1])
    last = np.repeat(offsets[1:], counts)
    padded = np.append(words, np.zeros(1, dtype=np.uint64))
    hashes = np.zeros(len(first), dtype=np.uint64)
    for place in range(size):
        # Past the end of a short text there is the padding, never the next text's word.
        at = np.where(first + place < last, first + place, len(words))
        hashes = hashes * FACTOR + padded[at]
    return Shingles(hashes, ends)


def plain_words(texts: Sequence[str]) -> list[list[str]]:
    """Return the words of each text, as `shingles` reads them."""
    spaced = _spaced(_lower(pa.array(texts, type=pa.large_string())))
    return [text.split() for text in spaced.to_pylist()]


def _word_hashes(texts: Texts) -> tuple[np.ndarray, np.ndarray]:
    """Return the words of all texts as uint64 (T,) and where each text begins, int64 (N + 1,)."""
    array = texts if isinstance(texts, pa.Array) else pa.array(texts, type=pa.large_string())
    pieces: Any = pc.utf8_split_whitespace(_lower(array))
    coded = pieces.flatten().dictionary_encode()
    codes = coded.indices.to_numpy()
    # Each different piece is taken apart once: most stand in the texts many times over.
    words, word_offsets = _piece_words(coded.dictionary)
    counts = np.diff(word_offsets)[codes]
    before = np.concatenate([[0], np.cumsum(counts)])
    places = np.repeat(word_offsets[codes] - before[:-1], counts) + np.arange(before[-1])
    offsets = pieces.offsets.to_numpy()
    return words[places], before[offsets - offsets[0]]


def _piece_words(pieces: pa.Array) -> tuple[np.ndarray, np.ndarray]:
    """Return the words inside pieces without white space, and where each piece's begin."""
    lists = pc.utf8_split_whitespace(_spaced(pieces))
    hashes, lengths = _hashes(lists.flatten())
    # Splitting leaves an empty word before, after, or instead of the words.
    before = np.concatenate([[0], np.cumsum(lengths > 0)])
    offsets = lists.offsets.to_numpy()
    return hashes[lengths > 0], before[offsets - offsets[0]]


def _lower(array: Any) -> Any:
    # Nearly all English text is ASCII, which is its own normal form.
    if not pc.all(pc.string_is_ascii(array), min_count=0).as_py():
        array = pc.utf8_normalize(array, form="NFKC")
    return pc.utf8_lower(array)


def _spaced(array: Any) -> Any:
    """Put spaces in place of what belongs to no word, and around what is a word by itself."""
    apart = pc.replace_substring_regex(array, pattern=UNSPACED, replacement=r" \1 ")
    return pc.replace_substring_regex(apart, pattern=NOT_WORD, replacement=" ")


def _hashes(words: Any) -> tuple[np.ndarray, np.ndarray]:
    """Return a 64-bit hash and the length in bytes of each word.

    A polynomial in `FACTOR` over the bytes, each byte standing for a fixed random number: all
    words at once, where a cryptographic hash would take a Python call a word.
    """
    column = words.cast(pa.large_string())
    ends = np.frombuffer(column.buffers()[1], dtype=np.int64)[column.offset :][: len(column) + 1]
    data = np.frombuffer(column.buffers()[2] or b"", dtype=np.uint8)[: ends[-1]]
    lengths = np.diff(ends)
    places = np.arange(ends[0], ends[-1]) - np.repeat(ends[:-1], lengths)
    powers = np.cumprod(np.full(lengths.max(initial=0) + 1, FACTOR))
    sums = np.concatenate([[np.uint64(0)], np.cumsum(BYTES[data[ends[0] :]] * powers[places])])
    starts = ends - ends[0]
    return mixed(sums[starts[1:]] - sums[starts[:-1]]), lengths


def mixed(values: np.ndarray) -> np.ndarray:
    """Spread every bit of uint64 values over all (splitmix64's last steps, Steele et al. 2014)."""
    values = (values ^ (values >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    values = (values ^ (values >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return values ^ (values >> np.uint64(31))


BYTES = mixed(np.arange(1, 257, dtype=np.uint64) * FACTOR)
