"""Which teacher leads, by how much, and when nobody can tell."""

from __future__ import annotations

import random

import pytest

from cluster.errors import DataError
from distill.judge.selection import recurring_issues, sample_ids, score_candidates

NAMES = ("openai/gpt-5", "anthropic/claude-sonnet-4")


def answer(candidate, n, **over):
    return {
        "example_id": f"p{n}", "candidate": candidate, "completion": f"{candidate} {n}",
        "error": "", "latency_s": 1.0 + n / 100, "cost_usd": 0.002, **over,
    }  # fmt: skip


def verdict(candidate, n, score, *, judge="mistral-large", dimension="right", **over):
    return {
        "example_id": f"p{n}", "author": candidate, "judge": judge, "dimension": dimension,
        "score": score, "error": "" if score is not None else "prose", "issues": [], **over,
    }  # fmt: skip


def field(gap, *, prompts=60, noise=0.1, seed=0):
    """Two candidates, `gap` apart on average."""
    draw = random.Random(seed)
    answers, verdicts = [], []
    for n in range(prompts):
        hard = draw.uniform(0.3, 0.6)  # the prompt's own difficulty, the same for both
        for name, extra in zip(NAMES, (0.0, gap), strict=True):
            answers.append(answer(name, n))
            verdicts += [
                verdict(name, n, hard + extra + draw.uniform(-noise, noise), dimension=d)
                for d in ("right", "clear")
            ]
    return answers, verdicts


def test_a_clear_lead_is_named_with_its_interval():
    result = score_candidates(*field(0.1))
    lead = result["differences"][0]
    assert result["winner"] == "anthropic/claude-sonnet-4"
    assert list(result["candidates"]) == ["anthropic/claude-sonnet-4", "openai/gpt-5"]
    assert not result["is_noise"]
    low, high = lead["difference_ci95"]
    assert 0 < low < lead["difference"] < high
    assert "it leads" in result["verdict"]
    # Paired: prompts differ far more than the candidates do, which widens each score's interval
    # and not that of the difference.
    ends = result["candidates"]["openai/gpt-5"]["overall_ci95"]
    assert ends[1] - ends[0] > 1.2 * (high - low)


@pytest.mark.parametrize("gap", [0.0, 0.003])
def test_a_difference_within_the_noise_is_called_noise(gap):
    result = score_candidates(*field(gap))
    low, high = result["differences"][0]["difference_ci95"]
    assert low <= 0 <= high
    assert result["is_noise"]
    assert "noise" in result["verdict"]


def test_the_interval_holds_the_true_gap_as_often_as_it_says():
    held = 0
    for seed in range(60):
        lead = score_candidates(*field(0.05, prompts=40, seed=seed), bootstrap_samples=200)
        low, high = lead["differences"][0]["difference_ci95"]
        sign = 1 if lead["winner"].startswith("anthropic") else -1
        held += low <= sign * 0.05 <= high
    # 57 of 60 expected; under 50 would happen less than once in 1,000 times (binomial).
    assert held >= 50


def test_a_few_prompts_decide_nothing():
    result = score_candidates(*field(0.3, prompts=4, noise=0.0))
    assert result["is_noise"]
    assert "4 prompts decide nothing" in result["verdict"]


def test_scores_are_means_over_judges_then_prompts_then_dimensions():
    answers = [answer(name, n) for name in NAMES for n in range(2)]
    verdicts = []
    for name in NAMES:
        for n in range(2):
            verdicts.append(verdict(name, n, 0.2 * n, judge="x"))
            verdicts.append(verdict(name, n, 1.0, judge="y"))
        verdicts.append(verdict(name, 0, 0.5, judge="parse", dimension="parsed"))
    figures = score_candidates(answers, verdicts)["candidates"][NAMES[0]]
    # right: prompts (0 + 1) / 2 and (0.2 + 1) / 2; parsed: one prompt.
    assert figures["dimensions"]["right"]["score"] == pytest.approx(0.55)
    assert figures["dimensions"]["parsed"] | {"score_ci95": None} == {
        "score": 0.5, "score_ci95": None, "num_prompts": 1,
    }  # fmt: skip
    assert figures["overall"] == pytest.approx((0.55 + 0.5) / 2)


