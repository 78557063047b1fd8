"""Agreement against Krippendorff's published examples and figures worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest

from distill.judge.agreement import agreement, agreement_note, final_verdicts, krippendorff_alpha
from distill.judge.families import model_family

GAP = np.nan
# Krippendorff 2011, section C: four observers, twelve units, missing data.
PAPER_C = np.array(
    [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, GAP, GAP, GAP],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, GAP, 3],
        [GAP, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, GAP],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, GAP],
    ]
)


def verdict(judge, example, score, *, dimension="right", author="a", **over):
    return {
        "example_id": example, "judge": judge, "dimension": dimension, "score": score,
        "author": author, "error": "" if score is not None else "prose", "cost_usd": 0.01, **over,
    }  # fmt: skip


def test_alpha_of_the_papers_examples():
    binary = np.array([[0, 1, 0, 0, 0, 0, 0, 0, 1, 0], [1, 1, 1, 0, 0, 1, 0, 0, 0, 0]], dtype=float)
    assert krippendorff_alpha(binary, metric="nominal") == pytest.approx(0.095, abs=5e-4)
    pair = np.array([list(map(ord, "aabbdcccedda")), list(map(ord, "babbbccceddd"))], dtype=float)
    assert krippendorff_alpha(pair, metric="nominal") == pytest.approx(0.692, abs=5e-4)
    assert krippendorff_alpha(PAPER_C, metric="nominal") == pytest.approx(0.743, abs=5e-4)
    assert krippendorff_alpha(PAPER_C, metric="interval") == pytest.approx(0.849, abs=5e-4)


def test_alpha_does_not_depend_on_origin_or_scale():
    alpha = krippendorff_alpha(PAPER_C)
    assert krippendorff_alpha(PAPER_C * 0.2 + 1000) == pytest.approx(alpha, abs=1e-9)


def test_agreement_by_chance_is_zero_and_perfect_agreement_is_one():
    scores = np.random.default_rng(0).random((2, 20_000))
    assert krippendorff_alpha(scores) == pytest.approx(0.0, abs=0.03)
    assert krippendorff_alpha(np.stack([scores[0], scores[0]])) == pytest.approx(1.0)


@pytest.mark.parametrize(
    "ratings",
    [
        np.full((3, 5), 0.8),  # nobody ever says anything else
        np.array([[0.1, GAP], [GAP, 0.9]]),  # no answer was scored twice
        np.empty((0, 0)),
    ],
)
def test_alpha_is_not_defined_without_differences_or_pairs(ratings):
    assert krippendorff_alpha(ratings) is None
    assert krippendorff_alpha(ratings, metric="nominal") is None


def test_the_interval_of_alpha_holds_it():
    rows = [
        verdict(f"j{j}", f"e{n}", score / 5)
        for j, judge in enumerate(PAPER_C)
        for n, score in enumerate(judge)
        if np.isfinite(score)
    ]
    part = agreement(rows)["dimensions"]["right"]
    low, high = part["alpha_ci95"]
    assert part["alpha"] == pytest.approx(0.849, abs=5e-4)
    assert low < part["alpha"] < high <= 1.0
    assert part["num_answers"] == 11  # the twelfth was rated once
    assert agreement(rows) == agreement(rows)


def test_leniency_and_spread_by_hand():
    scores = {"kind": [0.9, 0.9], "mild": [0.6, 0.8], "hard": [0.3, 0.7]}
    rows = [verdict(j, f"e{n}", s) for j, given in scores.items() for n, s in enumerate(given)]
    judges = agreement(rows)["judges"]
    # kind against the mean of the two others: 0.9 - 0.45 and 0.9 - 0.75.
    assert judges["kind"]["leniency"] == pytest.approx((0.45 + 0.15) / 2)
    assert judges["hard"]["leniency"] == pytest.approx((-0.45 - 0.15) / 2)
    assert judges["mild"]["leniency"] == pytest.approx(0.0)
    assert judges["kind"]["spread"] == pytest.approx(0.0)
    assert judges["hard"]["spread"] == pytest.approx(np.std([0.3, 0.7], ddof=1))
    assert judges["hard"]["cost_usd"] == pytest.approx(0.02)


def test_failures_are_counted_by_answer_and_change_no_mean():
    rows = [verdict("a", f"e{n}", 0.5, dimension=d) for n in range(4) for d in ("x", "y")]
    rows += [verdict("b", f"e{n}", None, dimension=d) for n in range(2) for d in ("x", "y")]
    rows += [verdict("b", f"e{n}", 0.7, dimension=d) for n in (2, 3) for d in ("x", "y")]
    report = agreement(rows)
    assert report["judges"]["b"]["failures"] == 2
    assert report["judges"]["b"]["commonest_error"] == "prose"
    assert report["judges"]["b"]["mean"] == pytest.approx(0.7)
    assert report["dimensions"]["x"]["mean"] == pytest.approx((0.5 + 0.5 + 0.6 + 0.6) / 4)
    assert "b gave no verdict on 2" in agreement_note(report)


def test_a_failure_that_was_mended_by_a_rerun_is_none():
    failed, mended = verdict("a", "e", None), verdict("a", "e", 0.4)
    assert final_verdicts([failed, mended]) == final_verdicts([mended, failed]) == [mended]
    assert agreement([mended, failed])["judges"]["a"]["failures"] == 0
    assert agreement([mended, failed])["judges"]["a"]["cost_usd"] == pytest.approx(0.02)


def test_self_preference_is_flagged_with_its_size():
    own, other = "litellm:openai/gpt-5", "litellm:gemini/gemini-2.5-pro"
    rows = []
    for n in range(40):
        wobble = 0.02 * (n % 5)
        for author, favour in ((own, 0.15), (other, 0.05)):
            # The judge is 0.05 kinder than the others to everyone, and 0.10 more to its own.
            rows.append(verdict("gpt-4.1", f"e{n}", 0.6 + wobble + favour, author=author))
            rows.append(verdict("claude-sonnet-4", f"e{n}", 0.6, author=author))
            rows.append(verdict("verify", f"e{n}", 0.6 + 2 * wobble, author=author))
    (pair,) = agreement(rows)["self_preference"]
    assert (pair["judge"], pair["author"], pair["family"]) == ("gpt-4.1", own, "gpt")
    assert pair["effect"] == pytest.approx(0.15)
    assert pair["net_effect"] == pytest.approx(0.10)
    low, high = pair["net_effect_ci95"]
    assert 0 < low <= pair["net_effect"] + 1e-9
    assert high < 0.2
    assert pair["num_answers"] == 40


def test_a_lone_judge_of_the_authors_family_is_flagged_without_a_size():
    report = agreement([verdict("claude-opus-4", "e", 1.0, author="claude-sonnet-4")])
    (pair,) = report["self_preference"]
    assert pair["effect"] is None
    assert agreement_note(report) == "claude-opus-4 judges its own family's claude-sonnet-4"


def test_one_judge_without_failures_is_not_worth_a_note():
    assert agreement_note(agreement([verdict("verify", "e", 1.0)])) == ""
    assert agreement_note(agreement([])) == ""


@pytest.mark.parametrize(
    ("name", "family"),
    [
        ("litellm:anthropic/claude-sonnet-4-20250514", "claude"),
        ("bedrock/anthropic.claude-3-haiku", "claude"),
        ("openai/gpt-4.1-nano", "gpt"),
        ("gpt-oss-120b", "gpt"),
        ("openai/o3-mini", "gpt"),
        ("gemini/gemini-2.5-pro", "gemini"),
        ("google/gemma-3-12b-it", "gemini"),
        ("together_ai/meta-llama/Meta-Llama-3.1-8B-Instruct-Turbo", "llama"),
        ("ollama/qwen3:8b", "qwen"),
        ("ollama_chat/llama3.1", "llama"),
        ("Qwen/QwQ-32B", "qwen"),
        ("mistral/codestral-latest", "mistral"),
        ("mistralai/Mixtral-8x7B-Instruct-v0.1", "mistral"),
        ("deepseek-ai/DeepSeek-R1-Distill-Llama-70B", "deepseek"),
        ("openai/my-model", None),
        ("verify", None),
        ("program:claude-tasks/rules:answer", None),
        ("EleutherAI/gpt-neo-2.7B", None),
    ],
)
def test_families_by_name(name, family):
    assert model_family(name) == family
