"""Traffic: when requests arrive and how long they are; from a file, the request log, or a shape."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from cluster.errors import DataError
from cluster.storage import folder_and_name

DAY_S = 86_400.0
TOKENS = ("prompt_tokens", "completion_tokens")
COLUMNS = "arrival_s, or created_at and latency_s as in the request log"


@dataclass(frozen=True)
class Trace:
    """N requests in the order of their arrival, the first at second 0 or later."""

    arrival_s: np.ndarray
    """(N,)."""
    prompt_tokens: np.ndarray | None = None
    """(N,), or `None` when unknown."""
    completion_tokens: np.ndarray | None = None
    """(N,), or `None` when unknown."""
    source: str = ""

    def __len__(self) -> int:
        return len(self.arrival_s)

    @property
    def span_s(self) -> float:
        """Seconds from 0 to the last arrival."""
        return float(self.arrival_s[-1])


def read_trace(uri: str) -> Trace:
    """Read JSONL, CSV, Parquet or a folder of Parquet files; local, `s3://` or `gs://`.

    DataError names what is missing or cannot be used.
    """
    table = _table(uri)
    if not table.num_rows:
        raise DataError(f"{uri} has no request in it.")
    if "status" in table.column_names:
        # What a client got wrong never came to a replica; what came too early or failed did.
        status = table["status"]
        came = pc.or_(pc.or_(pc.less(status, 400), pc.equal(status, 429)), pc.greater(status, 499))
        table = table.filter(came)
    arrival_s = _arrivals(table, uri)
    if not len(arrival_s) or not np.isfinite(arrival_s).all():
        raise DataError(f"{uri}: {COLUMNS} must be a number in every row.")
    order = np.argsort(arrival_s, kind="stable")
    prompt_tokens, completion_tokens = (_tokens(table, name, uri) for name in TOKENS)
    return Trace(
        arrival_s[order] - arrival_s[order[0]],
        None if prompt_tokens is None else prompt_tokens[order],
        None if completion_tokens is None else completion_tokens[order],
        source=uri,
    )


def _table(uri: str) -> pa.Table:
    store, name = folder_and_name(uri)
    if not store.exists(name):
        raise DataError(
            f"{uri}: no such file or folder. Give JSONL, CSV, Parquet or a request log."
        )
    if name.endswith((".csv", ".jsonl", ".json")):
        import pyarrow.csv
        import pyarrow.json

        read: Any = pyarrow.csv.read_csv if name.endswith(".csv") else pyarrow.json.read_json
        try:
            with store.fs.open_input_stream(store.path(name)) as stream:
                return read(stream)
        except pa.ArrowInvalid as error:
            raise DataError(f"{uri} cannot be read: {error}") from error
    wanted = {"arrival_s", "created_at", "latency_s", "status", *TOKENS}
    tables = []
    # Without the texts, which are most of a request log.
    for batch in store.iter_batches(name):
        keep = [column for column in batch.schema.names if column in wanted]
        tables.append(pa.Table.from_batches([batch.select(keep)]))
    return pa.concat_tables(tables, promote_options="default") if tables else pa.table({})


def _arrivals(table: pa.Table, uri: str) -> np.ndarray:
    columns = set(table.column_names)
    if "arrival_s" in columns:
        return _numbers(table["arrival_s"], uri, "arrival_s")
    if {"created_at", "latency_s"} <= columns:
        # The log's time is that of the answer.
        at = table["created_at"]
        if pa.types.is_timestamp(at.type):
            at = pc.divide(pc.cast(pc.cast(at, pa.timestamp("ms", tz="UTC")), pa.int64()), 1e3)
        return _numbers(at, uri, "created_at") - _numbers(table["latency_s"], uri, "latency_s")
    raise DataError(
        f"{uri} has the columns {', '.join(sorted(columns)) or 'none'}; needed: {COLUMNS}."
    )


def _numbers(column: Any, uri: str, name: str) -> np.ndarray:
    try:
        return pc.cast(column, pa.float64()).to_numpy()
    except pa.ArrowInvalid as error:
        raise DataError(f"{uri}: {name} must be a number in every row: {error}") from error


def _tokens(table: pa.Table, name: str, uri: str) -> np.ndarray | None:
    if name not in table.column_names:
        return None
    values = np.nan_to_num(_numbers(table[name], uri, name))
    known = values > 0
    if not known.any():
        return None
    # A request that failed was to be as long as the others.
    return np.where(known, values, values[known].mean())


def synthetic(
    *, rate: float, daily_peak: float | None = None, hours: float = 24.0, seed: int = 0
) -> Trace:
    """Poisson arrivals: `rate` a second, or from `rate` at night to `daily_peak` in mid-day.

    The day is a raised cosine: rate(t) = rate + (daily_peak - rate) · (1 - cos(2πt/day)) / 2,
    drawn by inverting its integral (E. Çinlar, "Introduction to Stochastic Processes", 1975).
    """
    peak = rate if daily_peak is None else daily_peak
    grid = np.linspace(0, hours * 3600, max(2, int(hours * 360)))
    per_s = rate + (peak - rate) * (1 - np.cos(2 * np.pi * grid / DAY_S)) / 2
    steps = np.diff(grid) * (per_s[1:] + per_s[:-1]) / 2
    mass = np.concatenate(([0.0], np.cumsum(steps)))
    random = np.random.default_rng(seed)
    count = int(random.poisson(mass[-1]))
    if not count:
        raise DataError(
            f"{rate:g} requests a second for {hours:g} hours are none: raise --rate or --hours."
        )
    arrival_s = np.interp(np.sort(random.uniform(0, mass[-1], count)), mass, grid)
    day = f"{rate:g} to {peak:g}" if daily_peak is not None else f"{rate:g}"
    return Trace(arrival_s, source=f"Poisson, {day} requests/s, {hours:g} h")


def scaled(trace: Trace, factor: float, *, seed: int = 0) -> Trace:
    """Return the same traffic `factor` times over: requests repeated or left out at random.

    A repeated request arrives within the mean gap of its original, so that no pairs come at once.
    """
    random = np.random.default_rng(seed)
    copies = np.floor(factor + random.uniform(size=len(trace))).astype(int)
    if not copies.sum():
        raise DataError(f"--scale {factor:g} leaves no request of {len(trace)}: raise it.")
    which = np.repeat(np.arange(len(trace)), copies)
    first = np.concatenate(([True], which[1:] != which[:-1]))
    gap_s = trace.span_s / len(trace)
    moved = trace.arrival_s[which] + np.where(first, 0.0, random.uniform(0, gap_s, len(which)))
    order = np.argsort(moved, kind="stable")

    def taken(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else values[which][order]

    return Trace(
        moved[order],
        taken(trace.prompt_tokens),
        taken(trace.completion_tokens),
        source=f"{trace.source}, {factor:g} times",
    )


def busiest_per_s(trace: Trace, *, window_s: float = 300.0) -> float:
    """Requests a second in the busiest window of the trace, or in all of a shorter one."""
    window_s = min(window_s, max(trace.span_s, 1.0))
    return float(np.bincount((trace.arrival_s / window_s).astype(int)).max() / window_s)
