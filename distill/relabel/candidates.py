"""Requests of the log as prompts that may be taught: readable, masked, each once, none known."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.masking import MaskingConfig, mask_texts
from distill.records import example_id
from distill.tasks.task import Task
from distill.tasks.variables import read_variables

Row = dict[str, Any]


@dataclass
class Candidates:
    """What may be picked from, and where the other rows went."""

    rows: list[Row] = field(default_factory=list)
    """Prompts (`distill.records.PROMPT`, split train) with `student`, the student's answer, and
    `mean_logprob` and `quality` as the log has them, and `routed_to` where it was not asked."""
    left_out: Counter[str] = field(default_factory=Counter)
    """`unusable`, `known` (trained, held out or relabelled before) and `duplicate`."""
    masked: Counter[str] = field(default_factory=Counter)
    """What was replaced on top of what the server had masked, by kind."""


def candidates(
    task: Task, rows: Sequence[Row], *, known: Collection[str], masking: MaskingConfig
) -> Candidates:
    """Mask the rows of a window once more and keep what is new.

    `known` are ids of prompts that need no answer. Masking what is masked changes nothing, so a row
    that is returned has passed the mask whatever the server was told.
    """
    found = Candidates()
    seen: set[str] = set()
    for row in rows:
        messages = row["messages"]
        if not _is_prompt(messages):
            found.left_out["unusable"] += 1
            continue
        said = [row["student"], row.get("variables") or ""]
        texts, counts = mask_texts([*(message["content"] for message in messages), *said], masking)
        *contents, student, given = texts
        clean = [
            {"role": message["role"], "content": content}
            for message, content in zip(messages, contents, strict=True)
        ]
        identity = example_id(clean)
        # White space and case make no other question.
        plain = " ".join(clean[-1]["content"].casefold().split())
        if identity in known or plain in seen:
            found.left_out["known" if identity in known else "duplicate"] += 1
            continue
        seen.add(plain)
        found.masked += counts
        variables = read_variables(task, clean, given=given)
        found.rows.append(
            {
                "example_id": identity,
                "split": "train",
                "prompt_id": "",
                "messages": clean,
                "variables": json.dumps(variables or {}, ensure_ascii=False),
                "reference": "",
                "stratum": "",
                "student": student,
                "mean_logprob": row.get("mean_logprob"),
                "quality": row.get("quality"),
                # Of the larger adapter's own answers this says nothing.
                "routed_to": None if row["student"] else row.get("routed_to"),
            }
        )
    return found


def _is_prompt(messages: Sequence[Row]) -> bool:
    if not all(message.keys() == {"role", "content"} for message in messages):
        return False
    last = messages[-1]
    return last["role"] == "user" and bool(last["content"].strip())
