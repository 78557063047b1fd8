"""Prompts are read or generated, and no held-out one shares what the task keeps apart."""

import datetime
import json
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError

from cluster.errors import DataError
from cluster.storage import Store
from distill.config import PromptsConfig
from distill.jsonl import read_jsonl
from distill.prompts.source import read_prompts
from distill.prompts.split import SPLITS, Index, assign, build_rows, contamination
from distill.prompts.stage import make_prompts
from distill.tasks.task import load_task
from distill.train.config import TrainConfig
from distill.tune.config import TuneConfig

SIZES = PromptsConfig(train=200, validation=40, test=100, seed=5)


def by_split(prompts):
    return {name: prompts.rows(name) for name in prompts.sizes}


def test_the_same_seed_makes_the_same_prompts_and_another_does_not(tmp_path):
    task = load_task("reconcile")
    ids = []
    for name, config in (("a", SIZES), ("b", SIZES), ("c", SIZES.model_copy(update={"seed": 6}))):
        split = make_prompts(task, config, store=Store(tmp_path / name))
        ids.append([row["example_id"] for row in split.rows("test")])
    assert ids[0] == ids[1]
    assert not set(ids[0]) & set(ids[2])


def test_more_training_prompts_leave_the_test_prompts_as_they_were(tmp_path):
    task = load_task("reconcile")
    few = make_prompts(task, SIZES, store=Store(tmp_path / "few"))
    config = SIZES.model_copy(update={"train": 400})
    many = make_prompts(task, config, store=Store(tmp_path / "many"))
    assert [r["example_id"] for r in few.rows("test")] == [
        r["example_id"] for r in many.rows("test")
    ]


def test_no_vendor_amount_date_combination_is_in_two_splits(tmp_path):
    split = make_prompts(load_task("reconcile"), SIZES, store=Store(tmp_path))

    def combinations(name):
        for row in split.rows(name):
            variables = json.loads(row["variables"])
            for side in ("bank", "erp"):
                line = variables[side]
                if line:
                    yield line["vendor"], line["amount"], line["date"]

    seen = {name: set(combinations(name)) for name in ("train", "validation", "test")}
    assert not seen["train"] & seen["test"]
    assert not seen["train"] & seen["validation"]
    assert not seen["validation"] & seen["test"]
    report = json.loads((tmp_path / "prompts/contamination.json").read_text())
    assert report["clean"] is True


def test_the_check_finds_a_combination_that_stands_on_the_other_side_of_a_pair():
    line = {"vendor": "A", "amount": "1.00", "date": "2025-01-01"}
    rows = [
        {"example_id": f"{n:016x}", "split": "", "stratum": "", "variables": json.dumps(variables)}
        for n, variables in enumerate(({"bank": line}, {"erp": line}), start=1)
    ]
    index = Index.of(rows, load_task("reconcile").spec.prompts.disjoint)
    train, test = SPLITS.index("train"), SPLITS.index("test")
    report = contamination(index, np.array([train, test]))
    assert report["shared"]["test/train"] == 1
    assert report["clean"] is False
    assert contamination(index, np.array([train, train]))["clean"] is True


def test_a_number_and_its_text_are_the_same_customer():
    rows = [
        {"example_id": f"{n:016x}", "split": "", "stratum": "", "variables": json.dumps(variables)}
        for n, variables in enumerate(({"customer": 123}, {"customer": " 123"}), start=1)
    ]
    splits = np.array([SPLITS.index("train"), SPLITS.index("test")])
    assert not contamination(Index.of(rows, [["customer"]]), splits)["clean"]


@pytest.fixture
def starter(tmp_path):
    from jobs.init import init_task

    init_task(str(tmp_path / "my-task"))
    return tmp_path / "my-task"


