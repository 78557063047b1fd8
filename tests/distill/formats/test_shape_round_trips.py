"""Whatever record a shape holds comes back from it, through JSON and through Arrow."""

import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from distill.formats.columns import Columns, json_text, record_batch, row_decoder
from distill.formats.row_reader import read
from distill.formats.row_writer import write
from distill.formats.shapes import Record, Shape, recognise

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
SCALAR = (
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False)
)
JSON_VALUE = st.recursive(
    SCALAR | TEXT,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=5,
)
OWN = {"messages", "conversations", "prompt", "completion", "chosen", "rejected", "label", "id"}
OWN |= {"instruction", "input", "output", "system", "history", "tools", "functions"}
COLUMN = st.text("abcdefgh_", min_size=1, max_size=6).filter(lambda name: name not in OWN)
EXTRA = st.dictionaries(
    st.sampled_from(["name", "weight"]), st.integers(0, 1) | TEXT.filter(bool), max_size=1
)
CHAT = st.builds(
    lambda role, content, extra: {"role": role, "content": content, **extra},
    st.sampled_from(["system", "user", "assistant"]),
    TEXT,
    st.just({}) | EXTRA,
)
PLAIN = st.builds(lambda text: [{"role": "user", "content": text}], TEXT)


DIALOGUE = st.lists(CHAT, min_size=1, max_size=4)
PAIRS = {Shape.PREFERENCE, Shape.PREFERENCE_CHAT}
ONE_QUESTION = {Shape.PROMPT_COMPLETION, Shape.ALPACA, Shape.PREFERENCE}
NEEDS_ANSWER = PAIRS | {Shape.ALPACA}
# No deadline: how long one example takes says nothing on a machine that does other work.
EXAMPLES = settings(max_examples=40, deadline=None)


@st.composite
def records(draw, shape, one_question=False):
    """Records that a shape holds."""
    messages = draw(PLAIN if one_question or shape in ONE_QUESTION else DIALOGUE)
    if shape is Shape.PROMPT_COMPLETION_CHAT and not one_question:
        messages = [*draw(PLAIN), *messages]
    # Only an answer that is more than text stays among the messages.
    ends_in_text = messages[-1]["role"] == "assistant" and len(messages[-1]) == 2
    needs_answer = one_question or ends_in_text or shape in NEEDS_ANSWER
    return Record(
        messages=messages,
        completion=draw(TEXT if needs_answer else st.none() | TEXT),
        rejected=draw(TEXT) if shape in PAIRS else None,
        variables={},
        metadata=draw(st.dictionaries(COLUMN, JSON_VALUE, max_size=2)),
        id=draw(TEXT),
    )


def same(record, other):
    """Equal but for what the prompt was made from, which only Alpaca tells."""
    return {**record, "variables": {}} == {**other, "variables": {}}


@pytest.mark.parametrize("shape", Shape)
@EXAMPLES
@given(data=st.data())
def test_what_a_shape_takes_it_gives_back(shape, data):
    record = data.draw(records(shape))
    row = json.loads(json_text(write(record, shape)))
    assert recognise(row) is shape
    again = read(row, shape)
    assert same(again, record)
    assert write(again, shape) == row


@EXAMPLES
@given(instruction=TEXT, given_input=TEXT, output=TEXT)
def test_alpaca_keeps_instruction_and_input_apart(instruction, given_input, output):
    row = {"instruction": instruction, "input": given_input, "output": output}
    assert write(read(row, Shape.ALPACA), Shape.ALPACA) == row


@pytest.mark.parametrize("group", [sorted(set(Shape) - PAIRS), sorted(PAIRS)])
@EXAMPLES
@given(data=st.data())
def test_one_question_and_one_answer_go_from_any_shape_to_any_other(group, data):
    first, second = data.draw(st.tuples(st.sampled_from(group), st.sampled_from(group)))
    record = data.draw(records(first, one_question=True))
    row = write(read(write(record, first), first), second)
    assert same(read(row, second), record)


def through_arrow(rows, *, parquet):
    columns = Columns()
    columns.observe(rows)
    schema = columns.schema()
    batch = record_batch(rows, schema)
    buffer = io.BytesIO()
    if parquet:
        pq.write_table(pa.Table.from_batches([batch], schema), buffer)
        buffer.seek(0)
        table = pq.read_table(buffer)
    else:
        with pa.ipc.new_stream(buffer, schema) as writer:
            writer.write_batch(batch)
        table = pa.ipc.open_stream(buffer.getvalue()).read_all()
    return row_decoder(table.schema)(table.to_pylist())


@pytest.mark.parametrize("parquet", [True, False])
@EXAMPLES
@given(rows=st.lists(st.dictionaries(COLUMN, JSON_VALUE, min_size=1, max_size=3), min_size=1))
def test_any_columns_come_back_from_arrow(rows, parquet):
    """What differs from row to row comes back as it was; a missing column becomes null."""
    names = {name for row in rows for name in row}
    wanted = [{name: row.get(name) for name in names} for row in rows]
    assert through_arrow(rows, parquet=parquet) == wanted


@EXAMPLES
@given(dialogues=st.lists(st.lists(CHAT, min_size=1, max_size=3), min_size=1, max_size=5))
def test_messages_come_back_from_arrow_without_the_keys_that_others_have(dialogues):
    rows = [{"messages": messages} for messages in dialogues]
    assert through_arrow(rows, parquet=True) == rows
