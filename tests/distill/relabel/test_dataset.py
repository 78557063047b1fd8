"""Dataset versions: whole, growing, unchangeable, and what the next run takes."""

from __future__ import annotations

import json
from collections import Counter

import pytest
from production import asked

from cluster.config import read_toml
from cluster.errors import DataError, StageError
from cluster.example import example_id
from cluster.masking import MaskingConfig, mask_messages
from cluster.storage import Store, rows_table
from distill.config import PromptsConfig
from distill.prompts.stage import make_prompts
from distill.records import COMPLETION
from distill.relabel.dataset import Parent, append_version, latest, read_version
from distill.tasks.task import load_task
from distill.teach.config import Price, ReplayTeacher
from distill.teach.replay import ReplayTeacherRunner

TASK = load_task("reconcile")


def answers(count, *, seed, split="train"):
    return [
        {
            **dict.fromkeys(COMPLETION.names),
            **row,
            "split": split,
            "prompt_id": "",
            "variables": json.dumps(row["variables"]),
            "reference": "",
            "stratum": "",
            "error": "",
            "teacher": "litellm:openai/teacher",
            "request_key": f"key-{row['example_id']}",
        }
        for row in asked(TASK, count, seed=seed)
    ]


@pytest.fixture
def parent():
    rows = [
        *answers(40, seed=1),
        *answers(5, seed=2, split="validation"),
        *answers(10, seed=3, split="test"),
    ]
    return Parent.of_rows("demo-1234", rows, rows)


def test_a_held_out_prompt_is_known_as_the_log_shows_it():
    [row] = answers(1, seed=3, split="test")
    asks = [{"role": "user", "content": "Reply to jane.doe@example.com about her invoice."}]
    row |= {"messages": asks, "example_id": example_id(asks)}
    logged, _ = mask_messages(asks)
    assert logged != asks
    known = Parent.of_rows("demo-1234", [row], [row]).ids(masking=MaskingConfig())
    assert {example_id(asks), example_id(logged)} <= known


def test_a_version_holds_its_parent_and_what_was_added(tmp_path, parent):
    datasets = Store(tmp_path)
    assert latest(datasets) == 0
    added = answers(6, seed=4)
    manifest = append_version(datasets, 1, parent=parent, added=added, facts={"reasons": {"x": 6}})
    assert manifest["parent"] == {"name": "demo-1234", "digest": parent.digest}
    assert manifest["rows"] == {"train": 46, "validation": 5, "test": 10}
    assert (manifest["added"], manifest["reasons"]) == (6, {"x": 6})
    assert json.loads((tmp_path / "v1/manifest.json").read_text()) == manifest
    assert latest(datasets) == 1
    first = read_version(datasets, 1)
    assert first.digest == manifest["digest"]
    known = parent.ids(masking=MaskingConfig())
    assert first.ids(masking=MaskingConfig()) == known | {row["example_id"] for row in added}
    second = append_version(datasets, 2, parent=first, added=answers(2, seed=5), facts={})
    assert second["parent"] == {"name": "v1", "digest": manifest["digest"]}
    assert second["rows"]["train"] == 48


def test_a_version_is_never_written_twice_and_a_changed_one_is_refused(tmp_path, parent):
    datasets = Store(tmp_path)
    append_version(datasets, 1, parent=parent, added=answers(2, seed=4), facts={})
    with pytest.raises(StageError, match="is there already"):
        append_version(datasets, 1, parent=parent, added=answers(3, seed=5), facts={})
    rows = datasets.read_rows("v1/completions.parquet")
    rows[0]["completion"] = "changed"
    datasets.write_table("v1/completions.parquet", rows_table(rows, COMPLETION))
    with pytest.raises(DataError, match=r"is not what manifest\.json says"):
        read_version(datasets, 1)


def test_the_next_run_takes_its_prompts_splits_and_answers(tmp_path, parent):
    datasets = Store(tmp_path / "datasets")
    added = answers(6, seed=4)
    price = Price(input_usd_per_mtok=3.0, output_usd_per_mtok=15.0)
    append_version(datasets, 1, parent=parent, added=added, facts={}, price=price)
    raw = read_toml(tmp_path / "datasets/v1/next.toml")
    config = PromptsConfig(**raw["prompts"])
    prompts = make_prompts(TASK, config, store=Store(tmp_path / "run"))
    before = Counter(row["split"] for row in prompts.all_rows())
    # Combinations that a held-out prompt has are kept out of training, new rows or old.
    assert before["test"] == 10
    assert before["train"] + before["validation"] + prompts.conflicts == 51
    assert {row["example_id"] for row in added} & {r["example_id"] for r in prompts.rows("train")}
    teacher = ReplayTeacher(**raw["teacher"])
    assert teacher.price == price
    runner = ReplayTeacherRunner(teacher, TASK, name="replay")
    said = {row["example_id"]: row["completion"] for row in [*parent.answers, *added]}
    rows = prompts.all_rows()
    assert [a.completion for a in runner.answer(rows)] == [said[r["example_id"]] for r in rows]
