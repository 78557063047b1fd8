"""Hard checks in order of cost; every reject keeps its reason; the jury decides on what is left."""

import json

import pytest

from cluster.errors import ConfigError, StageError
from cluster.storage import Store
from distill.config import CurateConfig, JudgeLiteLLM, JudgeVerify
from distill.curate.stage import curate, curate_rows
from distill.judge.judges import build_judge, check_jury, read_scores
from distill.judge.stage import overall_scores
from distill.prompts.split import build_rows
from distill.tasks.task import load_task

TASK = load_task("reconcile")


def records(count=8):
    answer = TASK.function("rules:answer")
    prompts = list(TASK.function("scenarios:scenarios")(count, 2))
    return [
        {
            **row,
            "split": "train",
            "completion": answer(json.loads(row["variables"])),
            "error": "",
            "teacher": "t",
            "request_key": row["example_id"],
            "prompt_tokens": 0,
            "completion_tokens": 0,
            "latency_s": 0.0,
            "cost_usd": 0.0,
        }
        for row in build_rows(TASK, prompts)
    ]


def test_good_answers_pass():
    rows = records()
    result = curate_rows(rows, CurateConfig(), task=TASK)
    assert result.kept == rows
    assert result.rejected == []


@pytest.mark.parametrize(
    ("completion", "reason"),
    [
        ("", "too_short"),
        ("x" * 9000, "too_long"),
        ("ab\x00\x01\x02", "encoding"),
        ("caf\ufffd", "encoding"),
        ("сверка выписки", "language"),
        ("\n".join(["the same line"] * 9), "repetition"),
        ("I would say it is a timing difference.", "schema"),
        ('{"classification": "TIMING"}', "schema"),
    ],
)
def test_each_reject_has_its_reason(completion, reason):
    rows = records(3)
    rows[1] = {**rows[1], "completion": completion}
    result = curate_rows(rows, CurateConfig(language="latin"), task=TASK)
    assert [r["reason"] for r in result.rejected] == [reason]
    assert result.rejected[0]["detail"]
    assert len(result.kept) == 2


def test_the_same_prompt_and_answer_is_kept_once():
    rows = records(3)
    twin = {**rows[0], "example_id": "twin", "completion": f" {rows[0]['completion']}\n"}
    result = curate_rows([*rows, twin], CurateConfig(), task=TASK)
    assert len(result.kept) == 3
    assert result.rejected[0]["reason"] == "duplicate"


def test_yield_counts_add_up_and_both_sides_are_on_disk(tmp_path):
    rows = records(10)
    rows[0]["completion"] = "no"
    rows[1]["completion"] = ""
    rows[2]["split"] = rows[3]["split"] = "validation"
    store = Store(tmp_path)
    curate(rows, CurateConfig(), task=TASK, store=store)
    report = json.loads((tmp_path / "yield.json").read_text())["train"]
    assert report["rows_in"] == 8
    assert report["rows_out"] == 6
    assert report["rejected"] == {"too_short": 1, "schema": 1}
    for before, after in zip(report["steps"], report["steps"][1:], strict=False):
        assert before["rows_out"] == after["rows_in"]
    assert len(store.read_rows("curated/train.parquet")) == 6
    assert {r["reason"] for r in store.read_rows("rejected/train.parquet")} == {
        "too_short",
        "schema",
    }


def test_a_split_that_nothing_survives_stops_the_run(tmp_path):
    rows = [{**r, "completion": "nonsense"} for r in records(4)]
    with pytest.raises(StageError, match="nothing of train and validation passed"):
        curate(rows, CurateConfig(), task=TASK, store=Store(tmp_path))


def test_the_verifier_scores_by_execution():
    rows = records(6)
    spoiled = json.loads(rows[0]["completion"])
    spoiled["classification"] = (
        "ROUNDING" if "ROUNDING" not in rows[0]["completion"] else "SUSPICIOUS"
    )
    rows[0]["completion"] = json.dumps(spoiled)
    scores = overall_scores(build_judge(JudgeVerify(), TASK).judge(rows))
    assert scores[rows[0]["example_id"]] == 0.0
    assert all(scores[r["example_id"]] == 1.0 for r in rows[1:])


def test_a_judge_that_fails_is_never_a_zero():
    row = {"example_id": "a"}
    rubric = {"clear": "Is it clear?", "right": "Is it right?"}
    good = read_scores(row, "judge-1", rubric, '{"clear": {"score": 0.5}, "right": {"score": 0.7}}')
    # 7 of 10 for the one, so nobody knows what 0.5 means for the other.
    bad = read_scores(row, "judge-2", rubric, '{"clear": {"score": 0.5}, "right": {"score": 7}}')
    assert [verdict["score"] for verdict in bad] == [None, None]
    assert "no score from 0 to 1" in bad[0]["error"]
    assert overall_scores([*good, *bad]) == {"a": pytest.approx(0.6)}


def test_scores_are_means_over_judges_then_over_dimensions():
    def row(judge, dimension, score):
        return {"example_id": "a", "judge": judge, "dimension": dimension, "score": score}

    verdicts = [row("1", "x", 0.0), row("2", "x", 1.0), row("1", "y", 1.0)]
    assert overall_scores(verdicts) == {"a": pytest.approx(0.75)}


def test_a_model_judge_needs_a_rubric(tmp_path):
    text = (TASK.folder / "task.toml").read_text()
    (tmp_path / "task.toml").write_text(text[: text.index("[rubric]")])
    (tmp_path / "answer.schema.json").write_text((TASK.folder / "answer.schema.json").read_text())
    with pytest.raises(ConfigError, match="needs a rubric"):
        check_jury([JudgeLiteLLM(model="m")], load_task(tmp_path))
