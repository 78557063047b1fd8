"""Production logs become prompts: approved rows only, masked first, everything else counted."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import ConfigError, DataError
from cluster.example import example_id
from cluster.storage import Store
from distill.config import PromptsConfig
from distill.prompts.logs import REQUIRED, LogsConfig, read_log
from distill.prompts.stage import make_prompts
from distill.records import PROMPT
from distill.tasks.task import load_task
from serve.request_log import SCHEMA, RequestLog


def row(number, text, **changes):
    messages = changes.pop("messages", [{"role": "user", "content": text}])
    return {
        "request_id": f"r{number}",
        "example_id": example_id(messages) if isinstance(messages, list) and messages else "x",
        "model_asked": "reconcile",
        "model_answered": "reconcile@v1",
        "route": "chat",
        "messages": json.dumps(messages),
        "completion": "an answer",
        "prompt_tokens": 5,
        "completion_tokens": 2,
        "latency_s": 0.5,
        "ttft_s": None,
        "status": 200,
        "created_at": 1_700_000_000_000 + number,
        **changes,
    }


def write_log(folder, rows, *, name="requests-1.parquet", approved=False):
    schema = SCHEMA.append(pa.field("approved", pa.bool_())) if approved else SCHEMA
    folder.mkdir(exist_ok=True)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), folder / name)


def read(folder, **fields):
    return read_log(LogsConfig(uri=str(folder), **fields))


def test_the_servers_own_log_is_read(tmp_path):
    """The columns that are read are those that the server writes."""
    assert set(REQUIRED) <= set(SCHEMA.names)
    log = RequestLog(str(tmp_path / "log"), flush_s=60)
    log.add(lambda: row(1, "Is ann@example.com known?"))
    log.add(lambda: row(2, "What is due on 2024-05-08?"))
    log.close()
    found = read(tmp_path / "log")
    assert [r["messages"][0]["content"] for r in found.rows] == [
        "Is <EMAIL_1> known?",
        "What is due on 2024-05-08?",
    ]
    assert found.report() == {
        "rows_read": 2,
        "prompts": 2,
        "left_out": {},
        "prompts_with_masked_data": 1,
        "masked": {"EMAIL": 1},
    }


def test_prompts_have_ids_of_what_they_say_now_and_can_be_split(tmp_path):
    rows = [row(n, f"Question {n} of user{n}@example.com, 1,438.0{n}?") for n in range(9)]
    write_log(tmp_path, rows)
    found = read(tmp_path).rows
    assert all(r["example_id"] == example_id(r["messages"]) for r in found)
    assert pa.Table.from_pylist(found, schema=PROMPT).num_rows == 9
    sizes = {"train": 5, "validation": 2, "test": 2}
    config = PromptsConfig(**sizes, make=LogsConfig(uri=str(tmp_path)))
    prompts = make_prompts(load_task("reconcile"), config, store=Store(tmp_path / "run"))
    assert prompts.sizes == sizes
    assert {r["example_id"] for r in prompts.all_rows()} == {r["example_id"] for r in found}


def test_nothing_of_the_unmasked_prompt_is_left(tmp_path):
    write_log(tmp_path, [row(1, "ann@example.com", request_id="ann@example.com")])
    (prompt,) = read(tmp_path).rows
    assert "ann@" not in json.dumps(prompt)
    assert prompt["example_id"] != row(1, "ann@example.com")["example_id"]
    assert prompt["prompt_id"] == ""


def test_only_approved_rows_count_where_the_log_says_which_are(tmp_path):
    marks = [True, False, None]
    rows = [row(n, f"question {n}", approved=mark) for n, mark in enumerate(marks)]
    write_log(tmp_path, [row(7, "older than the column")], name="requests-0.parquet")
    write_log(tmp_path, rows, approved=True)
    found = read(tmp_path)
    assert [r["prompt_id"] for r in found.rows] == ["r0"]
    assert found.left_out == {"not_approved": 3}


def test_a_log_without_approvals_gives_what_was_answered_unless_they_are_required(tmp_path):
    write_log(tmp_path, [row(1, "good"), row(2, "failed", status=500), row(3, "no", status=429)])
    assert read(tmp_path).left_out == {"not_answered": 2}
    with pytest.raises(DataError, match="has no column 'approved'"):
        read(tmp_path, require_approved=True)


def test_repeated_prompts_are_dropped_and_counted(tmp_path):
    texts = ["same", "same", "I am ann@example.com", "I am bob@example.com", "other"]
    write_log(tmp_path, [row(n, text) for n, text in enumerate(texts)])
    found = read(tmp_path)
    assert [r["messages"][0]["content"] for r in found.rows] == ["same", "I am <EMAIL_1>", "other"]
    assert found.left_out == {"duplicate": 1, "duplicate_masked": 1}
    # What was left out is not counted as masked.
    assert found.masked == {"EMAIL": 1}


def test_a_repeated_request_id_names_one_prompt_only(tmp_path):
    write_log(tmp_path, [row(1, "a", request_id="mine"), row(2, "b", request_id="mine")])
    assert [r["prompt_id"] for r in read(tmp_path).rows] == ["mine", ""]


def test_conditions_on_columns(tmp_path):
    models = ["reconcile@v1", "reconcile@v2", "teacher"]
    write_log(tmp_path, [row(n, f"q{n}", model_answered=m) for n, m in enumerate(models)])
    found = read(tmp_path, where={"model_answered": models[:2], "route": "chat"})
    assert [r["prompt_id"] for r in found.rows] == ["r0", "r1"]
    assert found.left_out == {"not_selected": 1}
    with pytest.raises(ConfigError, match="'model' is no column of the log; it has"):
        read(tmp_path, where={"model": "x"})


@pytest.mark.parametrize(
    "messages",
    [
        [],
        None,
        "hello",
        [{"role": "user", "content": "  "}],
        [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}],
        [{"role": "user", "content": ["a"]}],
        [{"role": "user", "content": "a", "name": "ann@example.com"}],
    ],
)
def test_what_is_no_prompt_is_counted(tmp_path, messages):
    write_log(tmp_path, [row(1, "", messages=messages), row(2, "a prompt")])
    found = read(tmp_path)
    assert (len(found.rows), found.left_out) == (1, {"unusable": 1})


def test_enough_is_enough(tmp_path):
    write_log(tmp_path, [row(n, f"q{n}") for n in range(50)])
    assert len(read(tmp_path, max_prompts=3).rows) == 3


def test_what_is_no_request_log_is_refused(tmp_path):
    pq.write_table(pa.table({"request_id": ["a"], "status": [200]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has no column example_id, messages"):
        read(tmp_path)
    (tmp_path / "a.parquet").write_text("nothing")
    with pytest.raises(DataError, match="no readable Parquet"):
        read(tmp_path)
