"""A stage is done once for a configuration, and again only when asked to."""

import pyarrow as pa
import pytest

from cluster.errors import GateError, StageError
from cluster.models import model_digest
from distill.train.config import RUNNING
from distill.train.stage import _fingerprint
from jobs.config import load_run_config
from jobs.display import Display
from jobs.publish import trained_on
from jobs.run import STAGES, Run, StageResult
from jobs.train import rows_for


def open_run(tmp_path, *flags):
    overrides = ["--run.root", str(tmp_path), *flags]
    return Run(load_run_config(["jobs/runs/smoke.toml"], overrides=overrides), Display())


def test_a_finished_stage_is_skipped_until_its_configuration_changes(tmp_path):
    done = []

    def work(run, progress):
        done.append(run.folder)
        return StageResult(rows_in=1, rows_out=1)

    open_run(tmp_path).perform("evaluate", work)
    open_run(tmp_path).perform("evaluate", work)
    assert len(done) == 1
    open_run(tmp_path, "--evaluate.max_tokens", "17").perform("evaluate", work)
    assert len(done) == 2
    assert done[0] == done[1]


def test_what_stands_on_a_stage_done_again_is_no_longer_done(tmp_path):
    def work(run, progress):
        return StageResult(rows_in=1, rows_out=1)

    def fails(run, progress):
        raise GateError("the student is worse than its base")

    run = open_run(tmp_path)
    for stage in ("train", "evaluate", "gate", "publish"):
        run.perform(stage, work)
    run.perform("train", work, again=True)
    assert [s for s in STAGES if open_run(tmp_path).finished(s)] == ["train"]

    run.perform("evaluate", work)
    run.perform("gate", work)
    with pytest.raises(GateError):
        run.perform("gate", fails, again=True)
    assert open_run(tmp_path).finished("gate") is None


def test_another_content_of_a_file_that_the_configuration_names_is_another_run(tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    flags = ["--train.method", "dpo", "--train.dpo.pairs", str(pairs)]
    pairs.write_text('{"prompt": "1 + 1?", "chosen": "2", "rejected": "3"}\n')
    first = open_run(tmp_path, *flags)
    assert open_run(tmp_path, *flags).folder == first.folder
    pairs.write_text('{"prompt": "1 + 1?", "chosen": "2", "rejected": "11"}\n')
    assert open_run(tmp_path, *flags).folder != first.folder
    assert open_run(tmp_path, *flags).fingerprint("curate") == first.fingerprint("curate")


def test_training_again_starts_from_the_base_and_keeps_paid_answers(tmp_path):
    run = open_run(tmp_path)
    for path in (
        "checkpoints/made_from.json",
        "train.json",
        "samples/s.jsonl",
        "completions/part.json",
    ):
        run.store.write_json(path, {})
    run.perform("train", lambda run, progress: StageResult(rows_in=1, rows_out=1), again=True)
    assert not run.store.exists("checkpoints")
    assert not run.store.exists("train.json")
    assert not run.store.exists("samples")
    assert run.store.exists("completions/part.json")


def test_a_cluster_of_another_size_goes_on_with_the_same_run(tmp_path):
    assert open_run(tmp_path).folder == open_run(tmp_path, "--train.workers", "1").folder
    assert open_run(tmp_path).folder != open_run(tmp_path, "--train.seed", "99").folder


RUNNING_ONLY = {
    "max_failures": "7", "keep_checkpoints": "5", "workers": "1", "threads_per_worker": "3",
    "liger": "off", "track": '{ mlflow = "http://mlflow:5000" }',
}  # fmt: skip


@pytest.mark.parametrize("name", RUNNING)
def test_what_a_training_resumes_with_is_the_same_run(tmp_path, name):
    plain = open_run(tmp_path)
    changed = open_run(tmp_path, f"--train.{name}", RUNNING_ONLY[name])
    assert changed.config.train != plain.config.train
    assert changed.folder == plain.folder
    assert made_from(changed) == made_from(plain)


def made_from(run):
    return _fingerprint(run.config.student, run.config.train, [], [])


def test_pairs_for_dpo_are_read_from_what_the_jury_chose_among(tmp_path):
    flags = ["--train.method", "dpo", "--teacher.kind", "vllm", "--teacher.model", "m"]
    run = open_run(tmp_path, *flags, "--teacher.samples", "2", "--teacher.temperature", "0.7")
    row = {"messages": [{"role": "user", "content": "1 + 1?"}], "error": "", "request_key": "k"}
    candidates = [
        {**row, "example_id": name, "completion": text, "score": score, "chosen": score > 0.5}
        for name in ("a", "b")
        for text, score in (("2", 0.9), ("3", 0.1))
    ]
    run.store.write_table("candidates.parquet", pa.Table.from_pylist(candidates))
    for split, name in (("train", "a"), ("validation", "b")):
        table = pa.Table.from_pylist([{**row, "example_id": name, "completion": "2"}])
        run.store.write_table(f"curated/{split}.parquet", table)
    training, validation = rows_for(run)
    assert [(r["example_id"], r["chosen"], r["rejected"]) for r in training] == [("a", "2", "3")]
    assert [r["example_id"] for r in validation] == ["b"]


def test_an_adapter_is_not_published_for_weights_it_was_not_trained_on(tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text("{}")
    (base / "model.safetensors").write_bytes(b"first")
    run = open_run(tmp_path, "--student.model", str(base))
    digest = model_digest(base)
    assert trained_on(run) == digest
    run.store.write_json("train.json", {"made_from": {"records": "a"}, "result": {}})
    assert trained_on(run) == digest
    run.store.write_json("train.json", {"made_from": {"weights": digest}, "result": {}})
    assert trained_on(run) == digest
    (base / "model.safetensors").write_bytes(b"other")
    with pytest.raises(StageError, match=r"student\.model: config\.json or weights in .* changed"):
        trained_on(run)
