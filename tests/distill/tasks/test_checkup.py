"""A check-up says what is missing in a task, how hard it is, and whether to distil it at all."""

import json
from dataclasses import asdict

import pytest

from cluster.errors import ConfigError
from distill.tasks.checklist import PromptSample
from distill.tasks.checkup import check_up, recommend
from distill.tasks.rules_of_thumb import rules_of_thumb
from distill.tasks.spec import Deployment
from distill.tasks.task import load_task

HEAD = """
name = "tickets"
[prompt]
system = "Route the ticket. Answer with JSON: team (billing, technical, other if neither fits)."
user = "{{ ticket }}"
"""
TEAM = """
[output.json_schema]
type = "object"
additionalProperties = false
required = ["team"]
[output.json_schema.properties.team]
enum = ["billing", "technical", "other"]
[score.fields]
team = "exact"
"""
PROMPTS = """
[prompts]
file = "prompts.jsonl"
stratum = "product"
disjoint = [["product", "case"]]
"""
KNOWN = """
[deployment]
category = "classification"
requests_per_day = 5000
max_latency_ms = 1000
private = false
facts_change = false
few_shot_solves = false
"""
GOOD = HEAD + TEAM + PROMPTS + KNOWN


def tickets(count, *, products=4):
    return [
        {
            "id": f"t{number}",
            "ticket": f"Case {number}: the invoice of my plan has been charged to me two times, "
            "and the app has not opened since I updated it to the version of this morning. I have "
            "restarted the telephone and paid nothing else.",
            "product": f"product {number % products}",
            "case": number,
            "reference": {"team": "billing" if number % 2 else "technical"},
        }
        for number in range(count)
    ]


@pytest.fixture
def checked(tmp_path):
    """Write a task.toml and check it with prompts and answers in memory."""

    def check(toml, *, prompts=None, answers=(), files=()):
        (tmp_path / "task.toml").write_text(toml)
        for name, text in dict(files).items():
            (tmp_path / name).write_text(text)
        prompts = tickets(240) if prompts is None else prompts
        sample = PromptSample(prompts=prompts, total=len(prompts), answers=list(answers))
        return check_up(load_task(tmp_path), sample)

    return check


def verdicts(checkup):
    return {item.id: item.verdict for item in checkup.items}


def item(checkup, name):
    (found,) = (item for item in checkup.items if item.id == name)
    return found


def expected(checkup, name):
    (found,) = (row for row in checkup.expectations if row.id == name)
    return found


def output(schema):
    """A JSON output section of one object schema, inline TOML."""
    return f"\n[output]\njson_schema = {schema}\n"


def text_task(*, system="Answer the customer in a friendly way, from the ticket alone.", rest=""):
    head = f'name = "t"\n[prompt]\nsystem = "{system}"\nuser = "{{{{ ticket }}}}"\n'
    return head + '[output]\nformat = "text"\n' + rest + PROMPTS


def test_a_good_definition_passes_every_item(checked):
    checkup = checked(GOOD, prompts=tickets(1200))
    assert set(verdicts(checkup).values()) == {"pass"}
    groups = {name.split(".")[0] for name in verdicts(checkup)}
    assert groups == {"input", "output", "success", "deployment", "edge"}
    assert all(item.evidence and not item.advice for item in checkup.items)
    assert checkup.failed == []
    assert checkup.recommendation.advice == "distil"
    assert checkup.recommendation.unknown == []


def test_expectations_are_the_tables_figures_with_their_source(checked):
    checkup = checked(GOOD)
    assert expected(checkup, "data").values == {
        "minimum": 1000, "recommended": 5000, "ideal": 20000,
    }  # fmt: skip
    assert expected(checkup, "data_of_level").text == "5,000–20,000 at this level"
    assert expected(checkup, "student").text == "1–3 billion parameters"
    assert expected(checkup, "transfer").text == "at least 95% of the teacher's score"
    # 1,000 kept of 50% and of 25% yield.
    assert expected(checkup, "raw_answers").values == {"low": 2000, "high": 4000}
    assert all("write-ups of 2025" in row.source for row in checkup.expectations)
    json.dumps(asdict(checkup))


def test_without_schema_and_score_nothing_can_be_right(checked):
    checkup = checked(text_task())
    assert item(checkup, "output.format").verdict == "warn"
    criterion = item(checkup, "success.criterion")
    assert criterion.verdict == "fail"
    assert "[score.fields]" in criterion.advice
    assert item(checkup, "success.coverage").verdict == "warn"
    assert [failed.id for failed in checkup.failed] == ["success.criterion"]


