"""The request log: rows arrive, and nothing that happens to it reaches a request."""

from __future__ import annotations

import io
import json
import random
import shutil
import subprocess
import time
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from s3_server import s3_server

from cluster.example import example_id
from cluster.masking import MaskingConfig
from cluster.storage import Store
from serve.log_retention import remove_old
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


def asked(number: int, text: str, **changes: Any) -> dict[str, Any]:
    messages = [{"role": "system", "content": "Sort it."}, {"role": "user", "content": text}]
    return {
        **row(number),
        "messages": json.dumps(messages),
        "example_id": example_id(messages),
        **changes,
    }


def test_personal_data_is_masked_before_it_is_written_and_counted_by_kind(tmp_path: Path) -> None:
    counted: Counter[str] = Counter()
    log = RequestLog(
        str(tmp_path / "log"),
        flush_s=60,
        masking=MaskingConfig(),
        on_masked=lambda kind, count: counted.update({kind: count}),
    )
    text = "ann@example.com paid with 4111 1111 1111 1111"
    log.add(lambda: asked(1, text, completion='{"reply_to": "ann@example.com"}'))
    log.add(lambda: asked(2, "Nothing to hide on 2026-05-08."))
    log.close()
    first, second = Store(tmp_path).read_rows("log")
    content = json.loads(first["messages"])[1]["content"]
    # The answer still refers to what its prompt says.
    assert content == "<EMAIL_1> paid with <CARD_1>"
    assert first["completion"] == '{"reply_to": "<EMAIL_1>"}'
    assert json.loads(first["masked"]) == {"EMAIL": 2, "CARD": 1}
    assert first["example_id"] == example_id(json.loads(first["messages"]))
    assert second["example_id"] == asked(2, "Nothing to hide on 2026-05-08.")["example_id"]
    assert json.loads(second["masked"]) == {}
    assert counted == {"EMAIL": 2, "CARD": 1}
    (file,) = (tmp_path / "log").iterdir()
    assert b"ann@" not in file.read_bytes()


def test_what_a_refused_request_may_name_freely_is_masked_too(tmp_path: Path) -> None:
    log = RequestLog(str(tmp_path / "log"), flush_s=60, masking=MaskingConfig())
    messages = json.dumps([{"role": "ann@example.com", "content": "hello"}])
    log.add(lambda: {**row(1), "messages": messages, "model_asked": "bob@example.com"})
    log.close()
    (written,) = Store(tmp_path).read_rows("log")
    assert json.loads(written["messages"])[0]["role"] == "other"
    assert written["model_asked"] == "<EMAIL_1>"


def test_a_row_too_long_to_mask_is_dropped_and_counted(tmp_path: Path) -> None:
    dropped: list[int] = []
    log = RequestLog(
        str(tmp_path / "log"), flush_s=60, masking=MaskingConfig(), on_drop=dropped.append
    )
    log.add(lambda: asked(1, "x" * 200_000))
    log.close()
    assert dropped == [1]
    assert not (tmp_path / "log").exists()


def test_old_files_of_the_log_are_removed_and_nobody_elses(tmp_path: Path) -> None:
    folder = tmp_path / "log"
    folder.mkdir()
    old = "requests-20200101T000000000000-0123abcd.parquet"
    kept = ["notes.txt", "requests-mine.parquet", "answers-20200101T000000000000-0123abcd.parquet"]
    for name in (old, *kept):
        (folder / name).write_text("")
    log = RequestLog(str(folder), flush_s=0.05, keep_days=30)
    deadline = time.monotonic() + 5
    while (folder / old).exists():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    log.add(lambda: row(1))
    log.close()
    names = {path.name for path in folder.iterdir()}
    assert names >= set(kept)
    assert len(names) == len(kept) + 1


def test_days_are_counted_to_the_second(tmp_path: Path) -> None:
    now = datetime(2026, 5, 31, tzinfo=UTC)
    names = [
        "requests-20260430T235959000000-0123abcd.parquet",
        "requests-20260501T000001000000-0123abcd.parquet",
    ]
    for name in names:
        (tmp_path / name).write_text("")
    assert remove_old(Store(tmp_path), days=30, now=now) == 1
    assert [path.name for path in tmp_path.iterdir()] == names[1:]


def test_variables_that_a_request_brought_are_masked_with_its_prompt(tmp_path: Path) -> None:
    log = RequestLog(str(tmp_path / "log"), flush_s=60, masking=MaskingConfig())
    given = json.dumps({"customer": "ann@example.com", "amount": "12.00"})
    log.add(lambda: asked(1, "Refund bob@example.com and ann@example.com", variables=given))
    log.close()
    (written,) = Store(tmp_path).read_rows("log")
    assert json.loads(written["variables"]) == {"customer": "<EMAIL_2>", "amount": "12.00"}


def test_a_full_disk_drops_and_counts_and_no_request_waits(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(command, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    dropped: list[int] = []
    try:
        log = RequestLog(str(disk / "log"), flush_s=0.02, max_rows=200, on_drop=dropped.append)
        slowest = 0.0
        num_rows = 1000
        for number in range(num_rows):
            started = time.perf_counter()
            text = random.Random(number).randbytes(600).hex()
            log.add(lambda number=number, text=text: asked(number, text))  # type: ignore[misc]
            slowest = max(slowest, time.perf_counter() - started)
            time.sleep(0.0005)
        log.close()
        written = Store(disk).read_table("log").num_rows if (disk / "log").exists() else 0
        assert sum(dropped) > 0
        assert written + sum(dropped) == num_rows
        # The writer holds the interpreter for moments on a busy machine; a disk takes no part.
        assert slowest < 0.25
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=False)


@pytest.mark.slow
def test_a_store_that_hangs_drops_and_counts_and_no_request_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An object store of which every request takes 2 s, over HTTP."""
    dropped: list[int] = []
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    with s3_server() as server:
        server.delay_s = 2.0
        uri = f"s3://bucket/log?{server.query}"
        log = RequestLog(uri, flush_s=0.02, max_rows=50, on_drop=dropped.append)
        log.add(lambda: row(0))
        time.sleep(0.2)  # the writer is in the store now
        started = time.perf_counter()
        for number in range(1, 501):
            log.add(lambda number=number: row(number))  # type: ignore[misc]
        assert time.perf_counter() - started < 0.5
        server.delay_s = 0.0
        log.close(timeout_s=30)
        files = [data for name, data in server.objects.items() if name.endswith(".parquet")]
        written = sum(pq.read_metadata(io.BytesIO(data)).num_rows for data in files)
    assert sum(dropped) >= 400
    assert written + sum(dropped) == 501
