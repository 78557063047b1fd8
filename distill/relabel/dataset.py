"""Versions of a dataset: each holds all of the one before and what was added, and never changes."""

from __future__ import annotations

import json
import re
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import DataError, StageError
from cluster.example import example_id
from cluster.masking import MaskingConfig, mask_messages
from cluster.storage import Store, digest_of, folder_digests, rows_table
from distill.prompts.split import SPLITS
from distill.prompts.stage import DATASET_PROMPTS
from distill.records import COMPLETION, PROMPT
from distill.teach.config import Price

ANSWERS = "completions.parquet"
MANIFEST = "manifest.json"
NEXT = "next.toml"
VERSION = re.compile(r"v([1-9][0-9]*)")

Row = dict[str, Any]


@dataclass(frozen=True)
class Parent:
    """What a new version grows from: the version before, or the run whose student is serving."""

    name: str
    """`v3`, or the run's folder."""
    digest: str
    prompts: list[Row]
    answers: list[Row]

    def ids(self, *, masking: MaskingConfig) -> set[str]:
        """Prompts that it holds, as they were written and as a log shows them, masked."""
        written = {row["example_id"] for row in self.prompts}
        return written | {
            example_id(mask_messages(row["messages"], masking)[0]) for row in self.prompts
        }

    @classmethod
    def of_rows(cls, name: str, prompts: Sequence[Row], answers: Sequence[Row]) -> Parent:
        """Take a run's prompts that have an answer, with it."""
        answered = {row["example_id"] for row in answers}
        kept = [row for row in prompts if row["example_id"] in answered]
        return cls(name, rows_digest(answers), kept, list(answers))


def latest(datasets: Store) -> int:
    """Number of the newest version; 0: there is none."""
    found = [VERSION.fullmatch(name) for name in datasets.names()]
    return max((int(match[1]) for match in found if match), default=0)


def read_version(datasets: Store, number: int) -> Parent:
    """Read a version; DataError when its files are not what its manifest says."""
    store = datasets / f"v{number}"
    manifest = store.read_json(MANIFEST)
    answers = store.read_rows(ANSWERS)
    if rows_digest(answers) != manifest["digest"]:
        raise DataError(
            f"{store.path(ANSWERS)} is not what {MANIFEST} says: it was changed or half copied. "
            "Restore it, or remove the version's folder and run the same command again."
        )
    return Parent(f"v{number}", manifest["digest"], store.read_rows(DATASET_PROMPTS), answers)


def rows_digest(answers: Sequence[Row]) -> str:
    """SHA-256 of what a dataset teaches: prompts, answers and splits, in no order."""
    return digest_of(sorted([r["example_id"], r["split"], r["completion"]] for r in answers))


def append_version(
    datasets: Store,
    number: int,
    *,
    parent: Parent,
    added: Sequence[Row],
    facts: Row,
    price: Price | None = None,
) -> Row:
    """Write version `number`: prompts, completions, `manifest.json` and `next.toml`.

    `added` are accepted answers (`distill.records.COMPLETION`) to prompts that `parent` lacks;
    `facts` go into the manifest. `price` is the teacher's, for the next run's cost table. It
    appears whole. Returns the manifest; StageError when the version is there already.
    """
    name = f"v{number}"
    if datasets.exists(name):
        raise StageError(
            f"{datasets.path(name)} is there already: somebody else wrote it meanwhile. Run the "
            "same command again; what the teacher answered is kept."
        )
    prompts = [
        *parent.prompts,
        *({column: row[column] for column in PROMPT.names} for row in added),
    ]
    answers = [*parent.answers, *added]
    splits = Counter(row["split"] for row in prompts)
    with tempfile.TemporaryDirectory(prefix="distillery-dataset-") as folder:
        beside = Store(folder)
        beside.write_table(DATASET_PROMPTS, rows_table(prompts, PROMPT))
        beside.write_table(ANSWERS, rows_table(answers, COMPLETION))
        text = next_toml(datasets.path(name), splits=splits, price=price)
        beside.write_bytes(NEXT, text.encode())
        manifest = {
            "version": name,
            "digest": rows_digest(answers),
            "parent": {"name": parent.name, "digest": parent.digest},
            "rows": {split: splits[split] for split in reversed(SPLITS)},
            "added": len(added),
            **facts,
            "files": folder_digests(folder),
        }
        beside.write_json(MANIFEST, manifest)
        datasets.upload(folder, name, last=MANIFEST)
    return manifest


def next_toml(folder: str, *, splits: Counter[str], price: Price | None) -> str:
    """Return what the next run's configuration needs; it goes after the run's own file."""
    lines = [
        "# Written by `distillery relabel`: the dataset version in this folder, for the next run.",
        "# Give it after the run's own file: distillery run RUN.toml next.toml",
        "",
        "[prompts]",
        *(f"{split} = {splits[split]}" for split in reversed(SPLITS)),
        "",
        "[prompts.make]",
        'kind = "dataset"',
        f"folder = {json.dumps(folder)}",
        "",
        "[teacher]",
        'kind = "replay"',
        f"file = {json.dumps(str(Path(folder) / ANSWERS))}",
    ]
    if price is not None:
        lines += [
            f"price = {{ input_usd_per_mtok = {price.input_usd_per_mtok}, "
            f"output_usd_per_mtok = {price.output_usd_per_mtok} }}"
        ]
    return "\n".join(lines) + "\n"
