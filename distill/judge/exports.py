"""Answers and verdicts that were exported from anywhere, as plain rows. Nothing is asked."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError, DataError
from distill.jsonl import read_jsonl
from distill.judge.schema import is_share, issue_tags
from distill.records import recorded_id

Row = dict[str, Any]
SUFFIXES = (".jsonl", ".parquet")
INLINE_JUDGE = "export"


def read_answers(paths: Sequence[str]) -> tuple[list[Row], list[Row]]:
    """Read exported answers; returns (answers, verdicts that stood in the same rows).

    A path is a JSONL or Parquet file, or a folder of them (its sub-folders too). A row has
    `example_id` (or `id`) and `completion`, or `error` when the candidate gave no answer. Its
    candidate is the field `candidate`, else `teacher`, else the file's name. `latency_s` and
    `cost_usd` are `None` where they are not given. A field `scores` (dimension -> 0.0 to 1.0)
    counts as verdicts of the field `judge`, by default `export`. DataError names file and record.
    """
    answers, verdicts = [], []
    for row, place, stem in _rows(paths, field="select.answers"):
        candidate = str(row.get("candidate") or row.get("teacher") or stem)
        answer = {
            "example_id": _example_id(row, place),
            "candidate": candidate,
            "completion": row.get("completion"),
            "error": str(row.get("error") or ""),
            "latency_s": _number(row, "latency_s", place),
            "cost_usd": _number(row, "cost_usd", place),
            "messages": row.get("messages"),
        }
        if not isinstance(answer["completion"], str) or not answer["completion"].strip():
            if answer["completion"] is None and not answer["error"]:
                raise DataError(
                    f"{place}: needs `completion`, or `error` where there is no answer."
                )
            answer |= {"completion": "", "error": answer["error"] or "empty answer"}
        answers.append(answer)
        if row.get("scores"):
            judge = str(row.get("judge") or INLINE_JUDGE)
            # The row's cost is the answer's; what the judge cost is not in it.
            verdicts += _spread({**row, "cost_usd": None}, place, judge, candidate)
    return answers, verdicts


def read_verdicts(paths: Sequence[str]) -> list[Row]:
    """Read exported verdicts (`distill.records.VERDICT` with the candidate as `author`).

    A row has `example_id` (or `id`), `judge`, the candidate (`candidate`, else `author`, else the
    file's name), and either `dimension` with `score` or `scores` (dimension -> score). `score`
    may be null with an `error`. A score that is no number from 0 to 1 is that judge's failure.
    """
    verdicts = []
    for row, place, stem in _rows(paths, field="select.verdicts"):
        candidate = str(row.get("candidate") or row.get("author") or stem)
        judge = str(row.get("judge") or "")
        if not judge:
            raise DataError(f"{place}: needs `judge`, the name of who gave the scores.")
        if row.get("scores"):
            verdicts += _spread(row, place, judge, candidate)
        elif row.get("dimension"):
            dimension = str(row["dimension"])
            verdicts.append(_verdict(row, place, judge, candidate, dimension, row.get("score")))
        else:
            raise DataError(f"{place}: needs `dimension` and `score`, or `scores`.")
    return verdicts


def _rows(paths: Sequence[str], *, field: str) -> Iterator[tuple[Row, str, str]]:
    """Yield (row, where it stands, name of its file)."""
    for given in paths:
        path = Path(given).expanduser()
        files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file())
        files = [file for file in files if file.suffix in SUFFIXES]
        if not files:
            raise ConfigError(
                f"{field} {given!r}: no {' or '.join(SUFFIXES)} file there; give such a file or a "
                "folder of them."
            )
        for file in files:
            for number, row in enumerate(_read(file), start=1):
                yield row, f"{file}, record {number}", file.stem


def _read(file: Path) -> list[Row]:
    if file.suffix == ".jsonl":
        return read_jsonl(file)
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(pq.read_table(file).to_pylist())
    except pa.ArrowInvalid as error:
        raise DataError(f"{file} is no Parquet file: {error}") from None


def _example_id(row: Row, place: str) -> str:
    found = recorded_id(row)
    if not found:
        raise DataError(f"{place}: needs `example_id` (or `id`), the same for every candidate.")
    return found


def _number(row: Row, name: str, place: str) -> float | None:
    value = row.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0:
        raise DataError(f"{place}: {name} {value!r} must be a number from 0 up, or left out.")
    return float(value)


def _spread(row: Row, place: str, judge: str, candidate: str) -> list[Row]:
    scores = row["scores"]
    if not isinstance(scores, dict):
        raise DataError(f"{place}: `scores` must map each dimension to a score from 0 to 1.")
    # Parquet's structs carry every column in every row: what is null there was not judged.
    given = {name: score for name, score in scores.items() if score is not None}
    found = [_verdict(row, place, judge, candidate, name, given[name]) for name in given]
    # Issues and cost are the whole answer's: they are counted once.
    return [
        {
            **verdict,
            "issues": verdict["issues"] if n == 0 else [],
            "cost_usd": None if (cost := verdict["cost_usd"]) is None else cost / len(found),
        }
        for n, verdict in enumerate(found)
    ]


def _verdict(row: Row, place: str, judge: str, candidate: str, dimension: str, score: Any) -> Row:
    error = str(row.get("error") or "")
    if not is_share(score):
        error = error or f"no score from 0 to 1: {score!r:.80}"
    return {
        "example_id": _example_id(row, place),
        "judge": judge,
        "dimension": dimension,
        "score": float(score) if is_share(score) else None,
        "reasoning": str(row.get("reasoning") or ""),
        "error": error if not is_share(score) else "",
        "confidence": row["confidence"] if is_share(row.get("confidence")) else None,
        "issues": list(issue_tags(row.get("issues"))),
        "author": candidate,
        "cost_usd": _number(row, "cost_usd", place),
    }
