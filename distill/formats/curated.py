"""A finished run's curated data as rows in the messages shape."""

from __future__ import annotations

import json
from typing import Any

import pyarrow.fs as pafs
import pyarrow.parquet as pq

from cluster.errors import DataError, StageError
from cluster.storage import Store
from distill.config import JuryConfig
from distill.formats.files import DataFile, Source, locate, shown, storage_errors
from distill.judge.stage import accepted, overall_scores
from distill.records import COMPLETION, answer_id

SPLITS = ("train", "validation")
KEPT = ("prompt_id", "split", "stratum", "teacher", "variables", "reference")
AS_JSON = ("variables", "reference")
LEFT_OUT = tuple(
    name for name in COMPLETION.names if name not in (*KEPT, "example_id", "messages", "completion")
)
"""Columns about how an answer was made; they are no part of the data and stay in the run."""


def is_run(uri: str) -> bool:
    """Whether a folder is a run's: it has a resolved configuration and curated data."""
    fs, path = locate(uri)
    with storage_errors(uri):
        found = fs.get_file_info([f"{path}/config.json", f"{path}/curated"])
    return [info.type for info in found] == [pafs.FileType.File, pafs.FileType.Directory]


def find_run(uri: str) -> Source:
    """List a run's curated files; rows that the jury did not accept are skipped.

    Raises StageError if the run's curation has not finished.
    """
    store = Store(uri)
    uri = shown(uri)
    if not store.exists("stages/curate.json"):
        raise StageError(f"{uri}: its stage 'curate' has not finished; run it first.")
    jury = JuryConfig.model_validate(store.read_json("config.json")["jury"])
    files: list[DataFile] = []
    ids: list[dict[str, Any]] = []
    for split in SPLITS:
        path = store.path(f"curated/{split}.parquet")
        info = store.fs.get_file_info(path)
        if info.type != pafs.FileType.File:
            raise DataError(f"{path}: is missing; run the stage 'curate' again.")
        files.append(DataFile(path, f"curated/{split}.parquet", "parquet", split, info.size or 0))
        ids += pq.read_table(
            path, filesystem=store.fs, columns=["example_id", "request_key"]
        ).to_pylist()
    kept = _accepted_ids(ids, jury, store=store)
    counted = sum(part["rows_out"] for part in store.read_json("yield.json").values())
    if len(kept) != counted:
        raise DataError(
            f"{uri}: its verdicts accept {len(kept)} rows, its yield.json counts {counted}; "
            "run the stage 'curate' again with --again."
        )

    def adapt(row: dict[str, Any]) -> dict[str, Any] | None:
        return messages_row(row) if row["example_id"] in kept else None

    return Source(uri, store.fs, "run's curated data", tuple(files), adapt)


def _accepted_ids(ids: list[dict[str, Any]], jury: JuryConfig, *, store: Store) -> set[str]:
    folders = store.names("verdicts")
    if len(folders) != len(jury.judges):
        # Verdicts of an earlier jury lie there too.
        return {row["example_id"] for row in accepted(ids, jury, store=store)}
    # All verdicts are this jury's. Its folders need not be known by name, which is a digest of
    # the judge's configuration and so another one in a run of an older version.
    scores = overall_scores(
        [row for name in folders for row in store.read_rows(f"verdicts/{name}")]
    )
    return {row["example_id"] for row in ids if scores.get(answer_id(row), -1.0) >= jury.min_score}


def messages_row(row: dict[str, Any]) -> dict[str, Any]:
    """Turn a curated row (`distill.records.COMPLETION`) into one of the messages shape."""
    answer = {"role": "assistant", "content": row["completion"]}
    columns = {name: row[name] for name in KEPT if row[name]}
    for name in AS_JSON:
        if name in columns:
            columns[name] = json.loads(columns[name])
    return {"id": row["example_id"], "messages": [*row["messages"], answer], **columns}
