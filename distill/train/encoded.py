"""Encoded items on disk: in a run's folder the tokenizer runs once for the same records."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.storage import digest_of
from distill.train.config import TrainConfig
from distill.train.encode import Encoded, Item
from distill.train.items import Items, make_items, rows_digest
from distill.train.vocabulary import vocabulary_digest

FORMAT = 1
"""Raised whenever the same rows would be encoded in another way."""
SEQUENCE = pa.schema(
    [
        ("item", pa.int64()),
        ("example_id", pa.string()),
        ("tokens", pa.list_(pa.int32())),
        ("num_prompt", pa.int32()),
        ("kind", pa.string()),
        ("num_rationale", pa.int32()),
    ]
)


def encoded_items(
    tokenizer: Any,
    rows: Sequence[dict[str, Any]],
    *,
    train: TrainConfig,
    max_length: int,
    cache: Path | None,
) -> Items:
    """`make_items`, kept in `cache` under a digest of rows, tokenizer, template and method."""
    if cache is None:
        return make_items(tokenizer, rows, train=train, max_length=max_length)
    made_from = {
        "format": FORMAT,
        "tokenizer": _tokenizer_digest(tokenizer),
        "template": str(getattr(tokenizer, "chat_template", "")),
        "method": train.method,
        "max_length": max_length,
        "rows": rows_digest(rows),
    }
    path = cache / f"encoded-{digest_of(made_from)[:16]}.parquet"
    if path.is_file():
        return _read(path)
    made = make_items(tokenizer, rows, train=train, max_length=max_length)
    _write(path, made)
    return made


def _tokenizer_digest(tokenizer: Any) -> str:
    """SHA-256 (hex) of all that decides the tokens: merges and normaliser, not only their ids."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    return vocabulary_digest(tokenizer) if backend is None else digest_of(backend.to_str())


def table_of(items: Sequence[Item]) -> pa.Table:
    """Return the items' sequences, `SEQUENCE`, one a row and numbered by item from 0."""
    rows = [
        {
            "item": number,
            "example_id": sequence.example_id,
            "tokens": sequence.tokens,
            "num_prompt": sequence.num_prompt,
            "kind": sequence.kind,
            "num_rationale": sequence.num_rationale,
        }
        for number, item in enumerate(items)
        for sequence in item.sequences
    ]
    return pa.Table.from_pylist(rows, schema=SEQUENCE)


def _write(path: Path, made: Items) -> None:
    left_out = {
        "too_long": "\n".join(made.too_long),
        "without_rationale": "\n".join(made.without_rationale),
        "without_loss": "\n".join(made.without_loss),
    }
    table = table_of(made.items).replace_schema_metadata(left_out)
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.tmp")
    pq.write_table(table, beside)
    beside.replace(path)


def _read(path: Path) -> Items:
    table = pq.read_table(path)
    sequences: dict[int, list[Encoded]] = defaultdict(list)
    for row in table.to_pylist():
        number = row.pop("item")
        sequences[number].append(Encoded(**row))
    metadata = {k.decode(): v.decode() for k, v in table.schema.metadata.items()}
    return Items(
        [Item(found[0].example_id, tuple(found)) for _, found in sorted(sequences.items())],
        metadata["too_long"].splitlines(),
        metadata["without_rationale"].splitlines(),
        metadata["without_loss"].splitlines(),
    )