def test_a_judges_failure_on_one_candidate_does_not_tip_the_balance():
    answers = [answer(name, n) for name in NAMES for n in range(20)]
    # The kind judge fails on every other answer of the second candidate.
    verdicts = []
    for n in range(20):
        for name in NAMES:
            verdicts.append(verdict(name, n, 0.5, judge="hard"))
            failed = name == NAMES[1] and n % 2
            verdicts.append(verdict(name, n, None if failed else 0.9, judge="kind"))
    result = score_candidates(answers, verdicts)
    assert result["differences"][0]["difference"] == pytest.approx(0.0)
    assert result["is_noise"]
    assert result["num_scores_left_out"] == 10
    assert result["candidates"][NAMES[1]]["judge_failures"] == {"kind": 10}
    assert any("gave no verdict on 10 answers" in note for note in result["notes"])


def test_a_prompt_left_unanswered_scores_nothing_and_is_said():
    answers, verdicts = field(0.0, noise=0.0)
    for n in range(30):
        answers[2 * n] |= {"completion": "", "error": "content filtered"}
    verdicts = [
        v for v in verdicts
        if not (v["author"] == NAMES[0] and int(v["example_id"][1:]) < 30)
    ]  # fmt: skip
    result = score_candidates(answers, verdicts)
    assert result["winner"] == NAMES[1]
    assert result["candidates"][NAMES[0]]["unanswered"] == 30
    half = result["candidates"][NAMES[0]]["overall"] / result["candidates"][NAMES[1]]["overall"]
    assert half == pytest.approx(0.5, abs=0.05)
    assert any("30 prompts unanswered; they score 0" in note for note in result["notes"])


def test_judges_of_a_candidates_family_are_named_and_left_out_for_comparison():
    answers = [answer(name, n) for name in NAMES for n in range(20)]
    verdicts = []
    for n in range(20):
        wobble = 0.01 * (n % 3)
        verdicts += [verdict(name, n, 0.5 + wobble) for name in NAMES]
        verdicts.append(verdict(NAMES[0], n, 0.9 + wobble, judge="gpt-4.1"))
        verdicts.append(verdict(NAMES[1], n, 0.6 + wobble, judge="gpt-4.1"))
        verdicts[-3]["score"] += 0.02  # without its kin, the other leads
    result = score_candidates(answers, verdicts)
    assert result["winner"] == NAMES[0]
    assert result["winner_without_kin"] == NAMES[1]
    assert any("leads instead" in note for note in result["notes"])
    assert any("gpt-4.1 judges openai/gpt-5, of its own family" in n for n in result["notes"])


def test_cost_latency_and_issues():
    answers, verdicts = field(0.1)
    for v in verdicts[:8]:
        v["issues"] = ["generic-scenario"]
    verdicts[0]["issues"] = ["generic-scenario", "once-only"]
    figures = score_candidates(answers, verdicts)["candidates"]
    assert figures[NAMES[0]]["usd_per_1k"] == pytest.approx(2.0)
    assert figures[NAMES[0]]["latency_p90_s"] == pytest.approx(1.0 + 0.9 * 59 / 100)
    # Two verdicts an answer carry the tag: it counts once an answer.
    assert recurring_issues(figures) == [("generic-scenario", {NAMES[1]: 2, NAMES[0]: 2})]
    answers[0]["cost_usd"] = answers[1]["latency_s"] = None
    figures = score_candidates(answers, verdicts)["candidates"]
    assert figures[NAMES[0]]["usd_per_1k"] is None
    assert figures[NAMES[1]]["latency_p90_s"] is None


def test_the_sample_is_the_same_everywhere_and_grows():
    ids = [f"p{n}" for n in range(200)]
    few, more = sample_ids(ids, size=20, seed=1), sample_ids(ids[::-1], size=50, seed=1)
    assert more[:20] == few
    assert sample_ids(ids, size=20, seed=2) != few
    answers, verdicts = field(0.1)
    result = score_candidates(answers, verdicts, sample=25)
    assert result["num_prompts"] == 25
    assert result == score_candidates(answers[::-1], verdicts, sample=25)


def test_prompts_that_one_candidate_never_got_are_left_out():
    answers, verdicts = field(0.1)
    result = score_candidates(answers[:-1], verdicts)
    assert (result["num_prompts"], result["num_prompts_left_out"]) == (59, 1)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a, v: (a[::2], v), "two candidates or more"),
        (
            lambda a, v: ([{**x, "example_id": x["completion"]} for x in a], v),
            "no prompt was given",
        ),
        (lambda a, v: (a, []), "no judge scored all of"),
        (lambda a, v: (a, [{**x, "judge": x["author"]} for x in v]), "no judge scored all of"),
        (lambda a, v: ([*a, {**a[0], "completion": "other"}], v), "twice and differently"),
    ],
)
def test_what_cannot_be_compared_says_why(change, message):
    with pytest.raises(DataError, match=message):
        score_candidates(*change(*field(0.1, prompts=12)))
