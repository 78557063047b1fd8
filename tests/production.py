"""A run's held-out prompts and its production log, made from the reconcile task's own scenarios."""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from cluster.example import example_id
from distill.tasks.reconcile.rules import answer
from distill.tasks.reconcile.scenarios import scenarios
from distill.tasks.task import Task
from serve.request_log import SCHEMA

START = datetime(2026, 5, 1, tzinfo=UTC)
Row = dict[str, Any]
Change = Callable[[Row], Row]
"""Takes a scenario's variables and may change them."""


def asked(
    task: Task, count: int, *, seed: int, keep: Callable[[Row], bool] = lambda variables: True
) -> list[Row]:
    """Prompts with the right answer, in random order."""
    # Whole rounds of the scenarios, so that what is drawn has their proportions.
    drawn = [variables for variables in scenarios(-(-count // 50) * 50, seed) if keep(variables)]
    while len(drawn) < count:
        seed += 10_000
        drawn += [variables for variables in scenarios(500, seed) if keep(variables)]
    random.Random(seed).shuffle(drawn)
    found = []
    for variables in drawn[:count]:
        messages = task.messages(variables)
        found.append(
            {
                "example_id": example_id(messages),
                "messages": messages,
                "completion": answer(variables),
                "variables": variables,
            }
        )
    return found


def log_row(number: int, row: Row, **changes: Any) -> Row:
    """A row as the gateway writes it, seven minutes after the one before."""
    return {
        "request_id": f"r{number}",
        "example_id": row["example_id"],
        "model_asked": "reconcile",
        "model_answered": "reconcile@v1",
        "route": "chat",
        "messages": json.dumps(row["messages"]),
        "completion": row["completion"],
        "prompt_tokens": 200,
        "completion_tokens": 40,
        "latency_s": 0.5,
        "ttft_s": None,
        "status": 200,
        "masked": "{}",
        "created_at": START + timedelta(minutes=7 * number),
        **changes,
    }


def write_log(folder: Path, rows: Sequence[Row], *, name: str = "requests-1.parquet") -> Path:
    """Write rows as one file of the server's log."""
    folder.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist(list(rows), schema=SCHEMA), folder / name)
    return folder