def test_a_schema_without_properties_accepts_anything(checked):
    checkup = checked(HEAD + output('{ type = "object" }') + PROMPTS)
    assert item(checkup, "output.format").verdict == "fail"
    assert item(checkup, "success.criterion").verdict == "fail"


def test_a_rubric_alone_is_a_criterion_with_a_warning(checked):
    checkup = checked(text_task(rest='[rubric]\ntone = "Friendly?"\n'))
    assert item(checkup, "success.criterion").verdict == "warn"
    assert item(checkup, "success.coverage").verdict == "pass"


def test_an_open_schema_says_what_to_add(checked):
    schema = '{ type = "object", properties = { team = { enum = ["billing", "other"] } } }'
    strict = item(checked(HEAD + output(schema) + PROMPTS), "output.strict")
    assert strict.verdict == "warn"
    assert strict.evidence == "not required: team; further fields are allowed"
    assert "additionalProperties = false" in strict.advice


def test_a_field_that_the_prompt_does_not_name(checked):
    named = item(checked(GOOD.replace("team (billing", "group (billing")), "output.named")
    assert (named.verdict, named.evidence) == ("warn", "not in the templates: team")


@pytest.mark.parametrize(
    ("schema", "comparison", "verdict"),
    [
        ('{ enum = ["a", "b"] }', "exact", "pass"),
        ('{ type = "string", maxLength = 40 }', "casefold", "pass"),
        ('{ type = "string" }', "exact", "warn"),
        ('{ type = "number" }', "number", "pass"),
        ('{ type = "number" }', "casefold", "warn"),
        ('{ enum = ["a", "b"] }', "number", "warn"),
        ('{ type = "array", items = { type = "string" } }', "set", "pass"),
        ('{ type = "array", items = { type = "string" } }', "exact", "warn"),
        ('{ anyOf = [{ type = "null" }, { enum = ["a"] }] }', "exact", "pass"),
    ],
)
def test_a_comparison_has_to_fit_its_field(checked, schema, comparison, verdict):
    whole = f'{{ type = "object", properties = {{ team = {schema} }} }}'
    score = f'[score.fields]\nteam = "{comparison}"\n'
    checkup = checked(HEAD + output(whole) + score + PROMPTS)
    assert item(checkup, "success.comparison").verdict == verdict


def test_scoring_a_section_that_does_not_exist_fails(checked):
    sections = '[output]\nformat = "sections"\nsections = ["Title", "Body"]\n'
    checkup = checked(HEAD + sections + '[score.fields]\nTitel = "exact"\n' + PROMPTS)
    comparison = item(checkup, "success.comparison")
    assert comparison.verdict == "fail"
    assert "Titel" in comparison.evidence
    assert "Title, Body" in comparison.advice


def test_a_verifier_that_cannot_be_loaded_is_named(checked):
    broken = {"verify.py": "import no_such_module_anywhere\n"}
    checkup = checked('verify = "verify:verify"\n' + GOOD, files=broken)
    criterion = item(checkup, "success.criterion")
    assert criterion.verdict == "fail"
    assert "no_such_module_anywhere" in criterion.evidence


def test_references_on_some_prompts_leave_the_rest_to_the_teacher(checked):
    prompts = tickets(240)
    for prompt in prompts[:40]:
        del prompt["reference"]
    reference = item(checked(GOOD, prompts=prompts), "success.reference")
    assert reference.verdict == "warn"
    assert reference.evidence.startswith("200 of 240")


def test_unknown_deployment_is_a_warning_that_says_what_to_write(checked):
    checkup = checked(HEAD + TEAM + PROMPTS)
    unknown = [item for item in checkup.items if item.id.startswith("deployment.")]
    assert {item.verdict for item in unknown} == {"warn"}
    for found in unknown:
        assert f"{found.id.removeprefix('deployment.')} = " in found.advice
    assert checkup.failed == []
    assert checkup.recommendation.advice == "compute"
    assert set(checkup.recommendation.unknown) == {
        "facts_change", "few_shot_solves", "private", "max_latency_ms", "requests_per_day",
    }  # fmt: skip


def test_facts_that_change_are_looked_up_and_not_trained(checked):
    checkup = checked(GOOD.replace("facts_change = false", "facts_change = true"))
    assert [failed.id for failed in checkup.failed] == ["deployment.facts_change"]
    assert checkup.recommendation.advice == "retrieve"
    decisive, volume = checkup.recommendation.reasons
    assert decisive.supports
    assert "retrieval" in decisive.text
    assert not volume.supports


