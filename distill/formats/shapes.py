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
    if {"chosen", "rejected"} & has:
        for name in ("chosen", "rejected"):
            if name not in has:
                raise ShapeError(f"{name}: is missing; a preference pair has chosen and rejected")
        chat = any(isinstance(row.get(name), list) for name in ("prompt", "chosen", "rejected"))
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
    if "prompt" in has:
        chat = any(isinstance(row.get(name), list) for name in ("prompt", "completion"))
        return Shape.PROMPT_COMPLETION_CHAT if chat else Shape.PROMPT_COMPLETION
    shown = ", ".join(sorted(map(str, row))) or "nothing"
    raise ShapeError(f"no known shape: the row has {shown}; rows have {KNOWN}")


def read(row: Row, shape: Shape) -> Record:
    """Read a row of a shape.

    Raises ShapeError that names the field when the row does not fit the shape.
    """
    match shape:
        case Shape.MESSAGES:
            field = "messages" if row.get("messages") is not None else "conversations"
            return _from_turns(_messages(row, field), row, own=(field,))
        case Shape.SHAREGPT:
            return _from_turns(_sharegpt(row), row, own=FIELDS[shape])
        case Shape.ALPACA:
            return _read_alpaca(row)
        case Shape.PROMPT_COMPLETION | Shape.PROMPT_COMPLETION_CHAT:
            return _read_prompt_completion(row)
        case Shape.PREFERENCE:
            if row.get("prompt") is None:
                raise ShapeError(
                    "prompt: is missing, and where it ends within chosen and rejected cannot be "
                    "told from text; split it off, or give chosen and rejected as message lists"
                )
            answers = _text_field(row, "chosen"), _text_field(row, "rejected")
            prompt = [_user(_text_field(row, "prompt"))]
            return _record(prompt, answers[0], row, own=FIELDS[shape], rejected=answers[1])
        case Shape.PREFERENCE_CHAT:
            return _read_preference_chat(row)


def write(record: Record, shape: Shape) -> Row:
    """Write a record in a shape; its id and metadata become columns beside the shape's own.

    Raises ShapeError that names the field for what the shape has no place for.
    """
    row = {**_identity(record), **_body(record, shape), **_metadata(record, shape)}
    if not _reads_as(row, shape):
        extra = [name for name in record["metadata"] if any(name in f for f in FIELDS.values())]
        raise ShapeError(
            f"{', '.join(extra)}: beside these columns the row would not be read as {shape}; "
            f"leave them out with --drop {' --drop '.join(extra)}"
        )
    return row


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


# Reading


def _record(
    messages: list[Message],
    completion: str | None,
    row: Row,
    *,
    own: Sequence[str],
    rejected: str | None = None,
    variables: dict[str, str] | None = None,
) -> Record:
    metadata = {key: value for key, value in row.items() if key not in own}
    # An id of another type stays a column, so that it is written as it was.
    has_id = isinstance(metadata.get("id"), str) and metadata["id"] != ""
    return Record(
        messages=messages,
        completion=completion,
        rejected=rejected,
        variables=variables or {},
        id=metadata.pop("id") if has_id else "",
        metadata=metadata,
    )


def _from_turns(turns: list[Message], row: Row, *, own: Sequence[str]) -> Record:
    """Split a dialogue before its last answer; an answer that is more than text stays in it."""
    if turns[-1]["role"] == "assistant" and _is_text(turns[-1]):
        return _record(turns[:-1], turns[-1]["content"], row, own=own)
    return _record(turns, None, row, own=own)


def _messages(row: Row, field: str) -> list[Message]:
    """Check a list of chat messages; keys that are null, as Parquet fills them in, go."""
    found = row.get(field)
    if not isinstance(found, list) or not found:
        raise ShapeError(f"{field}: must be a list of messages with role and content")
    messages: list[Message] = []
    for index, entry in enumerate(found):
        where = f"{field}[{index}]"
        if not isinstance(entry, dict):
            raise ShapeError(f"{where}: a {type(entry).__name__}, not an object")
        if entry.get("role") not in CHAT_ROLES:
            roles = ", ".join(CHAT_ROLES)
            raise ShapeError(f"{where}.role: {entry.get('role')!r} must be one of {roles}")
        rest = {k: v for k, v in entry.items() if v is not None and k not in ("role", "content")}
        content = entry.get("content")
        if content is None and not rest.keys() & set(TOOL_KEYS):
            raise ShapeError(f"{where}.content: is missing")
        if not isinstance(content, (str, list, type(None))):
            raise ShapeError(f"{where}.content: a {type(content).__name__}, not text or parts")
        messages.append({"role": entry["role"], "content": content, **rest})
    return messages


