"""A stage is done once for a configuration, and again only when asked to."""

from jobs.config import load_run_config
from jobs.display import Display
from jobs.run import Run, StageResult


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


def test_training_again_starts_from_the_base_and_keeps_paid_answers(tmp_path):
    run = open_run(tmp_path)
    for path in ("checkpoints/made_from.json", "train.json", "completions/part.json"):
        run.store.write_json(path, {})
    run.perform("train", lambda run, progress: StageResult(rows_in=1, rows_out=1), again=True)
    assert not run.store.exists("checkpoints")
    assert not run.store.exists("train.json")
    assert run.store.exists("completions/part.json")
