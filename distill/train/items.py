"""What a method draws into a step, made from rows: one sequence, a record's tasks, or a pair."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any

from cluster.errors import DataError
from cluster.storage import digest_of
from distill.teach.reasoning import CLOSE, OPEN
from distill.train.config import TrainConfig
from distill.train.encode import Encoded, Item, encode_each

LABEL_TASK = "Give only the label, without reasons."
RATIONALE_TASK = "Give only the reasoning that leads to the answer."
"""What a `multitask` prompt ends with; Hsieh et al. 2023 mark the tasks by a prefix. At the end,
the rest of the prompt is shared by all three and computed once."""


LEARNT = ("example_id", "messages", "completion", "rationale", "label", "chosen", "rejected")
"""Columns of a row that some method reads."""


@dataclass
class Items:
    """Items of a split, and the ids of the records that were left out, by reason."""

    items: list[Item] = field(default_factory=list)
    too_long: list[str] = field(default_factory=list)
    without_rationale: list[str] = field(default_factory=list)
    without_loss: list[str] = field(default_factory=list)


def make_items(
    tokenizer: Any, rows: Sequence[dict[str, Any]], *, train: TrainConfig, max_length: int
) -> Items:
    """Encode rows for `train.method`; an item of which any sequence is too long is left out.

    Rows have `example_id` and `messages`; and `completion`; for `cot` and `multitask` also
    `rationale`, for `multitask` also `label`; for `dpo` `chosen` and `rejected` instead.
    """
    made = Items()
    given = list(rows)
    if train.method == "cot":
        made.without_rationale = [r["example_id"] for r in given if not r.get("rationale")]
        given = [row for row in given if row.get("rationale")]
    for number, row in enumerate(given):
        if train.method == "dpo" and row["chosen"] == row["rejected"]:
            raise DataError(
                f"pair {row['example_id']}: chosen and rejected are the same text; a pair needs a "
                f"better and a worse answer (row {number + 1})"
            )
    per_row = [sequences_of(row, train.method) for row in given]
    encoded = iter(_encode(tokenizer, [part for parts in per_row for part in parts]))
    for row, parts in zip(given, per_row, strict=True):
        sequences = tuple(islice(encoded, len(parts)))
        if any(len(sequence.tokens) > max_length for sequence in sequences):
            made.too_long.append(row["example_id"])
        elif not all(sequence.num_completion for sequence in sequences):
            made.without_loss.append(row["example_id"])
        else:
            made.items.append(Item(row["example_id"], sequences))
    return made


def rows_digest(*splits: Sequence[dict[str, Any]]) -> str:
    """Digest of everything in these rows that a method learns from, and of their order."""
    return digest_of([[[row.get(name) for name in LEARNT] for row in rows] for rows in splits])


def sequences_of(row: dict[str, Any], method: str) -> list[dict[str, Any]]:
    """Return what is encoded for a row: `example_id`, `messages`, `completion`, `kind`."""
    plain = {"example_id": row["example_id"], "messages": row["messages"], "kind": "answer"}
    if method == "dpo":
        return [plain | {"completion": row["chosen"]}, plain | {"completion": row["rejected"]}]
    if method == "cot":
        reasoned = f"{OPEN}\n{row['rationale']}\n{CLOSE}\n"
        return [plain | {"completion": reasoned + row["completion"], "reasoning": reasoned}]
    answer = plain | {"completion": row["completion"]}
    if method != "multitask":
        return [answer]
    further = [
        _task(row, ask, text=str(row.get(kind) or ""), kind=kind)
        for kind, ask in (("label", LABEL_TASK), ("rationale", RATIONALE_TASK))
        if row.get(kind)
    ]
    return [answer, *further]


def _task(row: dict[str, Any], ask: str, *, text: str, kind: str) -> dict[str, Any]:
    *before, last = row["messages"]
    asked = {"role": last["role"], "content": f"{last['content']}\n\n{ask}"}
    return {
        "example_id": row["example_id"],
        "messages": [*before, asked],
        "completion": text,
        "kind": kind,
    }


def _encode(tokenizer: Any, sequences: Sequence[dict[str, Any]]) -> list[Encoded]:
    return [
        replace(
            encoded,
            kind=sequence["kind"],
            num_rationale=_num_reasoning(tokenizer, encoded, sequence.get("reasoning", "")),
        )
        for encoded, sequence in zip(encode_each(tokenizer, sequences), sequences, strict=True)
    ]


def _num_reasoning(tokenizer: Any, encoded: Encoded, reasoning: str) -> int:
    """How many of the completion's first tokens spell the reasoning block."""
    if not reasoning:
        return 0
    tokens = encoded.tokens[encoded.num_prompt :]
    # By text: a token that spans the boundary belongs to what it begins.
    low, high = 0, len(tokens)
    while low < high:
        middle = (low + high) // 2
        if len(tokenizer.decode(tokens[: middle + 1])) <= len(reasoning):
            low = middle + 1
        else:
            high = middle
    return low
