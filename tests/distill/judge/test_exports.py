"""Exports as people have them: one file or many, JSONL or Parquet, scores inline or apart."""

from __future__ import annotations

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import ConfigError, DataError
from distill.judge.exports import read_answers, read_verdicts


def write(path, *rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_folder_of_one_file_a_candidate(tmp_path):
    write(tmp_path / "a" / "gpt-5.jsonl", {"id": "p1", "completion": "x", "cost_usd": 0.1})
    pq.write_table(
        pa.Table.from_pylist([{"example_id": "p1", "completion": "y", "teacher": "litellm:qwen"}]),
        tmp_path / "a" / "part-1.parquet",
    )
    (tmp_path / "a" / "README.md").write_text("not read")
    answers, verdicts = read_answers([str(tmp_path / "a")])
    assert [row["candidate"] for row in answers] == ["gpt-5", "litellm:qwen"]
    assert [row["cost_usd"] for row in answers] == [0.1, None]
    assert verdicts == []


def test_scores_in_the_same_row(tmp_path):
    file = write(
        tmp_path / "all.jsonl",
        {"id": "p1", "candidate": "a", "completion": "x", "cost_usd": 3.0,
         "scores": {"right": 0.5, "clear": 1, "fun": None}, "issues": ["Too Long"]},
        {"id": "p2", "candidate": "a", "error": "rate limit"},
    )  # fmt: skip
    answers, verdicts = read_answers([file])
    assert answers[1]["error"] == "rate limit"
    assert [(v["judge"], v["dimension"], v["score"]) for v in verdicts] == [
        ("export", "right", 0.5),
        ("export", "clear", 1.0),
    ]
    assert [v["issues"] for v in verdicts] == [["too-long"], []]
    assert {v["cost_usd"] for v in verdicts} == {None}  # 3.0 is what the answer cost


def test_verdicts_long_and_wide(tmp_path):
    file = write(
        tmp_path / "gpt-5.jsonl",
        {"id": "p1", "judge": "j", "dimension": "right", "score": 0.5, "confidence": 0.9},
        {"id": "p1", "judge": "k", "author": "b", "scores": {"x": 0.1, "y": 0.3}, "cost_usd": 0.4},
        {"id": "p2", "judge": "j", "dimension": "right", "score": 8},
        {"id": "p3", "judge": "j", "dimension": "right", "score": None, "error": "prose"},
    )
    one, x, y, eight, failed = read_verdicts([file])
    assert (one["author"], one["score"], one["confidence"]) == ("gpt-5", 0.5, 0.9)
    assert (x["author"], y["score"], x["cost_usd"]) == ("b", 0.3, 0.2)
    # A score on another scale is the judge's failure, not ours to convert.
    assert (eight["score"], eight["error"]) == (None, "no score from 0 to 1: 8")
    assert (failed["score"], failed["error"]) == (None, "prose")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completion": "x"}, "record 1: needs `example_id`"),
        ({"id": "p"}, "record 1: needs `completion`, or `error`"),
        ({"id": "p", "completion": "x", "latency_s": -1}, "latency_s -1 must be"),
        ({"id": "p", "completion": "x", "scores": [1]}, "`scores` must map"),
    ],
)
def test_broken_answers_name_the_record(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        read_answers([write(tmp_path / "a.jsonl", row)])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "p", "dimension": "x", "score": 1}, "needs `judge`"),
        ({"id": "p", "judge": "j"}, "needs `dimension` and `score`, or `scores`"),
        ({"judge": "j", "dimension": "x", "score": 1}, "needs `example_id`"),
    ],
)
def test_broken_verdicts_name_the_record(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        read_verdicts([write(tmp_path / "v.jsonl", row)])


def test_a_path_without_files_and_a_broken_parquet(tmp_path):
    with pytest.raises(ConfigError, match=r"select\.answers .*no \.jsonl or \.parquet file there"):
        read_answers([str(tmp_path)])
    (tmp_path / "x.parquet").write_text("no")
    with pytest.raises(DataError, match="is no Parquet file"):
        read_answers([str(tmp_path)])
