"""Where a run keeps its answers, and how they are read back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from cluster.storage import Store
from distill.teach.config import AnyTeacher, ProgramTeacher, ReplayTeacher
from distill.teach.identity import request_key

ANSWERS, FAILED, TIMINGS = "completions/answers.parquet", "failed.parquet", "timings.parquet"
CANDIDATES = "candidates.parquet"

Row = dict[str, Any]


def read_completions(prompts: Sequence[Row], config: AnyTeacher, *, store: Store) -> list[Row]:
    """Answers on disk for these prompts and this teacher, in the prompts' order."""
    if not store.names("completions"):
        return []
    # A model's file was made for exactly these prompts; a program's may hold answers to prompts
    # that changed since.
    computed = config if isinstance(config, (ProgramTeacher, ReplayTeacher)) else None
    answered = {
        row["request_key" if computed else "example_id"]: row
        for row in store.read_rows("completions")
        if not row["error"]
    }
    timings = store.read_rows(TIMINGS) if store.exists(TIMINGS) else []
    latencies = {row["request_key"]: row["latency_s"] for row in timings}
    rows = []
    for prompt in prompts:
        key = request_key(prompt, computed) if computed else prompt["example_id"]
        found = answered.get(key)
        if found is not None:
            latency_s = latencies.get(found["request_key"], found["latency_s"])
            own = {name: prompt[name] for name in ("split", "example_id")}
            rows.append({**found, "latency_s": latency_s, **own})
    return rows
