"""`distillery route`: an evaluated run in, a file that a server takes and a page out."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from production import asked, log_row, write_log
from threadpoolctl import threadpool_limits

from cluster.errors import ConfigError, DataError
from cluster.storage import rows_table
from distill.evaluate.stage import SCHEMA
from distill.prompts.stage import make_prompts
from distill.tasks.task import load_task
from jobs.cli import cli
from jobs.config import load_run_config
from jobs.display import Display
from jobs.preflight import preflight
from jobs.route import main, route_run
from jobs.routing import routing_parts
from jobs.run import Run

ROOT = Path(__file__).parents[2]
SMOKE = ROOT / "jobs/runs/smoke.toml"
TASK = load_task("reconcile")
HARD = {"two_currencies", "material"}


@pytest.fixture(autouse=True)
def _one_thread():
    with threadpool_limits(1):
        yield


def predictions(prompts, right):
    return [
        {"example_id": p["example_id"], "correct": right(p), "valid": True, "error": ""}
        for p in prompts
    ]


def evaluated(root, *flags, student_usd=0.02, teacher_usd=1.5, hard=HARD):
    """The overrides and folder of a run whose student is wrong about some strata."""
    overrides = ["--run.root", str(root), "--prompts.test", "160", *flags]
    config = load_run_config([SMOKE], overrides=overrides)
    run = Run(config, Display())
    make_prompts(TASK, config.prompts, store=run.store)
    prompts = run.store.read_rows("prompts/test.parquet")
    for name, right in (
        ("student", lambda p: p["stratum"] not in hard),
        ("teacher", lambda p: True),
    ):
        rows = rows_table(predictions(prompts, right), SCHEMA)
        run.store.write_table(f"predictions/{name}.parquet", rows)
    models = {"student": {"usd_per_1k": student_usd}, "teacher": {"usd_per_1k": teacher_usd}}
    run.store.write_json("evaluation.json", {"models": models})
    run.point_latest()
    return overrides, run.folder


def test_a_run_becomes_a_file_a_page_and_a_section_to_paste(tmp_path, capsys):
    overrides, folder = evaluated(tmp_path / "runs")
    found = route_run([SMOKE], overrides=overrides)
    shown = capsys.readouterr().out
    assert found["recommended"]
    assert found["picked"]["gain_ci95"][0] > 0
    assert json.loads((folder / "routing.json").read_text()) == json.loads(json.dumps(found))
    assert "<svg" in (folder / "routing.html").read_text()
    assert 'to = "teacher"' in shown
    assert "cheapest within 1 point" in " ".join(shown.split())


def test_what_the_log_says_joins_and_what_the_student_did_not_answer_does_not(tmp_path):
    log = [log_row(n, row, quality="passed") for n, row in enumerate(asked(TASK, 60, seed=7))]
    for row in log[:5]:
        row["quality"] = "verifier"
    for row in log[5:8]:
        row |= {"routed_to": "teacher", "answered_by": "teacher"}
    for row in log[8:12]:
        row |= {"routed_to": "large@v1", "model_answered": "large@v1"}
    write_log(tmp_path / "log", log)
    flags = ["--serve.request_log", str(tmp_path / "log"), "--monitor.adapter", "reconcile"]
    overrides, _ = evaluated(tmp_path / "runs", *flags)
    found = route_run([SMOKE], overrides=overrides, since="2026-05-01")
    labels = found["labels"]
    known = labels["left_out"].get("known", 0) + labels["left_out"].get("masked", 0)
    assert labels["logged"] + known == 60 - 7
    assert labels["logged_wrong"] <= 5


def test_another_runs_student_can_be_the_other_model(tmp_path):
    overrides, _ = evaluated(tmp_path / "runs")
    _, large = evaluated(tmp_path / "large", hard={"material"}, student_usd=0.2)
    found = route_run([SMOKE], overrides=overrides, other=str(large))
    assert found["to"] == large.name
    assert found["curve"][-1]["usd_per_1k"] == 0.2
    assert found["curve"][0]["accuracy"] < found["curve"][-1]["accuracy"] < 1
    with pytest.raises(DataError, match=r"--other .* has no predictions/student\.parquet"):
        route_run([SMOKE], overrides=overrides, other=str(tmp_path))


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--min-quality", "good"], "--min-quality 'good': give a number"),
        (["--min-quality=0.9", "--teacher-share=0.1"], "give one of them"),
        (["--max-usd-per-1k", "-1"], "give dollars above 0"),
        (["--since"], "a value must follow"),
        (["--since", "7d"], "run the stage 'generate' first"),
    ],
)
def test_the_module_refuses_what_it_cannot_use(tmp_path, monkeypatch, capsys, arguments, said):
    given = ["--config", str(SMOKE), "--run.root", str(tmp_path), *arguments]
    monkeypatch.setattr(sys, "argv", ["jobs.route", *given])
    with pytest.raises(SystemExit):
        main()
    shown = capsys.readouterr()
    assert said in " ".join((shown.out + shown.err).split())


def test_a_window_needs_a_log_and_the_command_line_is_the_same(tmp_path):
    overrides, folder = evaluated(tmp_path / "runs")
    with pytest.raises(ConfigError, match="there is no request log to read"):
        cli.main(["route", str(SMOKE), *overrides, "--since", "7d"], standalone_mode=False)
    cli.main(["route", str(SMOKE), *overrides, "--teacher-share", "0.1"], standalone_mode=False)
    assert json.loads((folder / "routing.json").read_text())["picked"]["share"] <= 0.1


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """What `distillery route` wrote, once."""
    with threadpool_limits(1):
        overrides, folder = evaluated(tmp_path_factory.mktemp("runs"))
        route_run([SMOKE], overrides=overrides)
    return json.loads((folder / "routing.json").read_text())


@pytest.fixture
def served(tmp_path, made):
    """`served(**changes)`: the parts of a server that is given the changed file."""

    def parts(*flags, text=None, **changes):
        path = tmp_path / "routing.json"
        path.write_text(text if text is not None else json.dumps(made | changes))
        section = ["--serve.routing.reconcile.predictor", str(path),
                   "--serve.routing.reconcile.to", "large"]  # fmt: skip
        return routing_parts(load_run_config([SMOKE], overrides=[*section, *flags]))

    return parts


def test_a_server_takes_the_file_or_a_threshold_of_its_own(served, made):
    assert served()["reconcile"].threshold == made["threshold"]
    own = served("--serve.routing.reconcile.threshold", "0.4")
    assert own["reconcile"].threshold == 0.4
    silent = {"threshold": None, "reason": "AUC 0.51"}
    given = served("--serve.routing.reconcile.threshold", "0.4", **silent)
    assert given["reconcile"].threshold == 0.4
    with pytest.raises(ConfigError, match=r"recommends no routing \(AUC 0\.51\); leave the sect"):
        served(**silent)


@pytest.mark.parametrize(
    ("changes", "error", "said"),
    [
        ({"text": "not JSON"}, DataError, "is no routing file"),
        ({"text": '{"num_prompts": 3}'}, DataError, "is no routing file"),
        ({"version": 2}, DataError, "has version 2, this program reads 1; update Distillery"),
        ({"version": "x"}, DataError, "has version 'x', this program reads 1; make it anew"),
        ({"model": None}, DataError, "is broken"),
        ({"model": {"features": {}}}, DataError, "is broken"),
        ({"threshold": "high"}, DataError, "is broken"),
        ({"task": "interview", "task_digest": "1" * 64}, ConfigError,
         "learned from the task 'interview', and the answers are those of 'reconcile'"),
        ({"task_digest": "1" * 64}, ConfigError, "learned from another state of 'reconcile'"),
        ({"adapter": "other"}, ConfigError, "learned from the student 'other'"),
        ({"base_model": "llama"}, ConfigError, "a student of 'llama', and student.model is"),
    ],
)  # fmt: skip
def test_a_file_that_does_not_fit_is_one_error(served, changes, error, said):
    with pytest.raises(error, match=r"serve\.routing\.reconcile\.predictor") as caught:
        served(**changes)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "change",
    [
        lambda model: model | {"buckets": model["buckets"][1:]},
        lambda model: model | {"intercept": float("nan")},
        lambda model: model | {"intercept": "much"},
        lambda model: model | {"features": model["features"] | {"kind": "v9"}},
        lambda model: model | {"more": 1},
    ],
)
def test_a_model_that_was_cut_or_changed_is_refused(served, made, change):
    with pytest.raises(DataError, match=r"is broken|other features"):
        served(model=change(made["model"]))


def test_a_missing_file_is_found_before_anything_starts(tmp_path):
    overrides = ["--serve.routing.reconcile.predictor", str(tmp_path / "no.json"),
                 "--serve.routing.reconcile.to", "large"]  # fmt: skip
    run = Run(load_run_config([SMOKE], overrides=overrides), Display())
    with pytest.raises(DataError, match=r"no\.json' is not there; make it anew with `distillery"):
        routing_parts(run.config)
    with pytest.raises(ConfigError, match="names the student itself"):
        load_run_config([SMOKE], overrides=[*overrides, "--serve.routing.reconcile.to=reconcile"])
    with pytest.raises(ConfigError, match=r"give \[serve\.quality\.reconcile\] usd_per_day"):
        load_run_config([SMOKE], overrides=[*overrides, "--serve.routing.reconcile.to=teacher"])


def test_preflight_of_a_deployment_looks_at_the_file(tmp_path, served, monkeypatch):
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    (model / "chat_template.jinja").write_text("{{ messages }}")
    overrides = ["--serve.routing.reconcile.predictor", str(tmp_path / "no.json"),
                 "--serve.routing.reconcile.to", "large", "--student.model", str(model),
                 "--cluster.min_free_memory_gb", "0"]  # fmt: skip
    run = Run(load_run_config([SMOKE], overrides=overrides), Display())
    with pytest.raises(DataError, match="is not there"):
        preflight(run, ["deploy"])
