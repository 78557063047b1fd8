"""Word n-grams that training records share with evaluation prompts and references."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import DataError
from distill.curate.config import ContaminationConfig
from distill.curate.shingles import Shingles, plain_words, shingles
from distill.curate.text import completion_text, prompt_text
from distill.jsonl import read_jsonl

CHUNK_TEXTS = 8192

Row = dict[str, Any]


@dataclass(frozen=True)
class EvaluationText:
    """A text that no training record may repeat."""

    source: str
    """Name of the set, such as `test` or a file."""
    name: str
    """The `example_id`, or the line of a file."""
    part: str
    """`prompt`, `reference` or `text`."""
    text: str


@dataclass(frozen=True)
class Overlap:
    """What a training record shares with the evaluation sets."""

    example_id: str
    num_shared: int
    """Distinct n-grams of the record that stand in an evaluation set."""
    share: float
    """The same as a share of the record's n-grams."""
    source: str
    name: str
    part: str
    """Where the first shared n-gram stands."""
    words: str
    """The first shared n-gram."""

    @property
    def detail(self) -> str:
        """One sentence for `rejected/`."""
        return (
            f"{self.num_shared} n-gram(s), {self.share:.0%} of the record's, stand in "
            f"{self.source} ({self.part} of {self.name}): {self.words!r}"
        )


def evaluation_texts(
    rows: Sequence[Row], *, source: str, answers: dict[str, str] | None = None
) -> Iterator[EvaluationText]:
    """Yield prompt and reference of evaluation rows (`records.PROMPT`).

    A prompt without a reference is judged by the teacher's answer: `answers`, by `example_id`.
    """
    for row in rows:
        name = row["example_id"]
        yield EvaluationText(source, name, "prompt", prompt_text(row))
        if row["reference"]:
            reference = " ".join(_strings(json.loads(row["reference"])))
        else:
            reference = (answers or {}).get(name, "")
        yield EvaluationText(source, name, "reference", reference)


def evaluation_file(path: str | Path) -> Iterator[EvaluationText]:
    """Yield every text of a JSONL file's lines; DataError if it is missing or broken."""
    file = Path(path).expanduser()
    if not file.is_file():
        raise DataError(
            f"{file}: no such file; curate.contamination.files names it. Give the path of a JSONL "
            "file, one object a line."
        )
    for number, row in enumerate(read_jsonl(file), start=1):
        for text in _strings(row):
            yield EvaluationText(file.name, f"record {number}", "text", text)


def find_overlaps(
    records: Sequence[Row], against: Sequence[EvaluationText], config: ContaminationConfig
) -> list[Overlap]:
    """Return the records that share more of their n-grams than `min_share`, in their order."""
    known, owner = _known(against, config)
    totals = np.zeros(len(records), dtype=np.int64)
    members: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
    shared: list[np.ndarray] = [np.empty(0, dtype=np.int64)]
    for start in range(0, len(records) if len(known) else 0, CHUNK_TEXTS):
        part = records[start : start + CHUNK_TEXTS]
        # Prompt and completion apart: no n-gram reaches over from the one to the other.
        texts = [text for row in part for text in (prompt_text(row), completion_text(row))]
        for place, hashes in enumerate(shingles(texts, size=config.words, short=False).sets()):
            index = start + place // 2
            totals[index] += len(hashes)
            at = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
            at = at[known[at] == hashes]
            members.append(np.full(len(at), index))
            shared.append(at)
    pairs = np.unique(np.stack([np.concatenate(members), np.concatenate(shared)], axis=1), axis=0)
    # What stands in very many records is the template's wording.
    common = np.bincount(pairs[:, 1], minlength=len(known)) > config.max_records
    pairs = pairs[~common[pairs[:, 1]]]
    if not len(pairs):
        return []
    found, starts = np.unique(pairs[:, 0], return_index=True)
    texts = [t for i in found for t in (prompt_text(records[i]), completion_text(records[i]))]
    in_order, words = shingles(texts, size=config.words, short=False), plain_words(texts)
    overlaps = []
    for number, (index, grams) in enumerate(
        zip(found, np.split(pairs[:, 1], starts[1:]), strict=True)
    ):
        text, place, gram = _first(in_order, 2 * number, known[grams])
        entry = against[int(owner[np.searchsorted(known, gram)])]
        overlaps.append(
            Overlap(
                records[index]["example_id"],
                len(grams),
                len(grams) / int(totals[index]),
                entry.source,
                entry.name,
                entry.part,
                " ".join(words[text][place : place + config.words]),
            )
        )
    return [overlap for overlap in overlaps if overlap.share > config.min_share]


def overlap_report(
    overlaps: Sequence[Overlap],
    *,
    num_records: int,
    against: Sequence[EvaluationText],
    config: ContaminationConfig,
) -> dict[str, Any]:
    """Return what the dataset card shows: counts by source and part, and every overlap."""
    grams = shingles([entry.text for entry in against], size=config.words, short=False)
    is_compared = np.diff(grams.offsets) > 0
    compared = Counter(
        f"{entry.source}: {entry.part}"
        for entry, long in zip(against, is_compared, strict=True)
        if long
    )
    return {
        "words": config.words,
        "action": config.action,
        "num_records": num_records,
        "num_contaminated": len(overlaps),
        "num_evaluation_texts": dict(compared),
        "num_too_short": len(against) - sum(compared.values()),
        "overlaps": [asdict(overlap) for overlap in overlaps],
    }


def _known(
    against: Sequence[EvaluationText], config: ContaminationConfig
) -> tuple[np.ndarray, np.ndarray]:
    """Return the evaluation sets' distinct n-grams, sorted, and the text each first stands in."""
    grams = shingles([entry.text for entry in against], size=config.words, short=False)
    owners = np.repeat(np.arange(len(against)), np.diff(grams.offsets))
    known, first = np.unique(grams.hashes, return_index=True)
    return known, owners[first]


def _first(grams: Shingles, text: int, shared: np.ndarray) -> tuple[int, int, np.uint64]:
    """Return text, place and hash of the first of `shared` in `text` or the one after it."""
    for number in (text, text + 1):
        hashes = grams.hashes[grams.offsets[number] : grams.offsets[number + 1]]
        places = np.flatnonzero(np.isin(hashes, shared))
        if len(places):
            return number, int(places[0]), hashes[places[0]]
    raise AssertionError("a shared n-gram stands in the record it was found in")


def _strings(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from _strings(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from _strings(inner)
