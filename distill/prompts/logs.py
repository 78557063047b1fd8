"""Prompts from production logs: approved rows only, personal data masked before anything else.

A log is Parquet, one file or a folder of them, local or at `s3://` or `gs://`. What is read of it:

| column | type | meaning |
|---|---|---|
| `request_id` | string | becomes the prompt's id |
| `example_id` | string | digest of the prompt as it was asked |
| `messages` | string | the prompt: a JSON list of `{"role", "content"}` |
| `status` | int64 | HTTP status; 200 for an answer that was given |
| `approved` | bool | optional: somebody or something found the answer good |

and any column that `[prompts.make] where` names. Nothing of the answers is taken.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
from pydantic import Field

from cluster.config import StrictModel
from cluster.errors import ConfigError, DataError
from cluster.masking import MaskingConfig, mask_messages, mask_texts
from distill.formats.files import DataFile, Source, find, storage_errors
from distill.records import Message, example_id

REQUIRED = ("request_id", "example_id", "messages", "status")
APPROVED = "approved"
ANSWERED = 200
ROWS = 1024
Value = str | int | bool


class LogsConfig(StrictModel):
    """Which rows of a request log become prompts."""

    kind: Literal["logs"] = "logs"
    """Chooses this kind; the fields beside it are its own."""
    uri: str
    """Parquet file or folder: local path, `s3://…` or `gs://…`."""
    require_approved: bool = False
    """Refuse a log without an `approved` column. Where any file of the log has the column, only
    rows with true count in either case; where none has it, every answered request does."""
    where: dict[str, Value | list[Value]] = Field(default_factory=dict)
    """Further conditions, column = value or list of values: `model_answered = ["reconcile@v3"]`."""
    max_prompts: int | None = Field(default=None, ge=1)
    """Stop after so many prompts, oldest file first."""
    masking: MaskingConfig = MaskingConfig()
    """What is masked."""


@dataclass
class LogPrompts:
    """Prompts of a log, and where every row of it went.

    `rows` are prompts (`distill.records.PROMPT`) without a split, made after masking: the id of
    the unmasked prompt is not kept, since a short secret can be guessed from a digest. `masked`
    counts what was replaced in them, by kind.
    """

    rows: list[dict[str, Any]] = field(default_factory=list)
    num_read: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    masked: Counter[str] = field(default_factory=Counter)
    num_masked_rows: int = 0

    def report(self) -> dict[str, Any]:
        """Return the counts as they are shown and kept beside the prompts; they hold no text."""
        return {
            "rows_read": self.num_read,
            "prompts": len(self.rows),
            "left_out": dict(self.left_out.most_common()),
            "prompts_with_masked_data": self.num_masked_rows,
            "masked": dict(self.masked.most_common()),
        }


def read_log(config: LogsConfig) -> LogPrompts:
    """Read the log, keep the approved rows, drop repeated prompts, mask the rest.

    A row is left out as `not_answered`, `not_approved`, `not_selected` (by `where`), `duplicate`
    (its `example_id` was there), `duplicate_masked` (it differs from another one in what was
    masked only) or `unusable` (no messages, or the last is not the user's); rows behind
    `max_prompts` are not read. Raises DataError when it is no request log, ConfigError for a
    column that the log does not have.
    """
    source = find(config.uri)
    schemas = _schemas(source)
    has_approved = any(APPROVED in schema.names for schema in schemas.values())
    if config.require_approved and not has_approved:
        raise DataError(
            f"{source.uri}: has no column {APPROVED!r}; add it to the log, or set "
            "require_approved = false to take every answered request."
        )
    _check_where(config, schemas)
    result = LogPrompts()
    asked: set[str] = set()
    masked_ids: set[str] = set()
    prompt_ids: set[str] = set()
    for row in _rows(source, config, schemas):
        if config.max_prompts is not None and len(result.rows) >= config.max_prompts:
            break
        result.num_read += 1
        problem = _refused(row, config, has_approved=has_approved)
        if problem:
            result.left_out[problem] += 1
            continue
        if row["example_id"] in asked:
            result.left_out["duplicate"] += 1
            continue
        asked.add(row["example_id"])
        messages = _messages(row["messages"])
        if messages is None:
            result.left_out["unusable"] += 1
            continue
        clean, counts = mask_messages(messages, config.masking)
        identity = example_id(clean)
        if identity in masked_ids:
            result.left_out["duplicate_masked"] += 1
            continue
        masked_ids.add(identity)
        result.masked += counts
        result.num_masked_rows += bool(counts)
        prompt_id = _prompt_id(row["request_id"], known=prompt_ids)
        result.rows.append(
            {
                "example_id": identity,
                "split": "",
                "prompt_id": prompt_id,
                "messages": clean,
                "variables": "{}",
                "reference": "",
                "stratum": "",
            }
        )
    return result


def _schemas(source: Source) -> dict[str, pa.Schema]:
    """Read the schema of each file. A log may grow columns, so they need not be the same."""
    schemas: dict[str, pa.Schema] = {}
    with storage_errors(source.uri):
        for file in source.files:
            if file.kind != "parquet":
                raise DataError(f"{source.uri}: {file.name} is {file.kind}; a log is Parquet.")
            schemas[file.path] = _schema(source.fs, file)
            missing = [name for name in REQUIRED if name not in schemas[file.path].names]
            if missing:
                raise DataError(
                    f"{source.uri}: {file.name} has no column {', '.join(missing)}; a request log "
                    f"has {', '.join(REQUIRED)} and more."
                )
    return schemas


def _schema(fs: pafs.FileSystem, file: DataFile) -> pa.Schema:
    try:
        with fs.open_input_file(file.path) as stream:
            return pq.read_schema(stream)
    except pa.ArrowInvalid as error:
        raise DataError(f"{file.path}: is no readable Parquet file: {error}") from None


def _check_where(config: LogsConfig, schemas: dict[str, pa.Schema]) -> None:
    known = sorted({name for schema in schemas.values() for name in schema.names})
    for name in config.where:
        if name not in known:
            raise ConfigError(f"where: {name!r} is no column of the log; it has {known}.")


def _rows(
    source: Source, config: LogsConfig, schemas: dict[str, pa.Schema]
) -> Iterator[dict[str, Any]]:
    """Yield the rows with the columns needed; one that a file does not have is null."""
    wanted = dict.fromkeys([*REQUIRED, APPROVED, *config.where])
    with storage_errors(source.uri):
        for file in source.files:
            columns = [name for name in wanted if name in schemas[file.path].names]
            with source.fs.open_input_file(file.path) as stream:
                for batch in pq.ParquetFile(stream).iter_batches(ROWS, columns=columns):
                    for row in batch.to_pylist():
                        yield {**wanted, **row}


def _refused(row: dict[str, Any], config: LogsConfig, *, has_approved: bool) -> str:
    """Return why a row is no candidate, or ""."""
    if row["status"] != ANSWERED:
        return "not_answered"
    # A row without a word on it is not approved, so files older than the column give nothing.
    if has_approved and row[APPROVED] is not True:
        return "not_approved"
    for name, allowed in config.where.items():
        if row[name] not in (allowed if isinstance(allowed, list) else [allowed]):
            return "not_selected"
    return ""


def _prompt_id(request_id: str | None, *, known: set[str]) -> str:
    """Return a request's id if it can name a prompt; clients choose theirs, and repeat them."""
    if not request_id or request_id in known or mask_texts([request_id])[1]:
        return ""
    known.add(request_id)
    return request_id


def _messages(text: str | None) -> list[Message] | None:
    """Return the messages if they make a prompt, as text only and ending with the user."""
    try:
        messages = json.loads(text or "null")
    except ValueError:
        return None
    if not isinstance(messages, list) or not messages:
        return None
    for message in messages:
        if not isinstance(message, dict) or message.keys() != {"role", "content"}:
            return None
        if not all(isinstance(value, str) for value in message.values()):
            return None
    last = messages[-1]
    return messages if last["role"] == "user" and last["content"].strip() else None
