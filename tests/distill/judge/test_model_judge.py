"""Model judges against a real server that answers well, badly, and not at all."""

from __future__ import annotations

import json

import pytest
from openai_server import openai_server

from cluster.storage import Store
from distill.config import JudgeLiteLLM
from distill.judge.agreement import agreement
from distill.judge.judges import build_judge
from distill.judge.pairwise import Pair, compare, summarise
from distill.judge.stage import overall_scores
from distill.tasks.task import load_task
from jobs.select_teacher import compare_first_two

pytestmark = pytest.mark.slow

TASK = load_task("reconcile")
RUBRIC = TASK.spec.rubric
VERDICT = {
    name: {"reasoning": "so so", "issues": ["Too Vague"], "score": 0.8, "confidence": 0.7}
    for name in RUBRIC
}
WHOLE = json.dumps(VERDICT)
SEVEN = json.dumps({**VERDICT, next(iter(RUBRIC)): {"score": 7}})
# What the judge writes about the completion of that name.
WRITES = {
    "good": (200, WHOLE),
    "fenced": (200, f"```json\n{WHOLE}\n```"),
    "after prose": (200, f"Let me think. {WHOLE}"),
    "prose": (200, "I would call it eight out of ten."),
    "half": (200, WHOLE[: len(WHOLE) // 2]),
    "seven": (200, SEVEN),
    "silent": (200, ""),
    "refused": (400, {"error": {"message": "content filtered", "type": "invalid_request_error"}}),
}


def respond(body, number):
    answer = body["messages"][-1]["content"].rpartition("<answer>\n")[2].removesuffix("\n</answer>")
    return WRITES[answer]


def row(completion):
    return {
        "example_id": completion, "completion": completion, "teacher": "litellm:openai/gpt-5",
        "messages": [{"role": "user", "content": "Why do they differ?"}], "variables": "{}",
    }  # fmt: skip


def config(url, model="openai/local", **over):
    return JudgeLiteLLM(model=model, api_base=url, max_retries=0, **over)


@pytest.fixture(autouse=True)
def _key(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "none")


def test_bad_answers_are_failures_with_their_beginning_and_never_zeros():
    with openai_server(respond) as server:
        judge = build_judge(
            config(server.url, price={"input_usd_per_mtok": 1.0, "output_usd_per_mtok": 2.0}), TASK
        )
        verdicts = judge.judge([row(name) for name in WRITES])
    assert len(verdicts) == len(WRITES) * len(RUBRIC)
    scores = overall_scores(verdicts)
    assert scores == {name: pytest.approx(0.8) for name in ("good", "fenced", "after prose")}
    errors = {v["example_id"]: v["error"] for v in verdicts if v["score"] is None}
    assert set(errors) == {"prose", "half", "seven", "silent", "refused"}
    assert "eight out of ten" in errors["prose"]
    assert "half a JSON object" in errors["half"]
    assert "no score from 0 to 1" in errors["seven"]
    assert errors["silent"] == "empty answer (stop)"
    assert "content filtered" in errors["refused"]
    figures = agreement(verdicts)["judges"]["openai/local"]
    assert (figures["failures"], figures["num_scores"]) == (5, 3 * len(RUBRIC))
    good = [v for v in verdicts if v["example_id"] == "good"]
    assert good[0]["issues"] == ["too-vague"]
    assert good[0]["confidence"] == 0.7
    assert good[0]["author"] == "litellm:openai/gpt-5"
    # One call is paid once, however many dimensions it scored; the server counts words.
    (asked,) = (
        r["messages"] for r in server.requests if ">\ngood\n<" in r["messages"][1]["content"]
    )
    words_in = sum(len(message["content"].split()) for message in asked)
    dollars = (words_in * 1.0 + len(WHOLE.split()) * 2.0) / 1e6
    assert sum(v["cost_usd"] for v in good) == pytest.approx(dollars)
    assert sum(v["cost_usd"] for v in verdicts if v["example_id"] == "prose") > 0


def test_the_schema_is_sent_where_the_model_is_known_to_take_it():
    with openai_server(respond) as server:
        for over in ({}, {"response_format": "json_schema"}, {"model": "openai/gpt-5"}):
            verdicts = build_judge(config(server.url, **over), TASK).judge([row("good")])
            assert overall_scores(verdicts) == {"good": pytest.approx(0.8)}
    plain, asked, known = server.requests
    assert plain["response_format"] == {"type": "json_object"}
    for body in (asked, known):
        schema = body["response_format"]["json_schema"]
        assert schema["strict"] is True
        assert schema["schema"]["required"] == list(RUBRIC)
    assert plain["temperature"] == 0.0
    assert "temperature" not in known  # this model refuses one


def test_a_price_nobody_knows_is_not_zero():
    with openai_server(respond) as server:
        verdicts = build_judge(config(server.url), TASK).judge([row("good")])
    assert {v["cost_usd"] for v in verdicts} == {None}


def pairs(count):
    messages = [{"role": "user", "content": "Say it at length."}]
    return [Pair(f"e{n}", messages, "a long answer " * 5, "short") for n in range(count)]


def test_a_judge_that_likes_the_first_place_makes_no_winner():
    with openai_server(lambda body, number: (200, '{"reasoning": "", "winner": "A"}')) as server:
        rows = compare(config(server.url, name="biased"), pairs(12), rubric=RUBRIC)
    assert len(server.requests) == 24
    figures = summarise(rows)
    assert figures["inconsistent"] == 12
    assert figures["win_rate"] is None
    assert figures["first_position"] == 1.0
    assert figures["position_bias"] is True


def test_a_judge_that_reads_gives_a_win_in_both_orders():
    def longer(body, number):
        text = body["messages"][-1]["content"]
        a, b = text.split("<answer_A>")[1].split("<answer_B>")
        choice = "A" if len(a) > len(b) else "B"
        return (
            200,
            "Not sure." if number == 1 else f'```json\n{{"winner": "{choice.lower()}"}}\n```',
        )

    with openai_server(longer) as server:
        rows = compare(config(server.url), pairs(12))
    figures = summarise(rows)
    assert figures["first"] == 11
    assert figures["failed"] == 1
    assert "Not sure." in next(r["error"] for r in rows if r["outcome"] == "failed")
    assert figures["win_rate"] == 1.0
    assert figures["first_position"] == 0.5
    assert figures["position_bias"] is False


def test_the_first_two_teachers_are_compared_once(tmp_path):
    selection = {"winner": "a", "runner_up": "b", "sample": {"ids": ["p0", "p1", "p2"]}}
    answers = [
        {
            "example_id": f"p{n}", "candidate": name, "completion": f"answer of {name}",
            "error": "rate limit" if (n, name) == (2, "b") else "",
            "messages": [{"role": "user", "content": f"question {n}"}],
        }
        for n in range(3) for name in ("a", "b")
    ]  # fmt: skip

    def respond(body, number):
        text = body["messages"][-1]["content"]
        if number == 1:
            return 400, {"error": {"message": "filtered", "type": "invalid_request_error"}}
        winner = "A" if "<answer_A>\nanswer of a" in text else "B"
        return 200, json.dumps({"reasoning": "", "winner": winner})

    with openai_server(respond) as server:
        judges, out = [config(server.url, name="j", concurrency=1)], Store(tmp_path)
        first = compare_first_two(selection, answers, judges, out=out)["j"]
        again = compare_first_two(selection, answers, judges, out=out)["j"]
    assert (first["num_pairs"], first["first"], first["failed"]) == (2, 1, 1)
    # What was answered is kept; only the pair that failed is asked again.
    assert (again["num_pairs"], again["first"], again["failed"]) == (2, 2, 0)
    assert len(server.requests) == 4 + 2
