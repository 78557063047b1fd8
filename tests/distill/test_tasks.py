"""A task is a folder of files: templates, schema, scoring, and perhaps a verifier."""

import json

import pytest

from cluster.errors import ConfigError, DataError
from distill.tasks.task import load_task

TASK = """
name = "colours"
[prompt]
system = "Name the colour."
user = "{{ thing }}"
[output.json_schema]
type = "object"
required = ["colour"]
[output.json_schema.properties.colour]
enum = ["red", "green"]
[score.fields]
colour = "exact"
[prompts]
file = "prompts.jsonl"
"""


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "task.toml").write_text(TASK)
    (tmp_path / "prompts.jsonl").write_text('{"thing": "grass"}\n')
    return tmp_path


def replace(folder, old, new):
    path = folder / "task.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def test_a_prompt_is_rendered_and_an_answer_scored(folder):
    task = load_task(folder)
    assert task.messages({"thing": "grass"}) == [
        {"role": "system", "content": "Name the colour."},
        {"role": "user", "content": "grass"},
    ]
    right = task.score('{"colour": "green"}', {"colour": "green"})
    wrong = task.score('{"colour": "red"}', {"colour": "green"})
    invalid = task.score("green, I think", {"colour": "green"})
    assert (right.valid, right.correct, right.label) == (True, True, "green")
    assert (wrong.valid, wrong.correct, wrong.reason) == (True, False, "wrong: colour")
    assert (invalid.valid, invalid.correct) == (False, False)
    assert "not JSON" in invalid.reason


def test_an_answer_that_agrees_counts_as_the_class_it_agrees_with(folder):
    replace(folder, 'colour = "exact"', 'colour = "casefold"')
    scored = load_task(folder).score('{"colour": "green"}', {"colour": "Green"})
    assert scored.correct
    assert scored.label == scored.expected == "Green"


def test_a_code_fence_is_read_but_prose_around_it_is_not(folder):
    task = load_task(folder)
    assert task.parse('```json\n{"colour": "red"}\n```').answer == {"colour": "red"}
    assert task.parse('Sure! {"colour": "red"}').answer is None


@pytest.mark.parametrize(
    ("completion", "problem"),
    [
        ("[" * 100_000, "nested too deeply"),
        ('{"colour": ' + "[" * 100_000, "nested too deeply"),
        ('{"colour": "\\ud800"}', "half of a surrogate pair"),
        (f'{{"share": 1{"0" * 400}}}', "cannot be checked"),
        ('{"share": NaN}', "cannot be checked"),
    ],
)
def test_an_answer_that_nobody_foresaw_is_invalid_and_no_exception(folder, completion, problem):
    replace(folder, 'enum = ["red", "green"]', "[output.json_schema.properties.share]\n"
            "multipleOf = 0.5")  # fmt: skip
    replace(folder, 'required = ["colour"]', "")
    parsed = load_task(folder).parse(completion)
    assert parsed.answer is None
    assert problem in parsed.problem


def test_a_number_beyond_every_float_is_wrong(folder):
    replace(folder, 'enum = ["red", "green"]', 'type = "integer"')
    replace(folder, 'colour = "exact"', 'colour = "number"')
    scored = load_task(folder).score(f'{{"colour": 1{"0" * 400}}}', {"colour": 7})
    assert (scored.valid, scored.correct) == (True, False)


def test_sections_must_be_there_and_hold_text(folder):
    schema = TASK[TASK.index("[output") : TASK.index("[score")]
    replace(folder, schema, '[output]\nformat = "sections"\nsections = ["Title", "Body"]\n')
    task = load_task(folder)
    assert task.parse("# Title\nA\n## Body\nB").answer == {"Title": "A", "Body": "B"}
    assert task.parse("# Title\nA\n## Body\n").problem == "sections missing or empty: Body"
    within = "# Title\nA\n## Body\n### Example 1\nB"
    assert task.parse(within).answer == {"Title": "A", "Body": "### Example 1\nB"}


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ('type = "object"', 'type = "objct"', "no JSON Schema"),
        ("{{ thing }}", "{{ thing", "prompt.user, line 1"),
        ("colour = ", "color = ", r"score.fields \['color'\] are no properties"),
        ('file = "prompts.jsonl"', 'fiel = "prompts.jsonl"', "did you mean 'file'"),
        ('name = "colours"', 'name = "Colours!"', "name: 'Colours!' cannot be used"),
    ],
)
def test_a_broken_definition_is_named_when_it_is_loaded(folder, old, new, words):
    replace(folder, old, new)
    with pytest.raises(ConfigError, match=words):
        load_task(folder)


def test_a_variable_that_a_record_lacks_is_named(folder):
    with pytest.raises(DataError, match=r"'thing' is undefined.*the record has: other"):
        load_task(folder).messages({"other": 1})


def test_a_variable_that_is_null_is_no_word_of_a_prompt(folder):
    replace(folder, "{{ thing }}", "{{ thing }}{% if place %} at {{ place.name }}{% endif %}")
    task = load_task(folder)
    assert task.messages({"thing": "grass", "place": None})[1]["content"] == "grass"
    with pytest.raises(DataError, match=r"a value that it prints is null.*null in it: thing"):
        task.messages({"thing": None, "place": None})
    with pytest.raises(DataError, match=r"a value that it prints is null.*null in it: place.name"):
        task.messages({"thing": "grass", "place": {"name": None}})


def test_an_unknown_task_lists_those_that_there_are(tmp_path):
    with pytest.raises(ConfigError, match="come with Distillery are: interview, reconcile"):
        load_task(tmp_path / "nothing")


def test_reconcile_rules_agree_with_its_verifier_on_every_scenario():
    task = load_task("reconcile")
    answer, verify = task.function("rules:answer"), task.function("verify:verify")
    prompts = list(task.function("scenarios:scenarios")(1500, 3))
    classes = set()
    for prompt in prompts:
        parsed = task.parse(answer(prompt))
        assert parsed.answer is not None, parsed.problem
        assert verify(prompt, parsed.answer)[0] == 1.0
        classes.add(parsed.answer["classification"])
        other = {**parsed.answer, "classification": "ROUNDING", "action": "write_off"}
        if parsed.answer["classification"] != "ROUNDING":
            assert verify(prompt, other)[0] == 0.0
    assert len(classes) == 5
    escalated = sum(json.loads(answer(p))["action"] == "escalate" for p in prompts)
    assert escalated >= 0.1 * len(prompts)
    assert any(p["bank"]["amount"] == "1,000,000.00" for p in prompts)
    assert any(p["bank"]["amount"] == "999,999.99" for p in prompts)
    assert any(p["erp"] and p["erp"]["currency"] != p["bank"]["currency"] for p in prompts)
