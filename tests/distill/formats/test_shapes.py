"""Each shape is told from its keys, read into one record, and written back; what it cannot hold
is an error that names the field."""

import json

import pytest

from distill.formats.row_reader import read
from distill.formats.row_writer import write
from distill.formats.shapes import Shape, ShapeError, drop, recognise

USER = {"role": "user", "content": "2 + 2?"}
ANSWER = {"role": "assistant", "content": "4"}
SYSTEM = {"role": "system", "content": "Be brief."}

# Rows as people have them: each comes back as it was when it is written in its own shape.
ROWS = {
    Shape.MESSAGES: {"messages": [SYSTEM, USER, ANSWER, USER, ANSWER], "source": "a", "score": 3},
    Shape.PROMPT_COMPLETION: {"prompt": "2 + 2?", "completion": "4"},
    Shape.PROMPT_COMPLETION_CHAT: {"prompt": [SYSTEM, USER], "completion": [ANSWER]},
    Shape.ALPACA: {"instruction": "Add.", "input": "2 and 2", "output": "4"},
    Shape.SHAREGPT: {
        "conversations": [
            {"from": "system", "value": "Be brief."},
            {"from": "human", "value": "2 + 2?"},
            {"from": "gpt", "value": "4", "weight": 1},
        ]
    },
    Shape.PREFERENCE: {"prompt": "2 + 2?", "chosen": "4", "rejected": "5"},
    Shape.PREFERENCE_CHAT: {
        "prompt": [SYSTEM, USER],
        "chosen": [ANSWER],
        "rejected": [{"role": "assistant", "content": "5"}],
    },
}


def converted(row, shape):
    return write(read(row, recognise(row)), shape)


@pytest.mark.parametrize("shape", Shape)
def test_a_row_is_recognised_and_comes_back_as_it_was(shape):
    row = {"id": "r1", **ROWS[shape], "tags": ["x"], "nested": {"a": None}}
    assert recognise(row) is shape
    assert converted(row, shape) == row


def test_alpaca_becomes_a_dialogue_and_keeps_its_two_fields_on_the_way_back():
    record = read(ROWS[Shape.ALPACA], Shape.ALPACA)
    assert record["messages"] == [{"role": "user", "content": "Add.\n2 and 2"}]
    assert record["completion"] == "4"
    assert write(record, Shape.MESSAGES)["messages"][-1] == ANSWER
    assert write(record, Shape.ALPACA) == ROWS[Shape.ALPACA]


def test_alpaca_with_system_and_history_is_a_dialogue():
    row = {
        "instruction": "And 3 + 3?",
        "input": "",
        "output": "6",
        "system": "Be brief.",
        "history": [["2 + 2?", "4"]],
    }
    last = [{"role": "user", "content": "And 3 + 3?"}, {"role": "assistant", "content": "6"}]
    assert converted(row, Shape.MESSAGES)["messages"] == [SYSTEM, USER, ANSWER, *last]


def test_sharegpt_with_a_system_column():
    row = {"conversations": [{"from": "user", "value": "2 + 2?"}], "system": "Be brief."}
    assert converted(row, Shape.MESSAGES) == {"messages": [SYSTEM, USER]}


def test_conversations_of_role_and_content_are_messages():
    row = {"conversations": [USER, ANSWER]}
    assert recognise(row) is Shape.MESSAGES
    assert converted(row, Shape.PROMPT_COMPLETION) == {"prompt": "2 + 2?", "completion": "4"}


@pytest.mark.parametrize("prompt", [{}, {"prompt": "2 + 2?"}, {"prompt": [SYSTEM, USER]}])
def test_preference_pairs_that_repeat_the_prompt(prompt):
    """TRL's implicit prompt, and data sets that give it twice."""
    wrong = {"role": "assistant", "content": "5"}
    row = {**prompt, "chosen": [SYSTEM, USER, ANSWER], "rejected": [SYSTEM, USER, wrong]}
    assert converted(row, Shape.PREFERENCE_CHAT) == ROWS[Shape.PREFERENCE_CHAT]


def test_columns_that_parquet_fills_with_nulls_do_not_mislead():
    row = {"messages": None, "conversations": None, "prompt": "2 + 2?", "completion": "4"}
    assert recognise(row) is Shape.PROMPT_COMPLETION
    filled = {**ANSWER, "name": None, "tool_calls": None}
    assert read({"messages": [USER, filled]}, Shape.MESSAGES)["completion"] == "4"


def test_tool_calls_stay_whole_where_messages_can_hold_them():
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    row = {"messages": [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]}
    assert converted(row, Shape.MESSAGES) == row
    chat = converted(row, Shape.PROMPT_COMPLETION_CHAT)
    assert chat["completion"][0]["tool_calls"] == [call]


def test_text_parts_become_text_and_images_are_refused():
    parts = [{"type": "text", "text": "2 "}, {"type": "text", "text": "+ 2?"}]
    row = {"messages": [{"role": "user", "content": parts}, ANSWER]}
    assert converted(row, Shape.ALPACA)["instruction"] == "2 + 2?"
    assert converted(row, Shape.MESSAGES) == row
    image = {"type": "image_url", "image_url": {"url": "https://example.com/a.png"}}
    row = {"messages": [{"role": "user", "content": [*parts, image]}, ANSWER]}
    with pytest.raises(ShapeError, match=r"messages\[0\]\.content\[2\]: alpaca .* 'image_url'"):
        converted(row, Shape.ALPACA)