def _sharegpt(row: Row) -> list[Message]:
    found = row["conversations"]
    if not isinstance(found, list) or not found:
        raise ShapeError("conversations: must be a list of turns with from and value")
    messages: list[Message] = []
    for index, entry in enumerate(found):
        where = f"conversations[{index}]"
        if not isinstance(entry, dict) or not isinstance(entry.get("value"), str):
            raise ShapeError(f"{where}.value: must be text")
        role = ROLE_OF.get(str(entry.get("from")), str(entry.get("from")))
        if role not in (*FROM_OF, *SHAREGPT_TOOL_TURNS):
            known = ", ".join([*ROLE_OF, *SHAREGPT_TOOL_TURNS])
            raise ShapeError(f"{where}.from: {entry.get('from')!r} must be one of {known}")
        rest = {k: v for k, v in entry.items() if v is not None and k not in ("from", "value")}
        if rest.keys() & {"role", "content"}:
            raise ShapeError(f"{where}: has role or content beside from and value; keep one pair")
        messages.append({"role": role, "content": entry["value"], **rest})
    system = row.get("system")
    if system:
        if messages[0]["role"] == "system":
            raise ShapeError("system: the conversation begins with a system turn as well")
        messages.insert(0, {"role": "system", "content": _text_field(row, "system")})
    return messages


def _read_alpaca(row: Row) -> Record:
    instruction = _text_field(row, "instruction")
    given = "" if row.get("input") is None else _text_field(row, "input")
    system = "" if row.get("system") is None else _text_field(row, "system")
    messages: list[Message] = [{"role": "system", "content": system}] if system else []
    for index, turn in enumerate(row.get("history") or []):
        if not (isinstance(turn, list) and list(map(type, turn)) == [str, str]):
            raise ShapeError(f"history[{index}]: must be a pair of texts, [instruction, answer]")
        messages += [_user(turn[0]), {"role": "assistant", "content": turn[1]}]
    return _record(
        [*messages, _user(_joined(instruction, given))],
        _text_field(row, "output"),
        row,
        own=FIELDS[Shape.ALPACA],
        variables={"instruction": instruction, "input": given},
    )


def _joined(instruction: str, given: str) -> str:
    """Put Alpaca's two fields into one message, a line apart as LLaMA-Factory does."""
    return f"{instruction}\n{given}" if given else instruction


def _read_prompt_completion(row: Row) -> Record:
    own = FIELDS[Shape.PROMPT_COMPLETION]
    if isinstance(row.get("label"), bool):
        raise ShapeError(
            "label: true and false mark single answers as good or bad (unpaired preference data, "
            "KTO); trained on as it is, bad answers would be learned. Keep the rows with true "
            "and rename or remove the column"
        )
    prompt = _prompt(row)
    answer = row.get("completion")
    if isinstance(answer, list):
        last = _one_answer(row, "completion", after=[])
        return _from_turns([*prompt, last], row, own=own)
    if answer is None and prompt[-1]["role"] == "assistant":
        raise ShapeError("completion: is missing, and prompt ends with the assistant's turn")
    return _record(prompt, None if answer is None else _text_field(row, "completion"), row, own=own)


def _read_preference_chat(row: Row) -> Record:
    prompt = [] if row.get("prompt") is None else _prompt(row)
    if not prompt or isinstance(row["chosen"], list):
        opening = _messages(row, "chosen")[:-1]
        if not prompt or (opening and _ends_with(opening, prompt)):
            # The prompt is (also) the common beginning of both dialogues.
            prompt = opening
    chosen = _one_answer(row, "chosen", after=prompt)
    rejected = _one_answer(row, "rejected", after=prompt)
    for name, answer in (("chosen", chosen), ("rejected", rejected)):
        if not _is_text(answer):
            raise ShapeError(f"{name}: the answer must be text and nothing else")
    own = FIELDS[Shape.PREFERENCE_CHAT]
    return _record(prompt, chosen["content"], row, own=own, rejected=rejected["content"])


