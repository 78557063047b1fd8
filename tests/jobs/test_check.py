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


def test_a_folder_without_a_task_names_what_there_is(tmp_path):
    done = CliRunner().invoke(cli, ["check", str(tmp_path)])
    assert isinstance(done.exception, ConfigError)
    assert "distillery init" in str(done.exception)
