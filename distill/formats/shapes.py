"""The shapes of training rows, and the one record that all of them are read into.

A shape holds what its fields can hold and no more. What it cannot hold is a `ShapeError` that
names the field; a row is never written with something missing.

Sources of the shapes: `messages` is OpenAI's chat format; prompt/completion and preference pairs,
as text or as message lists, are the dataset formats of TRL's documentation; instruction/input/
output is Stanford Alpaca's, with the `system` and `history` columns that LLaMA-Factory documents;
conversations of from/value is ShareGPT's.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Any, TypedDict

from cluster.errors import DataError

Row = dict[str, Any]
Message = dict[str, Any]
"""`role`, `content`, and what else a chat API allows on a message (`name`, `tool_calls`, …)."""


class Record(TypedDict):
    """One training example, whatever shape it came in.

    `messages`: the prompt, oldest first. `completion`: the answer as text; None for a prompt
    without one, and for an answer that is more than text (tool calls), which then is the last
    message. `rejected`: the worse answer of a preference pair. `variables`: what the last user
    message was put together from (Alpaca's instruction and input). `metadata`: every other column
    of the row. `id`: the row's own id, or "".
    """

    messages: list[Message]
    completion: str | None
    rejected: str | None
    variables: dict[str, str]
    metadata: dict[str, Any]
    id: str


class Shape(StrEnum):
    """A shape's name, as `--to` takes it. The `-chat` ones hold message lists in place of text."""

    MESSAGES = "messages"
    PROMPT_COMPLETION = "prompt-completion"
    PROMPT_COMPLETION_CHAT = "prompt-completion-chat"
    ALPACA = "alpaca"
    SHAREGPT = "sharegpt"
    PREFERENCE = "preference"
    PREFERENCE_CHAT = "preference-chat"


class ShapeError(DataError):
    """A row has no known shape, or holds something that the shape asked for has no place for."""


FIELDS: dict[Shape, tuple[str, ...]] = {
    Shape.MESSAGES: ("messages",),
    Shape.PROMPT_COMPLETION: ("prompt", "completion"),
    Shape.PROMPT_COMPLETION_CHAT: ("prompt", "completion"),
    Shape.ALPACA: ("instruction", "input", "output", "system", "history"),
    Shape.SHAREGPT: ("conversations", "system"),
    Shape.PREFERENCE: ("prompt", "chosen", "rejected"),
    Shape.PREFERENCE_CHAT: ("prompt", "chosen", "rejected"),
}
"""The columns that a shape reads; every other column of a row is metadata."""

CHAT_ROLES = ("system", "developer", "user", "assistant", "tool", "function")
SYSTEM_ROLES = ("system", "developer")
ROLE_OF = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
FROM_OF = {"user": "human", "assistant": "gpt", "system": "system"}
# ShareGPT's turns of tool use. They have no one counterpart in a chat API and stay in ShareGPT.
SHAREGPT_TOOL_TURNS = ("tool", "observation", "function_call")
TOOL_KEYS = ("tool_calls", "tool_call_id", "function_call")
# Columns without which a row's text means something else.
MEANING = ("tools", "functions", "image", "images", "audio", "audios", "video", "videos")
TEXT_SHAPES = (Shape.PROMPT_COMPLETION, Shape.ALPACA, Shape.PREFERENCE)
KNOWN = (
    "messages; prompt and completion; instruction, input and output; "
    "conversations with from and value; prompt, chosen and rejected"
)


def recognise(row: Row) -> Shape:
    """Tell a row's shape from its keys; columns that are null count as absent.

    Raises ShapeError, with the keys found, when there is none.
    """
    has = {key for key, value in row.items() if value is not None}
    if {"chosen", "rejected"} <= has:
        chat = any(isinstance(row[name], list) for name in ("chosen", "rejected"))
        chat = chat or isinstance(row.get("prompt"), list)
        return Shape.PREFERENCE_CHAT if chat else Shape.PREFERENCE
    if "messages" in has:
        return Shape.MESSAGES
    if "conversations" in has:
        turns = row["conversations"]
        first = turns[0] if isinstance(turns, list) and turns else None
        # Some data sets call a list of role and content by ShareGPT's name.
        by_role = isinstance(first, dict) and "role" in first and "from" not in first
        return Shape.MESSAGES if by_role else Shape.SHAREGPT
    if {"instruction", "output"} <= has:
        return Shape.ALPACA
    if {"chosen", "rejected"} & has:
        (missing,) = {"chosen", "rejected"} - has
        raise ShapeError(f"{missing}: is missing; a preference pair has chosen and rejected")
    if "prompt" in has:
        chat = any(isinstance(row.get(name), list) for name in ("prompt", "completion"))
        return Shape.PROMPT_COMPLETION_CHAT if chat else Shape.PROMPT_COMPLETION
    shown = ", ".join(sorted(map(str, row))) or "nothing"
    raise ShapeError(f"no known shape: the row has {shown}; rows have {KNOWN}")


def drop(record: Record, names: Sequence[str]) -> list[str]:
    """Take parts out of a record in place; return the names that it had.

    A name is `rejected`, `system` (every system message), `extra` (all metadata), or a column.
    """
    found: list[str] = []
    for name in names:
        if name == "rejected" and record["rejected"] is not None:
            record["rejected"] = None
        elif name == "system" and any(m["role"] in SYSTEM_ROLES for m in record["messages"]):
            record["messages"] = [m for m in record["messages"] if m["role"] not in SYSTEM_ROLES]
        elif name == "extra" and record["metadata"]:
            found += [column for column in record["metadata"] if column not in names]
            record["metadata"] = {}
            continue
        elif name in record["metadata"]:
            del record["metadata"][name]
        else:
            continue
        found.append(name)
    return found


def alpaca_prompt(instruction: str, given: str) -> str:
    """Put Alpaca's two fields into one message, a line apart as LLaMA-Factory does."""
    return f"{instruction}\n{given}" if given else instruction