def _ends_with(opening: list[Message], prompt: list[Message]) -> bool:
    """Whether a prompt is the last turns of a dialogue's opening, or its first question."""
    return opening[-len(prompt) :] == prompt or prompt == [
        next((m for m in opening if m["role"] == "user"), None)
    ]


def _prompt(row: Row) -> list[Message]:
    if isinstance(row.get("prompt"), list):
        return _messages(row, "prompt")
    return [_user(_text_field(row, "prompt"))]


def _one_answer(row: Row, field: str, *, after: list[Message]) -> Message:
    """Return the one assistant message in a column, alone or behind a repeated prompt."""
    if isinstance(row[field], str):
        return {"role": "assistant", "content": row[field]}
    turns = _messages(row, field)
    if len(turns) > 1 and turns[:-1] != after:
        raise ShapeError(
            f"{field}: has {len(turns)} messages; expected the answer alone, "
            "or behind the very messages of the prompt"
        )
    if turns[-1]["role"] != "assistant":
        raise ShapeError(f"{field}: its last message is from {turns[-1]['role']!r}, no assistant")
    return turns[-1]


def _text_field(row: Row, field: str) -> str:
    value = row.get(field)
    if not isinstance(value, str):
        what = "is missing" if value is None else f"a {type(value).__name__}, not text"
        raise ShapeError(f"{field}: {what}")
    return value


def _user(text: str) -> Message:
    return {"role": "user", "content": text}


def _is_text(message: Message) -> bool:
    return message.keys() == {"role", "content"} and isinstance(message["content"], str)


# Writing


def _reads_as(row: Row, shape: Shape) -> bool:
    try:
        return recognise(row) is shape
    except ShapeError:
        return False


def _identity(record: Record) -> Row:
    return {"id": record["id"]} if record["id"] else {}


def _metadata(record: Record, shape: Shape) -> Row:
    metadata = record["metadata"]
    for name, value in metadata.items():
        if name in FIELDS[shape] or (name == "id" and record["id"]):
            raise ShapeError(
                f"{name}: a column of this name stands beside the text, and {shape} uses the name "
                f"itself; leave it out with --drop {name}"
            )
        if name in MEANING and value and shape in TEXT_SHAPES:
            raise ShapeError(
                f"{name}: {shape} holds text alone; use --to messages, or --drop {name}"
            )
    if shape is Shape.PROMPT_COMPLETION and isinstance(metadata.get("label"), bool):
        raise ShapeError("label: true or false beside a completion means unpaired preference data")
    return metadata


def _body(record: Record, shape: Shape) -> Row:
    if shape in (Shape.PREFERENCE, Shape.PREFERENCE_CHAT):
        if record["rejected"] is None:
            raise ShapeError(f"rejected: {shape} needs a second, worse answer in each row")
    elif record["rejected"] is not None:
        raise ShapeError(
            f"rejected: {shape} holds one answer; use --to preference, or --drop rejected"
        )
    match shape:
        case Shape.MESSAGES:
            turns = _turns(record)
            _check_roles(turns)
            return {"messages": turns}
        case Shape.SHAREGPT:
            return {"conversations": [_sharegpt_turn(m, i) for i, m in enumerate(_turns(record))]}
        case Shape.PROMPT_COMPLETION:
            prompt = _plain_prompt(record, shape)
            has_answer = record["completion"] is not None
            return {"prompt": prompt} | ({"completion": record["completion"]} if has_answer else {})
        case Shape.PROMPT_COMPLETION_CHAT:
            turns = _turns(record)
            _check_roles(turns)
            if turns[-1]["role"] != "assistant":
                return {"prompt": turns}
            _check_prompt(turns[:-1], shape)
            return {"prompt": turns[:-1], "completion": turns[-1:]}
        case Shape.ALPACA:
            prompt = _plain_prompt(record, shape)
            parts = record["variables"]
            instruction, given = parts.get("instruction", prompt), parts.get("input", "")
            if _joined(instruction, given) != prompt:
                instruction, given = prompt, ""
            return {"instruction": instruction, "input": given, "output": _answer(record, shape)}
        case Shape.PREFERENCE:
            prompt = _plain_prompt(record, shape)
            pair = {"chosen": _answer(record, shape), "rejected": record["rejected"]}
            return {"prompt": prompt, **pair}
        case Shape.PREFERENCE_CHAT:
            _check_roles(record["messages"])
            _check_prompt(record["messages"], shape)
            return {
                "prompt": record["messages"],
                "chosen": [{"role": "assistant", "content": _answer(record, shape)}],
                "rejected": [{"role": "assistant", "content": record["rejected"]}],
            }


