"""`distillery convert`: what a person types and sees."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from cluster.errors import DataError, StageError
from cluster.storage import Store, rows_table
from distill.formats.convert import Plan, convert, open_source
from distill.records import COMPLETION, VERDICT

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def distillery(*arguments, folder, code=0):
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cli", "convert", *arguments],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stdout + done.stderr


def test_alpaca_becomes_messages_and_the_command_says_what_it_did(tmp_path):
    good = {"instruction": "Add.", "input": "2 and 2", "output": "4", "note": "x"}
    lines = [json.dumps(good)] * 3 + ["not json", '{"question": "?"}']
    (tmp_path / "in.jsonl").write_text("\n".join(lines))
    output = distillery("in.jsonl", "out.parquet", "--to", "messages", folder=tmp_path, code=2)
    assert "2 of 5 rows cannot be converted, nothing was written" in output
    assert "line 4: not json" in output
    assert "--skip-bad" in output
    flags = ["--to", "messages", "--skip-bad", "--drop", "note"]
    output = distillery("in.jsonl", "out.parquet", *flags, folder=tmp_path)
    assert "✓ 5 rows in, 3 rows out → out.parquet (parquet, messages)" in output
    assert "recognised: alpaca (3)" in output
    assert "dropped note: from 3 rows" in output
    assert "left out because they cannot be used: 2 rows" in output
    (row,) = {json.dumps(row) for row in Store(tmp_path).read_rows("out.parquet")}
    assert json.loads(row) == {
        "messages": [
            {"role": "user", "content": "Add.\n2 and 2"},
            {"role": "assistant", "content": "4"},
        ]
    }


def test_what_is_not_known_lists_what_is(tmp_path):
    (tmp_path / "in.jsonl").write_text('{"prompt": "a"}\n')
    output = distillery("in.jsonl", "out.jsonl", "--to", "chatml", folder=tmp_path, code=2)
    assert "--to chatml: must be one of messages, prompt-completion" in output
    output = distillery("in.jsonl", "out.csv", folder=tmp_path, code=2)
    assert "out.csv: cannot be written; allowed: .jsonl" in output


def completion(number, split):
    return {
        "example_id": f"e{number}",
        "split": split,
        "prompt_id": "",
        "messages": [{"role": "user", "content": f"{number}?"}],
        "variables": json.dumps({"number": number}),
        "reference": "",
        "stratum": "even",
        "completion": str(number),
        "error": "",
        "teacher": "program",
        "latency_s": 0.5,
    }


@pytest.fixture
def run(tmp_path):
    """A run whose jury refused the example e2."""
    store = Store(tmp_path / "run")
    splits = {"train": [0, 1, 2], "validation": [3]}
    for split, numbers in splits.items():
        rows = [completion(number, split) for number in numbers]
        store.write_table(f"curated/{split}.parquet", rows_table(rows, COMPLETION))
    verdicts = [
        {"example_id": f"e{n}", "judge": "verify", "dimension": "verified", "score": float(n != 2)}
        for n in range(4)
    ]
    store.write_table("verdicts/aaaa/part-0.parquet", rows_table(verdicts, VERDICT))
    store.write_json("config.json", {"jury": {"judges": [{"kind": "verify"}], "min_score": 0.8}})
    store.write_json("yield.json", {"train": {"rows_out": 2}, "validation": {"rows_out": 1}})
    store.write_json("stages/curate.json", {"fingerprint": "x"})
    return store


def test_a_run_is_exported_as_the_training_data_that_its_jury_accepted(run, tmp_path):
    output = distillery("run", "out-{split}.jsonl", folder=tmp_path)
    assert "✓ 4 rows in, 3 rows out → out-train.jsonl, out-validation.jsonl" in output
    assert "the jury did not accept them: 1 rows" in output
    assert "columns that stay in the run: error, request_key" in output
    rows = [json.loads(line) for line in (tmp_path / "out-train.jsonl").read_text().splitlines()]
    assert [row["id"] for row in rows] == ["e0", "e1"]
    assert rows[1] == {
        "id": "e1",
        "messages": [{"role": "user", "content": "1?"}, {"role": "assistant", "content": "1"}],
        "split": "train",
        "stratum": "even",
        "teacher": "program",
        "variables": {"number": 1},
    }


def test_verdicts_that_do_not_fit_the_yield_are_not_believed(run, tmp_path):
    run.write_json("yield.json", {"train": {"rows_out": 3}, "validation": {"rows_out": 1}})
    with pytest.raises(DataError, match=r"accept 3 rows, its yield\.json counts 4"):
        open_source(run.uri)


def test_a_run_that_has_not_been_curated_is_refused(run, tmp_path):
    run.remove("stages")
    with pytest.raises(StageError, match="'curate' has not finished"):
        convert(open_source(run.uri), str(tmp_path / "x"), Plan())
