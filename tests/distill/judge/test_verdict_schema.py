"""What judges are asked for, and what is believed of what they write."""

from __future__ import annotations

import json

import pytest
from jsonschema import Draft202012Validator

from distill.judge.judges import read_scores
from distill.judge.schema import (
    UnreadableAnswer,
    issue_tags,
    read_verdict,
    response_format,
    verdict_schema,
)

RUBRIC = {"clear": "Is it clear?", "right": "Is it right?"}


def entry(score, **over):
    return {"reasoning": "so so", "issues": [], "score": score, "confidence": 0.9, **over}


GOOD = {"clear": entry(0.5), "right": entry(1, issues=["Missing edge case", "off_by_one"])}


def test_the_schema_is_strict_at_every_level():
    schema = verdict_schema(RUBRIC)
    Draft202012Validator.check_schema(schema)
    validator = Draft202012Validator(schema)
    good = {**GOOD, "right": entry(1, issues=["missing-edge-case"])}
    assert validator.is_valid(good)
    for bad in (
        {"clear": entry(0.5)},
        {**good, "extra": entry(0.5)},
        {**good, "right": entry(1.5)},
        {**good, "right": entry(1, mood="fine")},
        {**good, "right": entry(1, issues=["Missing edge case"])},
    ):
        assert not validator.is_valid(bad)
    for part in (schema, *schema["properties"].values()):
        assert part["additionalProperties"] is False
        assert part["required"] == list(part["properties"])


def test_the_reasoning_is_written_before_the_score():
    names = list(verdict_schema(RUBRIC)["properties"]["clear"]["properties"])
    assert names.index("reasoning") < names.index("score")


def test_the_format_that_is_asked_for():
    asked = response_format(verdict_schema(RUBRIC), name="verdict", strict=True)
    assert asked["json_schema"]["strict"] is True
    assert response_format({}, name="verdict", strict=False) == {"type": "json_object"}


@pytest.mark.parametrize(
    "text",
    [
        json.dumps(GOOD),
        f"```json\n{json.dumps(GOOD, indent=2)}\n```",
        f"Here is my verdict on {{name}}:\n\n{json.dumps(GOOD)}\nI hope it helps.",
        f"{json.dumps(GOOD)}\n\nOnce more: {json.dumps(GOOD)}",
        json.dumps({**GOOD, "overall": 0.8}),
    ],
)
def test_an_object_is_found_where_models_put_it(text):
    scores = read_verdict(text, RUBRIC)
    assert {name: found.score for name, found in scores.items()} == {"clear": 0.5, "right": 1.0}
    assert scores["right"].issues == ("missing-edge-case", "off-by-one")
    assert scores["right"].confidence == 0.9


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "an empty answer"),
        ("I would give it 0.8 for clarity.", "prose without JSON"),
        (json.dumps(GOOD)[:60], "half a JSON object"),
        # Cut inside the second dimension: the first one, whole, is not taken for the verdict.
        (json.dumps(GOOD)[:-40], "half a JSON object"),
        ('{"score": 0.9}', "half a JSON object or another one"),
        ("[0.5, 1.0]", "prose without JSON"),
        (json.dumps({**GOOD, "right": entry(7)}), "no score from 0 to 1 for right"),
        (json.dumps({**GOOD, "right": entry(-0.1)}), "no score from 0 to 1"),
        (json.dumps({**GOOD, "right": entry(True)}), "no score from 0 to 1"),
        (json.dumps({**GOOD, "right": entry("0.9")}), "no score from 0 to 1"),
        ('{"clear": {"score": NaN}}', "no score from 0 to 1"),
        ('{"clear": {"score": 1e999}}', "no score from 0 to 1"),
        (json.dumps({**GOOD, "right": 0.9}), "no score from 0 to 1"),
        (
            f"{json.dumps(GOOD)} or {json.dumps({'clear': entry(0.1)})}",
            "2 JSON objects that differ",
        ),
    ],
)
def test_what_is_no_verdict_says_why_and_how_it_begins(text, problem):
    with pytest.raises(UnreadableAnswer) as caught:
        read_verdict(text, RUBRIC)
    assert problem in str(caught.value)
    assert repr(text[:20])[1:-1] in str(caught.value)


def test_an_unreadable_answer_is_one_judges_failure_and_never_a_zero():
    row = {"example_id": "a", "teacher": "litellm:gpt-5"}
    verdicts = read_scores(row, "judge-1", RUBRIC, "Seven out of ten, I would say.")
    assert [v["score"] for v in verdicts] == [None, None]
    assert "Seven out of ten" in verdicts[0]["error"]
    assert verdicts[0]["author"] == "litellm:gpt-5"


def test_a_dimension_left_out_fails_alone():
    verdicts = read_scores({"example_id": "a"}, "j", RUBRIC, json.dumps({"clear": entry(0.5)}))
    assert [v["score"] for v in verdicts] == [0.5, None]
    assert verdicts[1]["error"] == "no verdict on right"


def test_what_only_explains_a_score_may_be_missing_or_odd():
    text = json.dumps({"clear": {"score": 0.5}, "right": entry(1, confidence=95, issues="many")})
    scores = read_verdict(text, RUBRIC)
    assert (scores["clear"].confidence, scores["clear"].issues) == (None, ())
    assert (scores["right"].confidence, scores["right"].issues) == (None, ())


def test_reasoning_with_half_a_character_can_be_kept():
    text = json.dumps({"clear": entry(0.5, reasoning="fine \ud83d")})
    assert read_verdict(text, RUBRIC)["clear"].reasoning == "fine \ufffd"


def test_tags_are_kebab_case_and_few():
    assert issue_tags(["No Tests!", "no-tests", "", "É", 3]) == ("no-tests", "3")
    assert len(issue_tags([f"tag {n}" for n in range(20)])) == 5
