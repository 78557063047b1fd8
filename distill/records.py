"""The records that pass between stages, and the id that follows one example through all of them.

Every record is a plain dictionary; the schemas below are its columns in Parquet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from cluster.example import Message, example_id

__all__ = [
    "COMPLETION",
    "MESSAGES",
    "PREDICTION",
    "PROMPT",
    "REJECTED",
    "VERDICT",
    "Message",
    "answer_id",
    "by_id",
    "example_id",
    "recorded_id",
]

MESSAGES = pa.list_(pa.struct([("role", pa.string()), ("content", pa.string())]))

PROMPT = pa.schema(
    [
        ("example_id", pa.string()),
        ("split", pa.string()),  # train | validation | test
        ("prompt_id", pa.string()),  # the id given in a user's file, or ""
        ("messages", MESSAGES),  # system and user, as every model gets them
        ("variables", pa.string()),  # JSON: what the templates were filled with
        ("reference", pa.string()),  # JSON: the known right answer, or ""
        ("stratum", pa.string()),  # category for reports, or ""
    ]
)

COMPLETION = pa.schema(
    [
        *PROMPT,
        ("completion", pa.string()),
        ("error", pa.string()),  # "" when the teacher answered
        ("teacher", pa.string()),
        ("request_key", pa.string()),  # digest of prompt, teacher and parameters
        ("sample", pa.int64()),  # 0, 1, … of several answers of one model; null: no model
        ("temperature", pa.float64()),  # null: no model
        ("seed", pa.int64()),  # null: none was set
        ("rationale", pa.string()),  # reasoning that led to the answer, where it was asked for
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("latency_s", pa.float64()),
        ("cost_usd", pa.float64()),
    ]
)

REJECTED = pa.schema([*COMPLETION, ("reason", pa.string()), ("detail", pa.string())])

VERDICT = pa.schema(
    [
        ("example_id", pa.string()),
        ("request_key", pa.string()),  # of the answer that was judged; "" where there is one only
        ("judge", pa.string()),
        ("dimension", pa.string()),
        ("score", pa.float64()),  # 0.0 to 1.0; null when the judge failed
        ("reasoning", pa.string()),
        ("error", pa.string()),
        ("confidence", pa.float64()),  # 0.0 to 1.0; null when the judge did not say
        ("issues", pa.list_(pa.string())),  # kebab-case tags
        ("author", pa.string()),  # teacher whose answer it is
        ("cost_usd", pa.float64()),  # this row's share of the judge's call; null: not known
    ]
)

PREDICTION = pa.schema(
    [
        ("example_id", pa.string()),
        ("model", pa.string()),  # base | student | teacher
        ("completion", pa.string()),
        ("valid", pa.bool_()),
        ("correct", pa.bool_()),
        ("label", pa.string()),  # the headline field's predicted value, "" when invalid
        ("expected", pa.string()),
        ("stratum", pa.string()),
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("latency_s", pa.float64()),
        ("error", pa.string()),
    ]
)


def answer_id(row: dict[str, Any]) -> str:
    """Identity of an answer, or of the answer that a verdict is on: a prompt may have several."""
    return str(row.get("request_key") or row["example_id"])


def by_id(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Index rows by their `example_id`."""
    return {row["example_id"]: row for row in rows}


def recorded_id(row: dict[str, Any]) -> str:
    """Id of a row of somebody's export: `example_id`, else `id` (which may be 0), else ""."""
    given = (row.get(name) for name in ("example_id", "id"))
    return next((str(value) for value in given if value not in (None, "")), "")