def test_what_a_prompt_with_examples_solves_stays_a_prompt(checked):
    checkup = checked(GOOD.replace("few_shot_solves = false", "few_shot_solves = true"))
    assert [failed.id for failed in checkup.failed] == ["deployment.few_shot_solves"]
    assert checkup.recommendation.advice == "prompt"


@pytest.mark.parametrize(
    ("requests", "advice", "verdict"),
    [
        (0, "prompt", "fail"),
        (499, "prompt", "fail"),
        (500, "compute", "warn"),
        (1999, "compute", "warn"),
        (2000, "distil", "pass"),
        (10000, "distil", "pass"),
        (10001, "distil", "pass"),
    ],
)
def test_the_volume_decides_when_nothing_else_does(checked, requests, advice, verdict):
    checkup = checked(GOOD.replace("per_day = 5000", f"per_day = {requests}"))
    assert checkup.recommendation.advice == advice
    assert item(checkup, "deployment.requests_per_day").verdict == verdict


@pytest.mark.parametrize(
    "reason", [("private = false", "private = true"), ("_ms = 1000", "_ms = 150")]
)
def test_low_volume_is_no_obstacle_to_privacy_and_low_latency(checked, reason):
    checkup = checked(GOOD.replace("per_day = 5000", "per_day = 100").replace(*reason))
    assert checkup.failed == []
    assert item(checkup, "deployment.requests_per_day").verdict == "warn"
    assert checkup.recommendation.advice == "distil"
    assert [found.supports for found in checkup.recommendation.reasons] == [True, False]


def test_what_is_still_unknown_is_listed_only_if_it_could_change_the_advice():
    assert recommend(Deployment(private=True, facts_change=False)).unknown == ["few_shot_solves"]
    assert recommend(Deployment(facts_change=True)).unknown == []


def test_a_latency_is_turned_into_the_speed_that_it_needs(checked):
    # {"team":"technical"} and {"team":"billing"}: 18 to 20 characters, about 5 tokens, in 10 ms.
    checkup = checked(GOOD.replace("_ms = 1000", "_ms = 10"))
    assert "at least 475 tokens/s" in item(checkup, "deployment.max_latency_ms").evidence


def test_code_is_level_2_short_3_long_and_4_in_many_files(checked):
    task = text_task(system="Write a Python function that does what the request says.")
    short = checked(task, answers=["Here:\n```python\nprint(1)\n```"] * 3)
    assert (short.complexity.level, short.complexity.category) == (2, "code")
    assert expected(short, "data").values["minimum"] == 20_000
    long = checked(task, answers=["```python\n" + "x = 1\n" * 300 + "```"] * 3)
    assert (long.complexity.level, long.complexity.category) == (3, "code")
    files = (
        '{ type = "object", properties = { files = { type = "array", items = { type = "object", '
        'properties = { path = { type = "string" }, content = { type = "string" } } } } } }'
    )
    many = checked(HEAD + output(files) + PROMPTS)
    assert (many.complexity.level, many.complexity.category) == (4, "code")
    # A stated category of several levels keeps what the definition says within them.
    stated = checked(HEAD + output(files) + PROMPTS + '[deployment]\ncategory = "code"\n')
    assert (stated.complexity.level, stated.complexity.category_stated) == (4, True)


def test_a_fence_around_a_json_answer_is_no_code(checked):
    checkup = checked(GOOD.split("[dep")[0], answers=['```json\n{"team": "other"}\n```'] * 3)
    assert (checkup.complexity.level, checkup.complexity.category) == (1, "classification")


def test_reasoning_is_level_3_and_wants_a_student_that_writes_it_out(checked):
    sections = '[output]\nformat = "sections"\nsections = ["Reasoning", "Answer"]\n'
    checkup = checked(HEAD + sections + '[score.fields]\nAnswer = "exact"\n' + PROMPTS)
    assert (checkup.complexity.level, checkup.complexity.category) == (3, "reasoning")
    assert checkup.complexity.reasons[0].text == "the answer reasons in Reasoning"
    assert "written-out reasoning" in expected(checkup, "student").text
    assert expected(checkup, "transfer").text == "75–90% of the teacher's score"
    asked = checked(text_task(system="Solve the puzzle, step by step, and give the number."))
    assert asked.complexity.level == 3


def test_a_short_reason_field_is_no_reasoning(checked):
    schema = (
        '{ type = "object", properties = { team = { enum = ["a"] }, '
        'reason = { type = "string", maxLength = 200 } } }'
    )
    score = '[score.fields]\nteam = "exact"\n'
    assert checked(HEAD + output(schema) + score + PROMPTS).complexity.level == 1
    longer = schema.replace("200", "201")
    assert checked(HEAD + output(longer) + score + PROMPTS).complexity.level == 2


