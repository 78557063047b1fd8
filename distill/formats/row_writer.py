"""Write a record as a row of a shape, or say what the shape has no place for."""

from __future__ import annotations

from collections.abc import Sequence

from distill.formats.shapes import (
    CHAT_ROLES,
    FIELDS,
    FROM_OF,
    MEANING,
    SHAREGPT_TOOL_TURNS,
    SYSTEM_ROLES,
    TEXT_SHAPES,
    TOOL_KEYS,
    Message,
    Record,
    Row,
    Shape,
    ShapeError,
    alpaca_prompt,
    recognise,
)


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
            if alpaca_prompt(instruction, given) != prompt:
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
    return {"from": role, "value": text_of(message, where, shape=Shape.SHAREGPT), **rest}


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
        text_of(message, where, shape=shape)
    roles = [message["role"] for message in record["messages"]]
    if roles != ["user"]:
        raise ShapeError(
            f"messages: {shape} holds one question and one answer, the prompt here is "
            f"{' + '.join(roles) or 'empty'}; use --to {wider}"
        )
    return text_of(record["messages"][0], "messages[0]", shape=shape)


def _answer(record: Record, shape: Shape) -> str:
    if record["completion"] is None:
        last = record["messages"][-1:]
        if last and last[0]["role"] == "assistant":
            raise ShapeError(f"messages[-1]: {shape} holds text answers alone")
        raise ShapeError(f"completion: {shape} needs an answer, the row ends without one")
    return record["completion"]


def text_of(message: Message, where: str, *, shape: str) -> str:
    """Return a message's text. Parts become their text if all of them are text.

    `shape` is what has no place for anything else.
    """
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