CALL = {"role": "assistant", "content": None, "tool_calls": [{"id": "c"}]}
CANNOT_HOLD = [
    ([SYSTEM, USER, ANSWER], {}, Shape.ALPACA, r"messages\[0\]: alpaca .* system .* --drop system"),
    ([USER, ANSWER, USER, ANSWER], {}, Shape.ALPACA, r"user \+ assistant \+ user.*--to messages"),
    ([USER, ANSWER, USER, ANSWER], {}, Shape.PROMPT_COMPLETION, "one question and one answer"),
    ([USER], {}, Shape.ALPACA, "completion: alpaca needs an answer"),
    ([USER, CALL], {}, Shape.ALPACA, r"messages\[1\]\.tool_calls: alpaca holds text alone"),
    ([USER, CALL], {}, Shape.SHAREGPT, r"messages\[1\]\.tool_calls: sharegpt has no place"),
    ([USER, ANSWER], {"tools": [{}]}, Shape.PROMPT_COMPLETION, "tools: .* --drop tools"),
    ([USER, ANSWER], {"prompt": "x"}, Shape.PROMPT_COMPLETION, "prompt: a column of this name"),
    ([USER, ANSWER], {}, Shape.PREFERENCE, "rejected: preference needs a second"),
    ([USER, ANSWER], {"messages_": 1, "system": "s"}, Shape.ALPACA, "system: a column"),
    ([ANSWER], {}, Shape.PROMPT_COMPLETION_CHAT, "no prompt before the answer"),
]


@pytest.mark.parametrize(("messages", "columns", "shape", "message"), CANNOT_HOLD)
def test_what_a_shape_cannot_hold_is_named_with_the_fix(messages, columns, shape, message):
    with pytest.raises(ShapeError, match=message):
        converted({"messages": messages, **columns}, shape)


def test_a_pair_does_not_lose_its_rejected_answer_unasked():
    with pytest.raises(ShapeError, match=r"rejected: messages holds one answer.*--drop rejected"):
        converted(ROWS[Shape.PREFERENCE], Shape.MESSAGES)
    record = read(ROWS[Shape.PREFERENCE], Shape.PREFERENCE)
    assert drop(record, ["rejected"]) == ["rejected"]
    assert write(record, Shape.MESSAGES) == {"messages": [USER, ANSWER]}


def test_a_column_that_would_change_the_shape_is_refused():
    row = {"messages": [USER, ANSWER], "chosen": True}
    assert converted(row, Shape.MESSAGES) == row
    pair = {**ROWS[Shape.PREFERENCE], "messages": [USER]}
    record = read(pair, recognise(pair))
    record["rejected"] = None
    with pytest.raises(ShapeError, match=r"messages: beside these columns .* --drop messages"):
        write(record, Shape.ALPACA)


def test_dropping_says_what_was_there():
    row = {"messages": [SYSTEM, USER, ANSWER], "a": 1, "b": 2}
    record = read(row, Shape.MESSAGES)
    assert drop(record, ["system", "a", "nothing"]) == ["system", "a"]
    assert write(record, Shape.ALPACA)["b"] == 2
    assert drop(record, ["extra"]) == ["b"]
    assert write(record, Shape.MESSAGES) == {"messages": [USER, ANSWER]}


NOT_READABLE = [
    ({"question": "x", "answer": "y"}, "no known shape: the row has answer, question"),
    ({"prompt": "x", "chosen": "y"}, "rejected: is missing"),
    ({"chosen": "x y", "rejected": "x z"}, "prompt: is missing"),
    ({"prompt": "x", "completion": "y", "label": False}, "label: .*KTO"),
    ({"prompt": "x", "completion": 4}, "completion: a int, not text"),
    ({"messages": []}, "messages: must be a list"),
    ({"messages": "[]"}, "messages: must be a list"),
    ({"messages": [USER, {"role": "bot", "content": "4"}]}, r"messages\[1\]\.role: 'bot' must be"),
    ({"messages": [USER, {"role": "assistant"}]}, r"messages\[1\]\.content: is missing"),
    ({"messages": ["hello"]}, r"messages\[0\]: a str"),
    ({"conversations": [{"from": "bob", "value": "x"}]}, r"conversations\[0\]\.from: 'bob'"),
    ({"conversations": [{"from": "human"}]}, r"conversations\[0\]\.value"),
    ({"instruction": "x", "input": ["y"], "output": "z"}, "input: a list, not text"),
    ({"instruction": "x", "output": "z", "history": [["q"]]}, r"history\[0\]: must be a pair"),
    ({"prompt": [USER], "completion": [USER]}, "completion: its last message is from 'user'"),
    ({"prompt": [USER], "completion": [ANSWER, ANSWER]}, "completion: has 2 messages"),
    (
        {"chosen": [USER, ANSWER], "rejected": [ANSWER, ANSWER]},
        "rejected: has 2 messages; expected the answer alone",
    ),
]


@pytest.mark.parametrize(("row", "message"), NOT_READABLE)
def test_what_does_not_fit_is_named(row, message):
    with pytest.raises(ShapeError, match=message):
        read(row, recognise(row))


def test_an_id_that_is_no_text_stays_as_it_is():
    for identity in (7, None, ""):
        row = {"id": identity, **ROWS[Shape.PROMPT_COMPLETION]}
        assert converted(row, Shape.PROMPT_COMPLETION) == row
    assert (
        json.dumps(converted({"id": "a", **ROWS[Shape.ALPACA]}, Shape.MESSAGES))[:9] == '{"id": "a'
    )
