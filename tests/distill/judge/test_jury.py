"""The jury as a stage: executed judges beside models, agreement beside verdicts."""

from __future__ import annotations

import json

import pyarrow as pa
import pytest

from cluster.errors import ConfigError, StageError
from cluster.storage import Store, rows_table
from distill.config import JudgeLiteLLM, JudgeParse, JudgeVerify, JuryConfig
from distill.judge.judges import build_judge, check_jury, verdict
from distill.judge.stage import accepted, judge, verdict_folder
from distill.records import VERDICT
from distill.tasks.task import load_task

TASK = load_task("reconcile")
OLD_COLUMNS = ("example_id", "judge", "dimension", "score", "reasoning", "error")


def record(n, completion="{}"):
    return {
        "example_id": f"e{n}", "completion": completion, "variables": "{}",
        "teacher": "litellm:anthropic/claude-sonnet-4",
    }  # fmt: skip


def judged(tmp_path, scores):
    """A run folder in which every judge (config -> scores) has already said its verdicts."""
    store = Store(tmp_path)
    for config, given in scores.items():
        rows = [
            verdict(record(n), config.name or config.model, "right", score=score,
                    error="" if score is not None else "AuthenticationError: wrong key")
            for n, score in enumerate(given)
        ]  # fmt: skip
        store.write_table(f"{verdict_folder(config)}/part-1.parquet", rows_table(rows, VERDICT))
    return store, JuryConfig(judges=tuple(scores), min_score=0.5)


CLAUDE, MISTRAL = JudgeLiteLLM(model="claude-opus-4"), JudgeLiteLLM(model="mistral-large")


def test_agreement_is_written_beside_the_verdicts(tmp_path):
    store, config = judged(tmp_path, {CLAUDE: [0.9, 0.5, 0.2], MISTRAL: [0.8, 0.6, 0.1]})
    kept = judge(TASK, config, records=[record(n) for n in range(3)], store=store)
    assert [row["example_id"] for row in kept] == ["e0", "e1"]
    report = json.loads((tmp_path / "agreement.json").read_text())
    assert 0.9 < report["dimensions"]["right"]["alpha"] < 1
    (pair,) = report["self_preference"]
    assert (pair["judge"], pair["family"]) == ("claude-opus-4", "claude")
    assert pair["effect"] == pytest.approx((0.1 - 0.1 + 0.1) / 3)
    assert accepted([record(0)], config, store=store) == [record(0)]


def test_how_a_judge_is_asked_does_not_change_where_its_verdicts_lie():
    faster = CLAUDE.model_copy(update={"concurrency": 64, "timeout_s": 5.0, "max_retries": 0})
    assert verdict_folder(faster) == verdict_folder(CLAUDE) != verdict_folder(MISTRAL)


def test_verdicts_of_an_older_version_count_on(tmp_path):
    store, config = judged(tmp_path, {MISTRAL: [0.9]})
    older = pa.schema([VERDICT.field(name) for name in OLD_COLUMNS])
    rows = [verdict(record(1), "mistral-large", "right", score=0.7)]
    store.write_table(f"{verdict_folder(MISTRAL)}/part-0.parquet", rows_table(rows, older))
    records = [record(0), record(1)]
    assert judge(TASK, config, records=records, store=store) == records
    assert store.read_json("agreement.json")["judges"]["mistral-large"]["num_scores"] == 2


def test_a_judge_that_never_answers_stops_the_run_instead_of_shrinking_the_jury(tmp_path):
    store, config = judged(tmp_path, {CLAUDE: [0.9], MISTRAL: [None]})
    # Nothing is left to ask once every record has a score; here one judge's are all failures.
    with pytest.raises(StageError, match=r"mistral-large gave no verdict.*wrong key"):
        judge(TASK, config, records=[], store=store)


def test_executed_judges_score_a_dimension_of_the_rubric():
    rows = [record(0, "no JSON at all")]
    parse = build_judge(JudgeParse(dimension="parsing_quality"), TASK).judge(rows)
    verify = build_judge(JudgeVerify(), TASK).judge(rows)
    assert [(v["judge"], v["dimension"], v["score"]) for v in [*parse, *verify]] == [
        ("parse", "parsing_quality", 0.0),
        ("verify", "verified", 0.0),
    ]
    assert parse[0]["issues"] == ["unreadable"]
    assert "not JSON" in parse[0]["reasoning"]
    assert parse[0]["author"] == "litellm:anthropic/claude-sonnet-4"


def task_with(tmp_path, verify):
    (tmp_path / "task.toml").write_text(
        'name = "t"\nverify = "v:verify"\n[prompt]\nuser = "{{ x }}"\n[output]\nformat = "text"\n'
        '[prompts]\nfile = "p.jsonl"\n'
    )
    (tmp_path / "v.py").write_text(f"def verify(variables, answer):\n    return {verify}\n")
    return load_task(tmp_path)


@pytest.mark.parametrize("returned", ["7", "float('nan')", "-0.1", "1 / 0", "'yes'", "None"])
def test_a_verifier_that_breaks_is_a_failure_too(tmp_path, returned):
    (found,) = build_judge(JudgeVerify(), task_with(tmp_path, returned)).judge([record(0, "x")])
    assert found["score"] is None
    assert found["error"]


def test_a_verifier_may_say_why(tmp_path):
    task = task_with(tmp_path, "(0.25, 'one of four tests passed')")
    (found,) = build_judge(JudgeVerify(dimension="correct"), task).judge([record(0, "x")])
    assert (found["score"], found["dimension"]) == (0.25, "correct")
    assert found["reasoning"] == "one of four tests passed"


def test_two_judges_never_share_a_name():
    with pytest.raises(ConfigError, match="give each a `name` of its own"):
        check_jury([JudgeVerify(), JudgeVerify(dimension="other")], TASK)
