"""Multi-task records: one example as the label, the reasoning and the whole answer. Pure.

Hsieh et al. 2023, "Distilling Step-by-Step!", section 3.2: the student learns to predict the label
and to give the rationale as two tasks over one prompt; the response is what it says when served.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from distill.records import MESSAGES
from distill.tasks.task import Task

MULTITASK = pa.schema(
    [
        ("example_id", pa.string()),
        ("messages", MESSAGES),
        ("label", pa.string()),  # the headline field's value; "" for a task without scored fields
        ("rationale", pa.string()),  # "" where there is none, or none that holds
        ("response", pa.string()),  # the whole answer
    ]
)


def multitask_records(rows: Sequence[dict[str, Any]], *, task: Task) -> list[dict[str, Any]]:
    """Return a record (`MULTITASK`) for each curated row, in order."""
    records = []
    for row in rows:
        answer = task.parse(row["completion"]).answer or {}
        records.append(
            {
                "example_id": row["example_id"],
                "messages": row["messages"],
                "label": str(answer.get(task.headline, "")) if task.headline else "",
                "rationale": row.get("rationale") or "",
                "response": row["completion"],
            }
        )
    return records
