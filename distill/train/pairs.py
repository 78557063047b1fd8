"""Preference pairs for `dpo`: from a file, or from what the jury said of several answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any

from cluster.errors import DataError
from distill.formats.convert import open_source
from distill.formats.reading import read_batches
from distill.formats.row_reader import read
from distill.formats.row_writer import text_of
from distill.formats.shapes import TOOL_KEYS, ShapeError, recognise
from distill.records import Message, example_id

Row = dict[str, Any]


def pairs_from_scores(answers: Sequence[Row], *, min_margin: float) -> list[Row]:
    """Best against worst answer of each prompt, where they differ by `min_margin` or more.

    `answers` are rows of `candidates.parquet`. One that the jury gave no score is in no pair.
    """
    by_prompt: dict[str, list[Row]] = defaultdict(list)
    for row in answers:
        if row["score"] is not None and row["completion"]:
            by_prompt[row["example_id"]].append(row)
    pairs = []
    for name, rows in by_prompt.items():
        # Ties go to the answer that came first, so that a rerun makes the same pairs.
        ordered = sorted(rows, key=lambda row: -row["score"])
        best, worst = ordered[0], ordered[-1]
        if (
            best["score"] - worst["score"] >= min_margin
            and best["completion"] != worst["completion"]
        ):
            pairs.append(
                {
                    "example_id": name,
                    "messages": best["messages"],
                    "chosen": best["completion"],
                    "rejected": worst["completion"],
                }
            )
    return pairs


def read_records(uri: str, *, field: str) -> list[Row]:
    """Read a file or folder in any shape as rows of `example_id`, `messages`, `completion`.

    A preference pair has `chosen` and `rejected` instead. `field` is the configuration field that
    names the file, for errors; DataError names the first row that cannot be used.
    """
    source = open_source(uri)
    rows: list[Row] = []
    for file in source.files:
        for batch in read_batches(source, file):
            if batch.bad:
                raise DataError(f"{field}: {uri}: {batch.bad[0].where}: {batch.bad[0].problem}")
            rows += [_row(row, f"{field}: {uri}: {where}") for where, row in batch.rows]
    if not rows:
        raise DataError(f"{field}: {uri} has no rows")
    return rows


def pairs_from_file(uri: str) -> list[Row]:
    """Read preference pairs; DataError for a row that is none."""
    rows = read_records(uri, field="train.dpo.pairs")
    for number, row in enumerate(rows, start=1):
        if "rejected" not in row:
            raise DataError(
                f"train.dpo.pairs: {uri}: row {number} has no rejected answer; each row needs a "
                "prompt, chosen and rejected"
            )
    return rows


def split_pairs(
    pairs: Sequence[Row], *, num_validation: int, tested: Collection[str] = ()
) -> tuple[list[Row], list[Row]]:
    """Cut pairs into (training, validation): every so many-th prompt is held out, with its pairs.

    Pairs about a prompt in `tested`, by its `asked`, are in neither.
    """
    by_prompt: dict[str, list[Row]] = defaultdict(list)
    for pair in pairs:
        by_prompt[asked(pair["messages"])].append(pair)
    prompts = [rows for prompt, rows in by_prompt.items() if prompt not in tested]
    held_out = min(num_validation, len(prompts) // 5)
    if not held_out:
        return [pair for rows in prompts for pair in rows], []
    every = len(prompts) // held_out
    chosen = set(range(every - 1, every * held_out, every))
    return (
        [pair for i, rows in enumerate(prompts) if i not in chosen for pair in rows],
        [pair for i, rows in enumerate(prompts) if i in chosen for pair in rows],
    )


def asked(messages: Sequence[Row]) -> str:
    """Digest of a prompt without its system message, which a file of pairs rarely repeats."""
    return example_id([message for message in messages if message["role"] != "system"])


def _row(row: Row, where: str) -> Row:
    try:
        record = read(row, recognise(row))
        messages = [_plain(m, f"messages[{index}]") for index, m in enumerate(record["messages"])]
    except ShapeError as error:
        raise DataError(f"{where}: {error}") from None
    completion = record["completion"]
    if completion is None and messages[-1]["role"] == "assistant":
        # An answer in parts stays among the turns when it is read.
        completion = messages.pop()["content"]
    if completion is None:
        raise DataError(f"{where}: has no answer in text")
    name = record["id"] or example_id(messages)
    plain: Row = {"example_id": name, "messages": messages}
    if record["rejected"] is not None:
        return plain | {"chosen": completion, "rejected": record["rejected"]}
    return plain | {"completion": completion}


def _plain(message: Message, where: str) -> Message:
    """Return a message of nothing but role and text; anything else is a ShapeError."""
    for key in TOOL_KEYS:
        if key in message:
            raise ShapeError(f"{where}.{key}: training has no place for it; leave the row out")
    return {"role": message["role"], "content": text_of(message, where, shape="training")}
