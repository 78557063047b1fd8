"""A row of the request log without personal data; what was replaced is counted by kind."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from cluster.example import example_id
from cluster.masking import MaskingConfig, mask_texts

TEXTS = ("completion", "refused_completion", "variables", "request_id", "model_asked")
"""Columns of text that a client or a model wrote, beside the messages."""
ROLES = {"system", "developer", "user", "assistant", "tool", "function"}
MAX_CHARS = 131_072
"""Longest row that is masked: the search holds the interpreter, and requests must not wait."""


def masked_row(row: dict[str, Any], config: MaskingConfig) -> tuple[dict[str, Any], Counter[str]]:
    """Return the row with everything masked, and how often each kind was.

    One value has one placeholder in the whole row, so an answer still refers to what its prompt
    says. `example_id` becomes that of the masked prompt: a short secret can be guessed from a
    digest. Without a finding it stays what it was. ValueError for a row above `MAX_CHARS`.
    """
    messages = json.loads(row["messages"])
    for message in messages:
        # A refused request may name any role.
        message["role"] = message["role"] if message["role"] in ROLES else "other"
    named = [name for name in TEXTS if row.get(name)]
    texts = [*(message["content"] for message in messages), *(row[name] for name in named)]
    num_chars = sum(map(len, texts))
    if num_chars > MAX_CHARS:
        raise ValueError(f"{num_chars} characters are too many to mask; at most {MAX_CHARS}")
    texts, counts = mask_texts(texts, config)
    result = {**row, "masked": json.dumps(counts)}
    if not counts:
        return result, counts
    clean = [{**m, "content": text} for m, text in zip(messages, texts, strict=False)]
    result |= dict(zip(named, texts[len(messages) :], strict=True))
    result["messages"] = json.dumps(clean, ensure_ascii=False)
    result["example_id"] = example_id(clean)
    return result, counts
