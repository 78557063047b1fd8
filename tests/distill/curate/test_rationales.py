"""A chain of thought is kept only where its answer turns out right."""

from __future__ import annotations

import json

from cluster.storage import canonical_json
from distill.curate.rationales import check_rationales
from distill.prompts.split import build_rows
from distill.tasks.task import load_task
from jobs.init import init_task

TASK = load_task("reconcile")


def reasoned(completion, reference, *, number=0):
    [row] = build_rows(TASK, list(TASK.function("scenarios:scenarios")(1, 5)))
    return {
        **row, "completion": completion, "rationale": "The dates differ, so …",
        "reference": canonical_json(reference) if reference else "", "request_key": f"k{number}",
    }  # fmt: skip


def answer():
    [prompt] = TASK.function("scenarios:scenarios")(1, 5)
    return json.loads(TASK.function("rules:answer")(prompt))


def test_a_trace_stands_or_falls_with_its_answer():
    right = answer()
    wrong = {**right, "classification": "ROUNDING" if right["classification"] != "ROUNDING"
             else "SUSPICIOUS"}  # fmt: skip
    rows = [
        reasoned(json.dumps(right), right, number=0),
        reasoned(json.dumps(wrong), right, number=1),
        {**reasoned(json.dumps(right), right, number=2), "rationale": ""},
    ]
    checked, report = check_rationales(rows, task=TASK)
    assert [bool(row["rationale"]) for row in checked] == [True, False, False]
    assert [row["completion"] for row in checked] == [row["completion"] for row in rows]
    assert report["given"] == 2
    assert report["kept"] == 1
    assert sum(report["dropped"].values()) == 1


def test_what_nothing_can_verify_is_not_kept(tmp_path):
    init_task(str(tmp_path / "tickets"))
    task = load_task(tmp_path / "tickets")
    [row] = build_rows(task, [{"product": "lamp", "problem": "dark", "ticket": "It is dark."}])
    row = {**row, "completion": "{}", "rationale": "Well.", "request_key": "k"}
    checked, report = check_rationales([row], task=task)
    assert checked[0]["rationale"] == ""
    assert report["dropped"] == {"cannot be verified": 1}


def test_rows_without_reasoning_have_no_report():
    row = {**reasoned("{}", None), "rationale": None}
    assert check_rationales([row], task=TASK) == ([row], None)
