"""Variables of a prompt from its messages."""

import pytest

from distill.tasks.reconcile.scenarios import scenarios
from distill.tasks.task import load_task
from distill.tasks.variables import read_variables

TOML = """
name = "plain"
[prompt]
system = "{system}"
user = \"\"\"{user}\"\"\"
[output]
format = "text"
[prompts]
file = "prompts.jsonl"
"""


@pytest.fixture
def task(tmp_path):
    def make(*, user, system=""):
        (tmp_path / "task.toml").write_text(TOML.format(user=user, system=system))
        return load_task(tmp_path)

    return make


def test_names_between_texts_are_matched(task):
    plain = task(
        user="From {{ sender.name }}:\n{{ text }}\nDear {{ sender.name }},", system="Reply."
    )
    variables = {"sender": {"name": "Ann"}, "text": "two\nlines (with [signs])"}
    assert read_variables(plain, plain.messages(variables)) == variables


def test_messages_of_another_form_have_none(task):
    plain = task(user="From {{ sender }}: {{ text }}")
    assert read_variables(plain, [{"role": "user", "content": "Hello"}]) is None
    system = {"role": "system", "content": "Be brief."}
    assert read_variables(plain, [system, *plain.messages({"sender": "a", "text": "b"})]) is None


@pytest.mark.parametrize("user", ["{% if a %}x{% endif %}{{ b }}", "{{ a | upper }}", "{{ a[0] }}"])
def test_templates_with_more_than_names_need_a_reader(task, user):
    plain = task(user=user)
    assert read_variables(plain, [{"role": "user", "content": "X"}]) is None


def test_the_bundled_tasks_reader_is_the_reverse_of_its_template():
    reconcile = load_task("reconcile")
    for variables in scenarios(300, 7):
        found = read_variables(reconcile, reconcile.messages(variables))
        assert found == {name: v for name, v in variables.items() if name != "scenario"}


def test_another_system_message_is_another_prompt():
    reconcile = load_task("reconcile")
    (variables,) = scenarios(1, 7)
    messages = reconcile.messages(variables)
    messages[0]["content"] += " Be brief."
    assert read_variables(reconcile, messages) is None


def test_what_the_request_said_counts_where_it_renders_to_the_messages(task):
    plain = task(user="{% if n > 1 %}Many{% else %}One{% endif %}: {{ text }}")
    messages = plain.messages({"n": 3, "text": "frogs"})
    given = '{"n": 3, "text": "frogs", "more": true}'
    assert read_variables(plain, messages, given=given) == {"n": 3, "text": "frogs", "more": True}
    for wrong in ('{"n": 1, "text": "frogs"}', '{"text": "frogs"}', "[1]", "{"):
        assert read_variables(plain, messages, given=wrong) is None
