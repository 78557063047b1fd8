"""The rows of a request log that were written for one adapter within a window of time."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as pads

from cluster.difficulty import TEACHER
from cluster.errors import ConfigError, DataError
from distill.formats.files import find, storage_errors

ANSWERED = 200
SHADOW = "shadow"
NEEDED = {
    "request_id": pa.string(),
    "example_id": pa.string(),
    "model_asked": pa.string(),
    "model_answered": pa.string(),
    "route": pa.string(),
    "messages": pa.string(),
    "completion": pa.string(),
    "status": pa.int64(),
    "created_at": pa.timestamp("ms", tz="UTC"),
}
OPTIONAL = {
    "mean_logprob": pa.float64(),
    "answered_by": pa.string(),
    "quality": pa.string(),
    "refused_completion": pa.string(),
    "variables": pa.string(),
    "difficulty": pa.float64(),
    "routed_to": pa.string(),
}
"""Columns that older logs lack; they are null there."""
AGO = re.compile(r"(\d+)([mhdw])")
UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}

Row = dict[str, Any]


@dataclass(frozen=True)
class Window:
    """Answered requests of one adapter, oldest first."""

    rows: list[Row]
    """The log's columns; `messages` is read (a list), `student` is the student's own answer."""
    routed: list[Row]
    """Of hard prompts that went elsewhere the same; `student` is empty, since it was not asked."""
    num_rows: int
    """All that were in the window, of which `rows` may be a sample."""
    left_out: dict[str, int]
    """Rows of the window that are not compared: `shadow`, `not_answered`, `unreadable`, and
    `routed` of the student's answers."""
    versions: dict[str, int]
    """Rows by the version that answered."""
    since: datetime | None
    until: datetime | None


def read_window(
    uri: str,
    *,
    adapter: str,
    since: datetime | None = None,
    until: datetime | None = None,
    max_rows: int | None = None,
    seed: int = 17,
) -> Window:
    """Read the window `since` ≤ created_at < `until`, or a random sample of `max_rows` of it.

    DataError for a folder without Parquet files or without the columns of a request log.
    """
    table = _table(uri, adapter=adapter, since=since, until=until)
    # The copy of a request that a version on trial answered: no client ever saw it.
    given = table.filter(pc.not_equal(table["route"], SHADOW))
    answered = given.filter(pc.equal(given["status"], ANSWERED))
    left_out = Counter(
        shadow=table.num_rows - given.num_rows, not_answered=given.num_rows - answered.num_rows
    )
    places = list(range(answered.num_rows))
    if max_rows is not None and len(places) > max_rows:
        places = random.Random(seed).sample(places, max_rows)
    rows: list[Row] = []
    routed: list[Row] = []
    for row in sorted(answered.take(pa.array(places, pa.int64())).to_pylist(), key=_order):
        messages = _messages(row["messages"])
        if messages is None:
            left_out["unreadable"] += 1
            continue
        if _went_elsewhere(row, adapter):
            left_out["routed"] += 1
            routed.append({**row, "messages": messages, "student": ""})
            continue
        student = row["refused_completion"] or row["completion"] or ""
        rows.append({**row, "messages": messages, "student": student})
    versions = Counter(row["model_answered"] for row in rows)
    counts = {reason: count for reason, count in left_out.items() if count}
    return Window(
        rows, routed, answered.num_rows, counts, dict(versions.most_common()), since, until
    )


def parse_time(text: str | None, *, now: datetime, option: str) -> datetime | None:
    """Read `2026-05-01`, `2026-05-01T12:00` (UTC unless it says), or `24h`, `7d` before `now`."""
    if not text:
        return None
    ago = AGO.fullmatch(text.strip())
    if ago:
        return now - timedelta(**{UNITS[ago[2]]: int(ago[1])})
    try:
        found = datetime.fromisoformat(text.strip())
    except ValueError:
        raise ConfigError(
            f"{option} {text!r}: give a date or time such as 2026-05-01 or 2026-05-01T12:00, or "
            "how long ago: 90m, 24h, 7d, 4w."
        ) from None
    return found if found.tzinfo else found.replace(tzinfo=UTC)


def _went_elsewhere(row: Row, adapter: str) -> bool:
    """Whether the teacher or another adapter was given a prompt in this one's place."""
    if not row["routed_to"]:
        return False
    name = (row["model_answered"] or "").partition("@")[0]
    return row["routed_to"] == TEACHER or name != adapter


def _order(row: Row) -> tuple[Any, str]:
    return row["created_at"], row["request_id"] or ""


def _table(uri: str, *, adapter: str, since: datetime | None, until: datetime | None) -> pa.Table:
    source = find(uri)
    columns = NEEDED | OPTIONAL
    with storage_errors(source.uri):
        for file in source.files:
            if file.kind != "parquet":
                raise DataError(f"{source.uri}: {file.name} is {file.kind}; a log is Parquet.")
        dataset = pads.dataset(
            [file.path for file in source.files], filesystem=source.fs, format="parquet"
        )
        missing = [name for name in NEEDED if name not in dataset.schema.names]
        if missing:
            raise DataError(
                f"{source.uri} has no column {', '.join(missing)}: it is no request log of ours."
            )
        # Files older than a column have nulls there.
        dataset = dataset.replace_schema(pa.schema(list(columns.items())))
        wanted = _is_of(adapter, "model_answered") | _is_of(adapter, "model_asked")
        # To the log's own unit: a cast of the column would keep files from being skipped.
        at = pads.field("created_at")
        if since is not None:
            wanted &= at >= pa.scalar(since, columns["created_at"])
        if until is not None:
            wanted &= at < pa.scalar(until, columns["created_at"])
        return dataset.to_table(filter=wanted)


def _is_of(adapter: str, column: str) -> pads.Expression:
    name = pads.field(column)
    return (name == adapter) | pc.starts_with(name, f"{adapter}@")


def _messages(text: str | None) -> list[dict[str, str]] | None:
    try:
        messages = json.loads(text or "null")
    except ValueError:
        return None
    if not isinstance(messages, list) or not messages:
        return None
    for message in messages:
        if not isinstance(message, dict) or not isinstance(message.get("content"), str):
            return None
    return messages
