"""The request log: Parquet files at a URI, written by a thread that no request waits for."""

from __future__ import annotations

import logging
import queue
import random
import threading
import time
import uuid
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa

from cluster.masking import MaskingConfig
from cluster.storage import Store, rows_table
from serve.log_masking import masked_row
from serve.log_retention import TIME, remove_old

log = logging.getLogger("ray.serve")

RETENTION_EVERY_S = 600.0
"""Between two looks for files that are past their days."""

SCHEMA = pa.schema(
    [
        ("request_id", pa.string()),
        ("example_id", pa.string()),
        ("model_asked", pa.string()),
        ("model_answered", pa.string()),
        ("route", pa.string()),  # chat | completions
        ("messages", pa.string()),  # JSON
        ("variables", pa.string()),  # JSON: the prompt's, where the request brought them
        ("completion", pa.string()),  # the first choice's text
        ("prompt_tokens", pa.int64()),
        ("completion_tokens", pa.int64()),
        ("latency_s", pa.float64()),
        ("ttft_s", pa.float64()),  # null when unknown
        ("status", pa.int64()),  # HTTP status
        ("mean_logprob", pa.float64()),  # of the completion's tokens; null when not asked for
        ("quality", pa.string()),  # passed, why the first answer was refused, or null: unchecked
        ("answered_by", pa.string()),  # student | retry | repair | teacher
        ("refused_completion", pa.string()),  # the student's answer that was replaced, or null
        ("difficulty", pa.float64()),  # predicted probability that the student is wrong, or null
        ("routed_to", pa.string()),  # who answered a hard prompt: teacher, a version, or null
        ("masked", pa.string()),  # JSON: replacements by kind; null: the row was not masked
        ("created_at", pa.timestamp("ms", tz="UTC")),
    ]
)


class RequestLog:
    """A bounded queue and a writer; what does not fit or cannot be written is counted and lost."""

    def __init__(
        self,
        uri: str,
        *,
        sample: float = 1.0,
        flush_s: float = 3.0,
        max_rows: int = 4096,
        masking: MaskingConfig | None = None,
        keep_days: float = 0.0,
        on_drop: Callable[[int], None] = lambda num_rows: None,
        on_masked: Callable[[str, int], None] = lambda kind, count: None,
    ):
        """`masking` None keeps rows as they are; `keep_days` 0 keeps files for ever.

        `on_drop` hears how many rows were lost, `on_masked` what was replaced, by kind.
        """
        self._store = Store(uri)
        self._sample = sample
        self._flush_s = flush_s
        self._masking = masking
        self._keep_days = keep_days
        self._next_look = 0.0
        self._on_drop = on_drop
        self._on_masked = on_masked
        self._rows: queue.Queue[Callable[[], dict[str, Any]]] = queue.Queue(maxsize=max_rows)
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="request-log", daemon=True)
        self._thread.start()

    def add(self, make_row: Callable[[], dict[str, Any]], *, always: bool = False) -> None:
        """Take a row, made later in the writer's thread; never waits and never raises.

        `always` takes it past the sampling: an answer that was replaced is training material.
        """
        if not always and self._sample < 1.0 and random.random() >= self._sample:
            return
        try:
            self._rows.put_nowait(make_row)
        except queue.Full:
            self._drop(1)

    def close(self, *, timeout_s: float = 10.0) -> None:
        """Write what is queued and stop."""
        self._closing.set()
        self._thread.join(timeout=timeout_s)

    def _run(self) -> None:
        while not self._closing.wait(self._flush_s):
            self._flush()
            self._remove_old()
        self._flush()

    def _flush(self) -> None:
        rows: list[dict[str, Any]] = []
        num_taken = 0
        # Only what is there now: under steady load the queue would never be empty.
        for _ in range(self._rows.qsize()):
            try:
                make_row = self._rows.get_nowait()
            except queue.Empty:
                break
            num_taken += 1
            try:
                rows.append(self._masked(make_row()))
            except Exception as error:
                log.warning("a request log row is lost: %s: %s", type(error).__name__, error)
            # Masking is a millisecond of work a row: the event loop of the requests goes first.
            time.sleep(0)
        if not num_taken:
            return
        try:
            if rows:
                self._store.write_table(_file_name(), rows_table(rows, SCHEMA))
            self._drop(num_taken - len(rows))
        except Exception as error:
            # A full disk or a store that is away must cost rows, never an answer.
            log.warning("request log: %d rows lost: %s", num_taken, error)
            self._drop(num_taken)

    def _masked(self, row: dict[str, Any]) -> dict[str, Any]:
        if self._masking is None:
            return row
        result, counts = masked_row(row, self._masking)
        for kind, count in counts.items():
            self._on_masked(kind, count)
        return result

    def _remove_old(self) -> None:
        """Look for files past their days, now and then."""
        if not self._keep_days or time.monotonic() < self._next_look:
            return
        self._next_look = time.monotonic() + RETENTION_EVERY_S
        try:
            num_files = remove_old(self._store, days=self._keep_days, now=datetime.now(UTC))
        except Exception as error:
            log.warning("request log: old files were not removed: %s", error)
            return
        if num_files:
            log.info("request log: %d files older than %g days removed", num_files, self._keep_days)

    def _drop(self, num_rows: int) -> None:
        if num_rows:
            try:
                self._on_drop(num_rows)
            except Exception:
                log.exception("a dropped request log row could not be counted")


def _file_name() -> str:
    now = datetime.fromtimestamp(time.time(), UTC)
    return f"requests-{now.strftime(TIME)}-{uuid.uuid4().hex[:8]}.parquet"
