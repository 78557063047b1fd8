"""Read a row of a known shape into a record."""

from __future__ import annotations

from collections.abc import Sequence

from distill.formats.shapes import (
    CHAT_ROLES,
    FIELDS,
    FROM_OF,
    ROLE_OF,
    SHAREGPT_TOOL_TURNS,
    TOOL_KEYS,
    Message,
    Record,
    Row,
    Shape,
    ShapeError,
    alpaca_prompt,
)


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
        [*messages, _user(alpaca_prompt(instruction, given))],
        _text_field(row, "output"),
        row,
        own=FIELDS[Shape.ALPACA],
        variables={"instruction": instruction, "input": given},
    )


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