def test_a_file_is_split_by_its_disjoint_fields_and_stratified(starter, tmp_path):
    config = PromptsConfig(train=150, validation=16, test=40)
    split = make_prompts(load_task(starter), config, store=Store(tmp_path / "run"))
    assert [len(split.rows(name)) for name in ("train", "validation", "test")] == [150, 16, 40]
    keys = {
        name: {
            (v["product"], v["problem"]) for v in map(lambda r: json.loads(r["variables"]), rows)
        }
        for name, rows in by_split(split).items()
    }
    assert not keys["train"] & keys["test"]
    # Eight products, forty test prompts: each product has its share.
    strata = [row["stratum"] for row in split.rows("test")]
    assert all(4 <= strata.count(s) <= 6 for s in set(strata))
    assert len(set(strata)) == 8


def test_too_few_prompts_shrink_the_held_out_splits_and_say_so(starter, tmp_path):
    lines = (starter / "prompts.jsonl").read_text().splitlines()[:30]
    (starter / "prompts.jsonl").write_text("\n".join(lines))
    split = make_prompts(load_task(starter), PromptsConfig(), store=Store(tmp_path / "run"))
    assert len(split.rows("test")) == 6
    assert "30 prompts are fewer than asked for" in split.notes[0]


def test_broken_lines_are_all_named_with_number_and_text(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_bytes(b'{"a": 1}\nnot json\n\n[1]\n{"b": "\xff"}\n{"a": 2}\n')
    with pytest.raises(DataError) as caught:
        read_jsonl(path)
    message = str(caught.value)
    assert "3 line(s)" in message
    assert "line 2: " in message
    assert "not json" in message
    assert "line 4: a list, not an object" in message
    assert "line 5: " in message
    assert "Mend or remove them" in message
    assert "skip" not in message  # only a run's prompts can be read so
    assert read_jsonl(path, skip_bad=True) == [{"a": 1}, {"a": 2}]


def test_a_byte_order_mark_is_not_part_of_the_first_record(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"a": 1}\n{"a": 2}\n', encoding="utf-8-sig")
    assert read_jsonl(path) == [{"a": 1}, {"a": 2}]


def test_half_a_character_and_endless_nesting_are_broken_lines(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"a": "\\ud800"}\n{"a": ' + "[" * 100_000 + '\n{"a": "\\ud83d\\ude00"}\n')
    with pytest.raises(DataError, match=r"line 1: holds half of a surr(.|\n)*line 2: .*deeply"):
        read_jsonl(path)
    assert read_jsonl(path, skip_bad=True) == [{"a": "\U0001f600"}]


def test_a_date_in_a_parquet_file_is_named_with_its_prompt(starter, tmp_path):
    task = load_task(starter)
    pq.write_table(
        pa.table({"ticket": ["It leaks."], "day": [datetime.date(2025, 1, 2)]}),
        starter / "prompts.parquet",
    )
    toml = starter / "task.toml"
    toml.write_text(toml.read_text().replace("prompts.jsonl", "prompts.parquet"))
    with pytest.raises(DataError, match=r"record 1: day datetime.date\(2025, 1, 2\) cannot become"):
        make_prompts(load_task(starter), PromptsConfig(), store=Store(tmp_path / "run"))
    with pytest.raises(DataError, match=r"prompt 2: paid .* cannot become JSON.*text"):
        build_rows(task, [{"ticket": "a"}, {"ticket": "b", "reference": {"paid": Decimal("1.5")}}])


@pytest.mark.parametrize("section", [PromptsConfig, TrainConfig, TuneConfig])
def test_a_seed_below_zero_is_refused_before_any_work(section):
    with pytest.raises(ValidationError, match=r"seed\n.*greater than or equal to 0"):
        section(seed=-1)


def test_broken_prompts_say_how_to_go_on_without_them(starter, tmp_path):
    with (starter / "prompts.jsonl").open("a") as file:
        file.write("not json\n")
    task, config = load_task(starter), PromptsConfig(train=150, validation=16, test=40)
    with pytest.raises(DataError, match=r"--skip-bad.*or skip_bad = true under \[prompts\]"):
        make_prompts(task, config, store=Store(tmp_path / "run"))
    config = config.model_copy(update={"skip_bad": True})
    assert make_prompts(task, config, store=Store(tmp_path / "run")).total == 206


def rows_of(folder, *, skip_bad=False):
    task = load_task(folder)
    sizes = {"train": 1, "validation": 1, "test": 1}
    return build_rows(task, read_prompts(task, sizes=sizes, seed=0, skip_bad=skip_bad))


def test_an_id_that_stands_twice_is_refused(starter):
    rows = read_jsonl(starter / "prompts.jsonl")
    with pytest.raises(DataError, match=r"prompt 248: id .* stands twice"):
        build_rows(load_task(starter), [*rows, rows[0]])


def test_an_id_or_a_split_that_is_null_is_none(starter):
    task = load_task(starter)
    tickets = [{"id": None, "split": None, "ticket": text} for text in ("It leaks.", "It hums.")]
    rows = build_rows(task, [*tickets, {"id": 0, "ticket": "It smells."}])
    assert [(row["prompt_id"], row["split"]) for row in rows] == [("", ""), ("", ""), ("0", "")]
    with pytest.raises(DataError, match=r"prompt 2: .* is null"):
        build_rows(task, [{"ticket": "It leaks."}, {"ticket": None}])


@pytest.mark.parametrize(
    ("row", "problem"),
    [
        ({"id": "t1", "ticket": "Again."}, r"id 't1' stands twice"),
        ({"id": "t3", "tikcet": "Late."}, r".*task.toml: .*'ticket' is undefined.* has: tikcet"),
        ({"id": "t3", "ticket": "Late.", "split": "tset"}, r"split 'tset' must be one of"),
    ],
)
def test_what_is_wrong_with_a_prompt_is_said_with_its_place(starter, row, problem):
    good = [{"id": "t1", "ticket": "One."}, {"id": "t2", "ticket": "Two."}]
    lines = [json.dumps(good[0]), "", "no JSON", json.dumps(good[1]), json.dumps(row)]
    (starter / "prompts.jsonl").write_text("\n".join(lines))
    with pytest.raises(DataError, match=rf"prompts.jsonl, line 5: {problem}"):
        rows_of(starter, skip_bad=True)
    toml = starter / "task.toml"
    toml.write_text(toml.read_text().replace('"prompts.jsonl"', '"prompts.parquet"'))
    rows = [row] if "tikcet" in row else [{"split": "", **other} for other in (*good, row)]
    pq.write_table(pa.Table.from_pylist(rows), starter / "prompts.parquet")
    with pytest.raises(DataError, match=rf"prompts.parquet, record {len(rows)}: {problem}"):
        rows_of(starter)


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_is_none_gets_into_no_prompt(starter, value):
    (starter / "prompts.jsonl").write_text(
        f'{{"ticket": "One."}}\n{{"ticket": "Two.", "lines": [{{"amount": {value}}}]}}\n'
    )
    with pytest.raises(DataError, match=rf"line 2: {value} is no JSON"):
        rows_of(starter)
    assert len(rows_of(starter, skip_bad=True)) == 1
    toml = starter / "task.toml"
    toml.write_text(toml.read_text().replace('"prompts.jsonl"', '"prompts.parquet"'))
    lines = [[{"amount": 1.0}], [{"amount": float(value)}]]
    rows = [{"ticket": f"{n}", "lines": line} for n, line in enumerate(lines)]
    pq.write_table(pa.Table.from_pylist(rows), starter / "prompts.parquet")
    with pytest.raises(DataError, match=r"record 2: lines.0.amount is -?(nan|inf)"):
        rows_of(starter)


def test_a_split_that_ends_empty_is_an_error(starter):
    rows = build_rows(load_task(starter), read_jsonl(starter / "prompts.jsonl")[:1])
    with pytest.raises(DataError, match="no prompt is left for"):
        assign(Index.of(rows, []), sizes={"train": 1, "validation": 1, "test": 1}, seed=0)
