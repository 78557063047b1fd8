"""Several teachers at once: who answers which prompt, and whose answer stays."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from pydantic import ValidationError

from cluster.storage import Store
from distill.config import JudgeVerify, JuryConfig
from distill.cost import teacher_price
from distill.judge.judges import verdict
from distill.judge.stage import verdict_folder
from distill.prompts.split import build_rows
from distill.records import VERDICT
from distill.tasks.task import load_task
from distill.teach.choose import choose
from distill.teach.config import (
    LiteLLMTeacher,
    Price,
    ProgramTeacher,
    SeveralTeachers,
    gives_candidates,
)
from distill.teach.identity import request_key, teacher_name
from distill.teach.mixture import shares
from distill.teach.reasoning import split_reasoning, with_reasoning

TASK = load_task("reconcile")
A, B = LiteLLMTeacher(model="openai/a"), LiteLLMTeacher(model="openai/b")
ROWS = build_rows(TASK, list(TASK.function("scenarios:scenarios")(400, 1)))
JURY = JuryConfig(judges=(JudgeVerify(),))


def answers(completions, row=ROWS[0]):
    return [
        {**row, "completion": text, "teacher": f"t{n}", "request_key": f"{row['example_id']}-{n}"}
        for n, text in enumerate(completions)
    ]


def right(row=ROWS[0]):
    return TASK.function("rules:answer")(json.loads(row["variables"]))


def reworded():
    return json.dumps({**json.loads(right()), "reason": "The same, in other words."})


def said(store, rows, scores):
    """Write verdicts that the jury has given before."""
    from cluster.storage import rows_table

    given = [verdict(r, "verify", "verified", score=s) for r, s in zip(rows, scores, strict=True)]
    store.write_table(f"{verdict_folder(JudgeVerify())}/part-0.parquet", rows_table(given, VERDICT))


def test_a_mixture_follows_its_weights_and_a_prompt_keeps_its_teacher():
    config = SeveralTeachers(combine="mixture", members=(A, B), weights=(3, 1))
    (_, first), (_, second) = shares(ROWS, config)
    assert len(first) + len(second) == len(ROWS)
    assert 0.67 < len(first) / len(ROWS) < 0.83
    fewer = shares(ROWS[:50], config)
    assert {r["example_id"] for r in fewer[0][1]} <= {r["example_id"] for r in first}
    assert [len(rows) for _, rows in shares(ROWS, config.model_copy(update={"seed": 1}))] != [
        len(first), len(second),
    ]  # fmt: skip


def test_best_of_asks_all_of_them():
    config = SeveralTeachers(members=(A, B))
    assert [(m.model, len(rows)) for m, rows in shares(ROWS, config)] == [
        ("openai/a", len(ROWS)), ("openai/b", len(ROWS)),
    ]  # fmt: skip
    assert gives_candidates(config)
    assert not gives_candidates(config.model_copy(update={"combine": "mixture"}))
    assert teacher_name(config, TASK) == "best-of(litellm:openai/a, litellm:openai/b)"


def test_the_jury_chooses_among_readable_answers(tmp_path):
    store = Store(tmp_path)
    rows = answers(["no JSON", reworded(), right()])
    said(store, rows[1:], [0.4, 0.9])
    found = choose(TASK, JURY, candidates=rows, store=store)
    assert [row["chosen"] for row in found] == [False, False, True]
    assert [row["score"] for row in found] == [None, 0.4, 0.9]


def test_nobody_is_asked_where_there_is_nothing_to_choose(tmp_path):
    rows = [
        *answers(["no JSON", right()]),
        *answers([right(ROWS[1]), f"  {right(ROWS[1])}\n"], row=ROWS[1]),
        *answers(["prose"], row=ROWS[2]),
    ]
    found = choose(TASK, JURY, candidates=rows, store=Store(tmp_path))
    assert [row["chosen"] for row in found] == [False, True, True, False, True]
    assert not (tmp_path / "verdicts").exists()


def test_of_equal_scores_the_first_teacher_stays(tmp_path):
    store = Store(tmp_path)
    rows = answers([reworded(), right()])
    said(store, rows, [1.0, 1.0])
    assert [r["chosen"] for r in choose(TASK, JURY, candidates=rows, store=store)] == [True, False]


def test_samples_are_requests_of_their_own_and_how_many_there_are_is_none():
    config = LiteLLMTeacher(model="m", temperature=0.7, samples=4)
    keys = [request_key(ROWS[0], config, sample=sample) for sample in range(4)]
    assert len(set(keys)) == 4
    fewer = LiteLLMTeacher(model="m", temperature=0.7, samples=2)
    assert [request_key(ROWS[0], fewer, sample=sample) for sample in range(2)] == keys[:2]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"members": [{"kind": "program"}]}, "at least 2"),
        ({"weights": [1, 2]}, 'weights belong to combine = "mixture"'),
        ({"combine": "mixture", "weights": [1]}, "1 weights for 2 members"),
        ({"combine": "mixture", "weights": [1, 0]}, "must all be above 0"),
        ({"members": [{"kind": "several"}, {"kind": "program"}]}, "several"),
    ],
)
def test_a_team_that_cannot_work_is_refused(fields, message):
    members = [{"kind": "program"}, {"kind": "litellm", "model": "m"}]
    with pytest.raises(ValidationError, match=message):
        SeveralTeachers.model_validate({"members": members, **fields})


def test_samples_at_temperature_zero_are_refused():
    with pytest.raises(ValidationError, match="3 times the same answer"):
        LiteLLMTeacher(model="m", samples=3)


def test_what_a_prompt_costs_with_several():
    price = Price(input_usd_per_mtok=2, output_usd_per_mtok=10)
    dear = LiteLLMTeacher(model="a", price=price, temperature=0.7, samples=3)
    cheap = LiteLLMTeacher(model="b", price=Price(input_usd_per_mtok=1, output_usd_per_mtok=2))
    both = SeveralTeachers(members=(dear, cheap, ProgramTeacher()))
    found = teacher_price(both)
    assert (found.input_usd_per_mtok, found.output_usd_per_mtok) == (7, 32)
    mixed = SeveralTeachers(combine="mixture", members=(cheap, ProgramTeacher()), weights=(1, 3))
    assert teacher_price(mixed).output_usd_per_mtok == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("<reasoning>\nOne. Two.\n</reasoning>\n{}", ("One. Two.", "{}")),
        ("<think>Hm.</think>Blue", ("Hm.", "Blue")),
        ("Blue", ("", "Blue")),
        ("<reasoning>never closed {}", ("", "<reasoning>never closed {}")),
    ],
)
def test_reasoning_and_answer_are_taken_apart(text, parts):
    assert split_reasoning(text) == parts


def test_the_request_for_reasoning_stands_at_the_end_of_the_prompt():
    messages = ROWS[0]["messages"]
    asked = with_reasoning(messages)
    assert asked[:-1] == messages[:-1]
    assert asked[-1]["content"].startswith(messages[-1]["content"])
    assert Counter(m["role"] for m in asked) == Counter(m["role"] for m in messages)
