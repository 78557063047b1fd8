"""`distillery check`: exit code 0 or 2, a page for people, JSON for programs."""

import json

import pytest
from click.testing import CliRunner

from cluster.errors import ConfigError
from distill.tasks.task import load_task
from jobs.check import read_sample
from jobs.cli import cli
from jobs.init import init_task


def check(*arguments, code):
    done = CliRunner().invoke(cli, ["check", *arguments])
    assert done.exit_code == code, done.output
    return done.output


@pytest.fixture
def starter(tmp_path):
    folder = tmp_path / "tickets"
    init_task(str(folder))
    return folder


def replace(folder, old, new):
    path = folder / "task.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_the_starter_task_is_graded_with_what_to_do_and_what_to_expect(starter):
    output = check(str(starter), code=0)
    assert "complexity 1 of 4, simple" in output
    assert "1–3 billion parameters" in output
    assert "write-ups of 2025" in output
    assert "to do: collect or generate more: at least 1,000" in output
    assert "advice: distil it" in output
    assert "0 failed" in output


def test_a_bundled_task_is_found_by_its_name():
    checkup = json.loads(check("reconcile", "--json", code=0))
    assert checkup["task"] == "reconcile"
    assert checkup["complexity"]["category"] == "classification"
    assert "fail" not in {item["verdict"] for item in checkup["items"]}


def test_json_holds_items_complexity_expectations_and_advice(starter):
    checkup = json.loads(check(str(starter), "--json", code=0))
    assert set(checkup) == {"task", "items", "complexity", "expectations", "recommendation"}
    # 10 tokens: the recorded answers of the run beside the task were read.
    assert checkup["complexity"]["answer_tokens"] == pytest.approx(10, abs=2)
    assert checkup["recommendation"]["advice"] == "distil"


def test_a_failed_item_exits_2_and_says_when_not_to_distil(starter):
    replace(starter, "facts_change = false", "facts_change = true")
    output = check(str(starter), code=2)
    assert "advice: do not distil: look the facts up" in output
    assert "deployment.facts_change" in output
    assert "1 failed" in output


def test_prompts_that_cannot_be_read_are_a_finding_with_the_line(starter):
    with (starter / "prompts.jsonl").open("a") as file:
        file.write('{"ticket": \n')
    output = check(str(starter), code=2)
    assert "line 248" in output
    assert "mend first: input.prompts" in output


def test_prompts_are_read_as_the_run_beside_the_task_reads_them(starter):
    with (starter / "prompts.jsonl").open("a") as file:
        file.write('{"ticket": \n')
    run = starter / "run.toml"
    run.write_text(run.read_text().replace("[prompts]", "[prompts]\nskip_bad = true"))
    check(str(starter), code=0)


def test_a_generator_that_raises_is_a_finding(starter):
    (starter / "make.py").write_text("def prompts(count, seed):\n    raise KeyError('vendor')\n")
    replace(starter, 'file = "prompts.jsonl" ', 'generator = "make:prompts" ')
    assert "KeyError: 'vendor'" in check(str(starter), code=2)


def test_a_large_file_is_looked_at_evenly(starter):
    rows = [{"ticket": f"ticket {n}", "product": "p", "problem": n} for n in range(2500)]
    (starter / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sample = read_sample(load_task(starter))
    assert (len(sample.prompts), sample.total) == (1000, 2500)
    assert sample.prompts[-1]["problem"] > 2490


def write_answers(folder, rows):
    (folder / "answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda rows: [{**row, "id": f"x{row['id']}"} for row in rows], "247 of 247"),
        (lambda rows: rows[:200], "47 of 247"),
        (lambda rows: [*rows[:2], {"id": "t001"}], "line 3: needs `completion`"),
        (lambda rows: [{**row, "completion": "billing"} for row in rows], "none of 247"),
        (lambda rows: [], "holds nothing"),
    ],
)
def test_recorded_answers_that_a_run_could_not_use_fail(starter, change, words):
    rows = [json.loads(line) for line in (starter / "answers.jsonl").read_text().splitlines()]
    write_answers(starter, change(rows))
    output = " ".join(check(str(starter), code=2).split())
    assert words in output
    assert "mend first: input.answers" in output


def test_a_broken_line_or_a_missing_file_of_answers_is_named(starter):
    with (starter / "answers.jsonl").open("a") as file:
        file.write('{"id": \n')
    output = check(str(starter), code=2)
    assert "line 248" in output
    assert "skip" not in output  # a recording is read as a whole
    (starter / "answers.jsonl").unlink()
    assert "no such file" in check(str(starter), code=2)


def test_a_recorded_answer_that_does_not_fit_is_to_look_at(starter):
    rows = [json.loads(line) for line in (starter / "answers.jsonl").read_text().splitlines()]
    write_answers(starter, [{**rows[0], "completion": "billing"}, *rows[1:]])
    checkup = json.loads(check(str(starter), "--json", code=0))
    (item,) = (item for item in checkup["items"] if item["id"] == "input.answers")
    assert item["verdict"] == "warn"
    assert "1 of 247 do not fit" in item["evidence"]


def test_a_folder_without_a_task_names_what_there_is(tmp_path):
    done = CliRunner().invoke(cli, ["check", str(tmp_path)])
    assert isinstance(done.exception, ConfigError)
    assert "distillery init" in str(done.exception)