def test_proofs_and_conversations(checked):
    proof = '{ type = "object", properties = { proof = { type = "string" } } }'
    assert checked(HEAD + output(proof) + PROMPTS).complexity.level == 4
    turns = [
        {**prompt, "turns": [{"role": "user", "content": prompt["ticket"]}]}
        for prompt in tickets(60)
    ]
    spoken = HEAD.replace("{{ ticket }}", "{% for t in turns %}{{ t.content }}{% endfor %}")
    checkup = checked(spoken + TEAM + PROMPTS, prompts=turns)
    assert (checkup.complexity.level, checkup.complexity.category) == (3, "dialogue")


def test_free_text_nesting_and_many_fields_are_level_2(checked):
    summary = '{ type = "object", properties = { summary = { type = "string" } } }'
    assert checked(HEAD + output(summary) + PROMPTS).complexity.level == 2
    # The examples are stronger evidence than a schema without a limit.
    brief = checked(HEAD + output(summary) + PROMPTS, answers=['{"summary": "paid twice"}'] * 3)
    assert brief.complexity.level == 1
    nested = (
        '{ type = "object", properties = { items = { type = "array", items = { "$ref" = '
        '"#/$defs/item" } } }, "$defs" = { item = { type = "object", properties = { n = {} } } } }'
    )
    assert "nested fields: items" in [
        reason.text for reason in checked(HEAD + output(nested) + PROMPTS).complexity.reasons
    ]
    names = [f"f{number}" for number in range(9)]
    many = ", ".join(f"{name} = {{ type = 'integer' }}" for name in names)
    score = "[score.fields]\n" + "".join(f'{name} = "number"\n' for name in names)
    checkup = checked(HEAD + output(f"{{ type = 'object', properties = {{ {many} }} }}") + score
                      + PROMPTS)  # fmt: skip
    assert checkup.complexity.level == 2


def test_a_stated_category_settles_the_level_and_says_when_the_definition_reads_harder(checked):
    task = text_task(rest='[rubric]\ntone = "Friendly?"\n')
    rewriting = task + '[deployment]\ncategory = "rewriting"\n'
    checkup = checked(rewriting, answers=["A long story. " * 600] * 3)
    assert (checkup.complexity.level, checkup.complexity.level_of_definition) == (1, 3)
    category = item(checkup, "deployment.category")
    assert category.verdict == "warn"
    assert "2,100 tokens" in category.advice
    # No figure by category: the level's range, and nothing made up between its ends.
    assert expected(checkup, "data").values == {"minimum": 5000, "ideal": 20000}


@pytest.mark.parametrize(
    ("count", "verdict", "words"),
    [
        (0, "fail", "none"),
        (49, "fail", "under 50"),
        (199, "warn", "inconsistent"),
        (999, "warn", "at least 1,000"),
        (1000, "pass", "1,000"),
    ],
)
def test_how_many_prompts_are_enough(checked, count, verdict, words):
    enough = item(checked(GOOD, prompts=tickets(count)), "input.enough")
    assert enough.verdict == verdict
    assert words in enough.evidence + enough.advice


def test_repeated_prompts_count_once(checked):
    prompts = [{**prompt, "id": f"{prompt['id']}/{n}"} for n in range(2) for prompt in tickets(600)]
    enough = item(checked(GOOD, prompts=prompts), "input.enough")
    assert (enough.verdict, enough.evidence) == ("warn", "600 different prompts")


def test_prompts_that_do_not_fit_the_templates_are_a_finding(checked):
    prompts = tickets(240)
    del prompts[7]["ticket"]
    checkup = checked(GOOD, prompts=prompts)
    assert item(checkup, "input.prompts").verdict == "fail"
    assert "ticket" in item(checkup, "input.prompts").evidence


def test_a_template_without_a_variable_and_without_instructions(checked):
    checkup = checked(GOOD.replace("{{ ticket }}", "The ticket."))
    assert item(checkup, "input.variables").verdict == "fail"
    mute = GOOD.replace(HEAD.splitlines()[3], 'system = ""')
    assert item(checked(mute), "input.instructions").verdict == "warn"


def test_prompts_outside_the_usual_lengths(checked):
    long = [{**prompt, "ticket": prompt["ticket"] * 50} for prompt in tickets(60)]
    assert item(checked(GOOD, prompts=long), "input.length").verdict == "warn"
    short = [{**prompt, "ticket": f"Case {prompt['case']}."} for prompt in tickets(60)]
    assert item(checked(GOOD, prompts=short), "input.length").verdict == "warn"


