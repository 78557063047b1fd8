"""The request log: rows arrive, and nothing that happens to it reaches a request."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from cluster.storage import Store
from serve.request_log import SCHEMA, RequestLog


def row(number: int) -> dict[str, Any]:
    return {
        "request_id": f"r{number}",
        "example_id": "0" * 16,
        "model_asked": "reconcile",
        "model_answered": "reconcile@v1",
        "route": "chat",
        "messages": "[]",
        "completion": "{}",
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "latency_s": 0.5,
        "ttft_s": None,
        "status": 200,
        "created_at": 1_700_000_000_000,
    }


def test_rows_are_written_while_it_runs_and_at_the_end(tmp_path: Path) -> None:
    log = RequestLog(str(tmp_path / "log"), flush_s=0.05)
    log.add(lambda: row(1))
    deadline = time.monotonic() + 5
    while not list((tmp_path / "log").glob("*.parquet")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    log.add(lambda: row(2))
    log.close()
    table = Store(tmp_path).read_table("log")
    assert table.schema.equals(SCHEMA)
    assert table["request_id"].to_pylist() == ["r1", "r2"]
    assert table["created_at"].to_pylist()[0].year == 2023


def test_a_full_queue_drops_and_counts(tmp_path: Path) -> None:
    dropped: list[int] = []
    log = RequestLog(str(tmp_path / "log"), flush_s=60, max_rows=10, on_drop=dropped.append)
    started = time.monotonic()
    for number in range(25):
        log.add(lambda number=number: row(number))  # type: ignore[misc]
    assert time.monotonic() - started < 1
    assert sum(dropped) == 15
    log.close()
    assert Store(tmp_path).read_table("log").num_rows == 10


def test_a_store_that_cannot_be_written_costs_rows_only(tmp_path: Path) -> None:
    (tmp_path / "log").write_text("a file where the folder should be")
    dropped: list[int] = []
    log = RequestLog(str(tmp_path / "log"), flush_s=60, on_drop=dropped.append)
    log.add(lambda: row(1))
    log.close()
    assert dropped == [1]


def test_a_row_that_cannot_be_made_is_counted(tmp_path: Path) -> None:
    dropped: list[int] = []
    log = RequestLog(str(tmp_path / "log"), flush_s=60, on_drop=dropped.append)

    def broken() -> dict[str, Any]:
        raise KeyError("role")

    log.add(broken)
    log.add(lambda: row(1))
    log.close()
    assert dropped == [1]
    assert Store(tmp_path).read_table("log").num_rows == 1


def test_a_sample_is_taken(tmp_path: Path) -> None:
    log = RequestLog(str(tmp_path / "log"), sample=0.2, flush_s=60, max_rows=10_000)
    for number in range(2000):
        log.add(lambda number=number: row(number))  # type: ignore[misc]
    log.close()
    # Six standard deviations of a binomial of 2000 draws at 0.2 are 107.
    assert 290 < Store(tmp_path).read_table("log").num_rows < 510
