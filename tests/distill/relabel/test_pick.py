"""What is picked from the log for the teacher: failures, doubts, and what nobody taught."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from production import asked, log_row, write_log
from threadpoolctl import threadpool_limits

from cluster.example import example_id
from cluster.masking import MaskingConfig
from distill.curate.config import EmbeddingsConfig
from distill.curate.embed import build_embed
from distill.monitor.window import read_window
from distill.relabel.candidates import candidates
from distill.relabel.config import RelabelConfig
from distill.relabel.pick import least_training, pick
from distill.tasks.task import load_task

TASK = load_task("reconcile")
TRAINING = asked(TASK, 300, seed=1)


@pytest.fixture(autouse=True)
def _one_thread():
    with threadpool_limits(1):
        yield


def found(tmp_path, rows, *, known=()):
    log = write_log(tmp_path / "log", rows)
    window = read_window(str(log), adapter="reconcile")
    return candidates(TASK, window.rows, known=set(known), masking=MaskingConfig())


def picked(tmp_path, rows, **settings):
    return pick(
        TASK,
        RelabelConfig(**settings),
        found(tmp_path, rows).rows,
        training=TRAINING,
        embed=build_embed(EmbeddingsConfig()),
        min_score=0.8,
    )


def reasons(picks):
    return {one.row["example_id"]: one.reason for one in picks}


def with_answer(row, **fields):
    return {**row, "completion": json.dumps({**json.loads(row["completion"]), **fields})}


def test_a_well_answered_request_of_a_known_kind_is_not_picked(tmp_path):
    rows = [log_row(n, row) for n, row in enumerate(asked(TASK, 200, seed=2))]
    counts = Counter(one.reason for one in picked(tmp_path, rows))
    # One in a hundred is as far out as the furthest hundredth of the training prompts.
    assert set(counts) <= {"uncovered"}
    assert counts["uncovered"] <= 10


def test_failures_come_first_then_doubts(tmp_path):
    rows = asked(TASK, 30, seed=2)
    log = [log_row(n, row) for n, row in enumerate(rows)]
    log[0]["completion"] = "Rounding, I think."
    wrong = {"classification": "SUSPICIOUS", "action": "write_off"}
    log[1] |= {"completion": with_answer(rows[1], **wrong)["completion"]}
    log[2]["quality"] = "length"
    log[3]["quality"] = "passed"
    log[4]["mean_logprob"] = -0.9
    log[5] |= {"completion": with_answer(rows[5], confidence=0.4)["completion"]}
    # Where tokens' probabilities are known, what the answer says of itself does not count.
    log[6] |= {
        "completion": with_answer(rows[6], confidence=0.4)["completion"],
        "mean_logprob": -0.01,
    }
    got = reasons(picked(tmp_path, log, coverage=0.9999))
    expected = {0: "parser", 1: "verifier", 2: "quality", 4: "low_confidence", 5: "low_confidence"}
    expected = {rows[n]["example_id"]: reason for n, reason in expected.items()}
    assert {key: got.get(key) for key in expected} == expected
    assert rows[3]["example_id"] not in got
    assert got.get(rows[6]["example_id"]) != "low_confidence"
    assert list(got.values())[:5] == ["parser", "verifier", "quality"] + ["low_confidence"] * 2
    capped = picked(tmp_path, log, max_rows=2, coverage=0.9999)
    assert [one.reason for one in capped] == ["parser", "verifier"]


def test_a_refused_answer_counts_although_the_teacher_has_replaced_it(tmp_path):
    (row,) = asked(TASK, 1, seed=2)
    log = log_row(1, row, refused_completion="nonsense", quality="schema", answered_by="teacher")
    (one,) = picked(tmp_path, [log])
    assert (one.reason, one.row["student"]) == ("parser", "nonsense")


def test_prompts_unlike_anything_trained_on_are_uncovered_and_furthest_first(tmp_path):
    log = [log_row(n, row) for n, row in enumerate(asked(TASK, 60, seed=2))]
    for number in range(5):
        text = f"Write {number + 2} haiku about a garden in autumn, with frogs and rain."
        messages = [{"role": "user", "content": text}]
        log[number] |= {"messages": json.dumps(messages), "example_id": example_id(messages)}
    picks = [one for one in picked(tmp_path, log) if one.reason == "uncovered"]
    assert sum("haiku" in one.row["messages"][-1]["content"] for one in picks[:5]) == 5


def test_known_repeated_and_unusable_requests_are_left_out_and_counted(tmp_path):
    rows = asked(TASK, 4, seed=2)
    log = [log_row(n, row) for n, row in enumerate([*rows, rows[0]])]
    log[3]["messages"] = json.dumps([{"role": "assistant", "content": "no question"}])
    result = found(tmp_path, log, known=[rows[1]["example_id"]])
    assert [row["example_id"] for row in result.rows] == [
        rows[0]["example_id"],
        rows[2]["example_id"],
    ]
    assert result.left_out == {"known": 1, "duplicate": 1, "unusable": 1}


def test_a_log_that_was_written_without_masking_is_masked_before_a_teacher_sees_it(tmp_path):
    messages = [{"role": "user", "content": "Is ann@example.com a vendor?"}]
    row = {"messages": messages, "example_id": "0" * 16, "completion": "ask ann@example.com"}
    result = found(tmp_path, [log_row(1, row, masked=None)])
    (kept,) = result.rows
    assert kept["messages"][0]["content"] == "Is <EMAIL_1> a vendor?"
    assert kept["student"] == "ask <EMAIL_1>"
    assert kept["example_id"] == example_id(kept["messages"])
    assert result.masked == {"EMAIL": 2}


def test_variables_are_read_back_so_that_answers_can_be_executed(tmp_path):
    rows = asked(TASK, 50, seed=2)
    result = found(tmp_path, [log_row(n, row) for n, row in enumerate(rows)])
    for kept, row in zip(result.rows, rows, strict=True):
        expected = {name: v for name, v in row["variables"].items() if name != "scenario"}
        assert json.loads(kept["variables"]) == expected


def test_few_training_prompts_say_nothing_of_coverage(tmp_path):
    assert least_training(RelabelConfig()) == 198
    assert least_training(RelabelConfig(coverage=0.9)) == 18
    frogs = [{"role": "user", "content": "Do frogs mind rain?"}]
    row = {
        "messages": frogs,
        "example_id": example_id(frogs),
        "completion": asked(TASK, 1, seed=2)[0]["completion"],
    }
    rows = found(tmp_path, [log_row(1, row)]).rows
    for training, expected in ((TRAINING[:197], []), (TRAINING[:198], ["uncovered"])):
        picks = pick(
            TASK, RelabelConfig(), rows, training=training,
            embed=build_embed(EmbeddingsConfig()), min_score=0.8,
        )  # fmt: skip
        assert [one.reason for one in picks] == expected


def test_a_hard_prompt_that_went_elsewhere_is_picked_though_no_student_answered(tmp_path):
    rows = [log_row(n, row, quality="passed") for n, row in enumerate(asked(TASK, 6, seed=12))]
    teacher = {"routed_to": "teacher", "answered_by": "teacher", "difficulty": 0.7}
    rows[0] |= teacher
    rows[1] |= {"routed_to": "large@v2", "model_answered": "large@v2", "difficulty": 0.6}
    window = read_window(str(write_log(tmp_path / "log", rows)), adapter="reconcile")
    assert (len(window.rows), window.left_out) == (4, {"routed": 2})
    assert [row["student"] for row in window.routed] == ["", ""]
    every = candidates(
        TASK, [*window.rows, *window.routed], known=set(), masking=MaskingConfig()
    ).rows
    picks = pick(
        TASK,
        RelabelConfig(),
        every,
        training=[],
        embed=build_embed(EmbeddingsConfig()),
        min_score=0.8,
    )
    assert {(one.reason, one.detail) for one in picks} == {
        ("routed", "to teacher"),
        ("routed", "to large@v2"),
    }
    # To the larger adapter they are answers of its own.
    own = read_window(str(tmp_path / "log"), adapter="large")
    assert (len(own.rows), own.left_out) == (1, {})