def test_edge_cases_without_a_word_on_them(checked):
    bare = GOOD.replace("other if neither fits", "account").replace('"other"', '"account"')
    assert item(checked(bare), "edge.misfits").verdict == "warn"
    one_kind = item(checked(GOOD, prompts=tickets(240, products=2)), "edge.strata")
    assert one_kind.verdict == "warn"
    assert "50%" in one_kind.evidence


def test_a_stratum_or_combination_that_no_prompt_has_fails(checked):
    typo = GOOD.replace('stratum = "product"', 'stratum = "produkt"')
    assert item(checked(typo), "edge.strata").verdict == "fail"
    never = GOOD.replace('["product", "case"]', '["product", "kase"]')
    split = item(checked(never), "edge.splits")
    assert (split.verdict, split.evidence) == ("fail", "no prompt has all of product + kase")
    missing = GOOD.replace('stratum = "product"\ndisjoint = [["product", "case"]]', "")
    assert verdicts(checked(missing))["edge.strata"] == "warn"
    assert verdicts(checked(missing))["edge.splits"] == "warn"


def test_a_schema_that_no_answer_can_fit_fails(checked):
    strict = item(checked(GOOD.replace('["team"]', '["taem"]')), "output.strict")
    assert strict.verdict == "fail"
    assert "taem" in strict.evidence
    assert "required may name team" in strict.advice
    inside = """{type = "object", additionalProperties = false, required = ["who"], properties = {
        who = {type = "object", additionalProperties = false, required = ["nmae"],
               properties = {name = {type = "string"}}}}}"""
    inside = " ".join(inside.split())
    assert "who.nmae" in item(checked(HEAD + output(inside) + PROMPTS), "output.strict").evidence


@pytest.mark.parametrize(
    ("comparison", "reference", "problem"),
    [
        ("exact", {"team": "nope"}, "'nope' is not one of"),
        ("exact", "nope", "'nope' is not one of"),
        ("exact", {"taem": "billing"}, "has no team"),
        ("casefold", {"team": "nope"}, "'nope' is not one of"),
        ("number", {"team": "two"}, "'two' is no number"),
        ("casefold", {"team": " Billing"}, ""),
        ("exact", {"team": "billing", "why": "an invoice"}, ""),
    ],
)
def test_a_reference_that_no_answer_can_agree_with_fails(checked, comparison, reference, problem):
    prompts = tickets(240)
    prompts[3]["reference"] = reference
    toml = GOOD.replace('team = "exact"', f'team = "{comparison}"')
    found = item(checked(toml, prompts=prompts[3:]), "success.reference")
    assert (found.verdict == "fail") is bool(problem)
    assert problem in found.evidence
    assert ("prompt t3" in found.evidence) is bool(problem)


def test_a_reference_may_leave_out_what_an_answer_may_leave_out(checked):
    optional = GOOD.replace('required = ["team"]', "required = []")
    prompts = [{**prompt, "reference": {}} for prompt in tickets(240)]
    assert item(checked(optional, prompts=prompts), "success.reference").verdict != "fail"


def test_a_deployment_given_from_outside_replaces_the_tasks_own(tmp_path):
    (tmp_path / "task.toml").write_text(GOOD)
    sample = PromptSample(prompts=tickets(240), total=240)
    checkup = check_up(load_task(tmp_path), sample, deployment=Deployment(facts_change=True))
    assert checkup.recommendation.advice == "retrieve"


def test_a_typo_in_the_deployment_section_is_named(tmp_path):
    (tmp_path / "task.toml").write_text(GOOD.replace("private =", "privat ="))
    with pytest.raises(ConfigError, match=r"deployment.privat: unknown field; did you mean"):
        load_task(tmp_path)


def test_every_rule_of_thumb_names_its_source_and_the_tables_are_whole():
    rules = rules_of_thumb()
    assert [row.level for row in rules.level] == [1, 2, 3, 4]
    stated = Deployment.model_json_schema()["properties"]["category"]["anyOf"][0]["enum"]
    assert [row.name for row in rules.category] == stated
    volumes = [row.from_requests_per_day for row in rules.volume]
    assert volumes == sorted(volumes)
    assert volumes[0] == 0
    rows = [*rules.level, *rules.category, *rules.volume, *rules.sign]
    rows += [getattr(rules.figure, name) for name in type(rules.figure).model_fields]
    assert all("write-ups of 2025" in row.source for row in rows)
    assert "own" in rules.reading.source