def _turns(record: Record) -> list[Message]:
    if record["completion"] is None:
        return record["messages"]
    return [*record["messages"], {"role": "assistant", "content": record["completion"]}]


def _check_prompt(prompt: Sequence[Message], shape: Shape) -> None:
    if not prompt:
        raise ShapeError(f"messages: there is no prompt before the answer, {shape} needs one")


def _check_roles(turns: Sequence[Message]) -> None:
    for index, message in enumerate(turns):
        if message["role"] not in CHAT_ROLES:
            raise ShapeError(f"messages[{index}].role: {message['role']!r} stands in sharegpt only")


def _sharegpt_turn(message: Message, index: int) -> Row:
    where = f"messages[{index}]"
    role = FROM_OF.get(message["role"], message["role"])
    if message["role"] not in (*FROM_OF, *SHAREGPT_TOOL_TURNS):
        raise ShapeError(f"{where}.role: {message['role']!r} has no place in sharegpt")
    for key in message:
        if key in TOOL_KEYS or key in ("from", "value"):
            raise ShapeError(f"{where}.{key}: sharegpt has no place for it; use --to messages")
    rest = {k: v for k, v in message.items() if k not in ("role", "content")}
    return {"from": role, "value": _text(message, where, shape=Shape.SHAREGPT), **rest}


def _plain_prompt(record: Record, shape: Shape) -> str:
    """Return the text of a prompt that is one user message; anything more is an error."""
    wider = "messages" if record["rejected"] is None else "preference-chat"
    for index, message in enumerate(_turns(record)):
        where = f"messages[{index}]"
        if message["role"] in SYSTEM_ROLES:
            raise ShapeError(
                f"{where}: {shape} has no place for a system prompt; "
                f"use --to {wider}, or --drop system"
            )
        for key in message.keys() - {"role", "content"}:
            raise ShapeError(f"{where}.{key}: {shape} holds text alone; use --to {wider}")
        _text(message, where, shape=shape)
    roles = [message["role"] for message in record["messages"]]
    if roles != ["user"]:
        raise ShapeError(
            f"messages: {shape} holds one question and one answer, the prompt here is "
            f"{' + '.join(roles) or 'empty'}; use --to {wider}"
        )
    return _text(record["messages"][0], "messages[0]", shape=shape)


def _answer(record: Record, shape: Shape) -> str:
    if record["completion"] is None:
        last = record["messages"][-1:]
        if last and last[0]["role"] == "assistant":
            raise ShapeError(f"messages[-1]: {shape} holds text answers alone")
        raise ShapeError(f"completion: {shape} needs an answer, the row ends without one")
    return record["completion"]


def _text(message: Message, where: str, *, shape: Shape) -> str:
    """Return a message's text. Parts become their text if all of them are text."""
    content = message["content"]
    if isinstance(content, str):
        return content
    if content is None:
        raise ShapeError(f"{where}.content: is null, {shape} needs text")
    for index, part in enumerate(content):
        kind = part.get("type") if isinstance(part, dict) else type(part).__name__
        if kind != "text" or not isinstance(part.get("text"), str):
            raise ShapeError(f"{where}.content[{index}]: {shape} has no place for {kind!r}")
    return "".join(part["text"] for part in content)
