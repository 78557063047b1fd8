"""The thin Ray layer of the data stages: rows in, one Parquet file a batch out, resumable.

A batch's file is written whole before the batch counts; after a kill the files that are there
are kept and only the missing rows are worked on again.
"""

from __future__ import annotations

import json
import pickle
import sys
import traceback
import uuid
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from cluster.storage import Store, rows_table

MOST_BLOCKS = 1000
AS_TEXT = "row"
"""Column of rows as JSON text."""
Progress = Callable[[int, int], None]
"""Called with (rows done, rows in all)."""


@dataclass(frozen=True)
class ParquetFiles:
    """Rows that lie in files and are read where they are worked on."""

    paths: tuple[str, ...]
    filesystem: Any
    num_rows: int


def failed_block() -> dict[str, list[Any]]:
    """What a worker returns for a block in which something was raised, for `drain` to raise.

    Raised in the worker it would reach the driver as text inside Ray Data's own exception.
    """
    traceback.print_exc()
    return {"done": [0], "error": [pickle.dumps(sys.exception())]}


class _BatchWriter:
    """A Ray Data actor: makes its worker once, then answers batches and writes them."""

    def __init__(self, make_worker: Callable[[], Any], store_uri: str, schema: pa.Schema):
        self._work = make_worker()
        self._store = Store(store_uri)
        self._schema = schema

    def __call__(self, batch: pa.Table) -> dict[str, Any]:
        rows = batch.to_pylist()
        if batch.column_names == [AS_TEXT]:
            rows = [json.loads(row[AS_TEXT]) for row in rows]
        try:
            done = self._work(rows)
            if done:
                part = f"part-{uuid.uuid4().hex}.parquet"
                self._store.write_table(part, rows_table(done, self._schema))
        except Exception:
            return failed_block()
        return {"done": [len(rows)], "error": [b""]}


def map_to_parquet(
    rows: Sequence[dict[str, Any]] | ParquetFiles,
    *,
    make_worker: Callable[[], Callable[[list[dict[str, Any]]], list[dict[str, Any]]]],
    store: Store,
    schema: pa.Schema,
    batch_size: int,
    actors: int = 1,
    on_progress: Progress | None = None,
) -> None:
    """Run `rows` through actors on Ray Data and write their results to `store`.

    `make_worker` is called once in each actor and returns a function from rows to result rows.
    What that function raises is raised here, as it was; the parts that were written stay.
    """
    total = rows.num_rows if isinstance(rows, ParquetFiles) else len(rows)
    if not total:
        return
    import ray

    if isinstance(rows, ParquetFiles):
        dataset = ray.data.read_parquet(
            list(rows.paths),
            filesystem=rows.filesystem,
            # Otherwise a file is one block, and one worker's.
            override_num_blocks=max(1, min(MOST_BLOCKS, total // batch_size)),
        )
    else:
        # As JSON text rows of unlike shapes come out as they went in.
        dataset = ray.data.from_items([{AS_TEXT: json.dumps(row)} for row in rows])
    written = dataset.map_batches(
        _BatchWriter,
        fn_constructor_args=(make_worker, store.uri, schema),
        batch_size=min(batch_size, max(1, -(-total // actors))),
        batch_format="pyarrow",
        compute=ray.data.ActorPoolStrategy(size=actors),
        num_cpus=1,
    )
    drain(written, total=total, on_progress=on_progress)


def drain(dataset: Any, *, total: int, on_progress: Progress | None) -> dict[str, int]:
    """Run a dataset whose blocks are counts and errors; return the sum of every count.

    `done` is reported as it grows. What a worker raised (`error`, pickled) is raised here, as it
    was: through Ray Data it would arrive as text inside another exception.
    """
    sums: Counter[str] = Counter()
    for batch in dataset.iter_batches(batch_size=None, prefetch_batches=0):
        for error in filter(None, batch["error"]):
            raise pickle.loads(error)
        sums.update({name: int(sum(of)) for name, of in batch.items() if name != "error"})
        if on_progress is not None:
            on_progress(sums["done"], total)
    return dict(sums)
