"""Chain of thought: ask for the reasoning before the answer, and take the two apart. Pure.

The reasoning is worth keeping only where it led to a right answer (rejection sampling of
rationales: Zelikman et al. 2022, STaR); that is decided in `distill.curate.rationales`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from distill.records import Message

OPEN, CLOSE = "<reasoning>", "</reasoning>"
INSTRUCTION = (
    f"First reason step by step between {OPEN} and {CLOSE}. After {CLOSE} give the answer in the "
    "required form and nothing else."
)
# Reasoning models mark their own thoughts in this way when a server does not take them out.
_REASONED = re.compile(r"\s*<(reasoning|think)>(.*?)</\1>\s*(.*)", re.DOTALL | re.IGNORECASE)


def with_reasoning(messages: Sequence[Message]) -> list[Message]:
    """Return the messages with the request to reason first, at the end of the last one."""
    *before, last = messages
    return [*before, {"role": last["role"], "content": f"{last['content']}\n\n{INSTRUCTION}"}]


def split_reasoning(text: str) -> tuple[str, str]:
    """Return (rationale, answer); without the tags everything is the answer."""
    found = _REASONED.fullmatch(text)
    return (found[2].strip(), found[3].strip()) if found else ("", text.strip())
