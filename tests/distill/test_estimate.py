"""What a run would cost, before a cent is spent."""

import pytest

from cluster.prices import TokenPrice
from distill.teach.config import LiteLLMTeacher
from distill.teach.estimate import estimate

PRICE = TokenPrice(2.0, 10.0, "test")


def prompts(count):
    return [{"messages": [{"role": "user", "content": "x" * 400}]} for _ in range(count)]


def test_without_earlier_answers_the_longest_are_reckoned_with():
    rows = prompts(100)
    config = LiteLLMTeacher(model="m", max_tokens=500, concurrency=10)
    found = estimate(rows, config, missing=rows, earlier=[], price=PRICE)
    assert (found.input_tokens, found.output_tokens) == (10_000, 50_000)
    assert found.usd == found.most_usd == pytest.approx(0.52)
    assert found.hours == pytest.approx(100 / 3600)
    assert "no answers known yet" in found.basis


def test_earlier_answers_of_the_model_say_how_long_and_how_slow_they_are():
    rows = prompts(100)
    earlier = [{"error": "", "completion_tokens": 50, "latency_s": 2.0}] * 40
    config = LiteLLMTeacher(model="m", max_tokens=500, concurrency=10)
    found = estimate(rows, config, missing=rows[:60], earlier=earlier, price=PRICE)
    assert (found.known, found.output_tokens, found.most_output_tokens) == (40, 3_000, 30_000)
    assert found.usd < found.most_usd
    assert found.hours == pytest.approx(12 / 3600)


@pytest.mark.parametrize(
    ("limits", "seconds"),
    [({"requests_per_minute": 20}, 300), ({"tokens_per_minute": 6_000}, 600)],
)
def test_the_providers_rates_decide_when_they_are_lower(limits, seconds):
    rows = prompts(100)
    config = LiteLLMTeacher(model="m", max_tokens=500, concurrency=10, **limits)
    found = estimate(rows, config, missing=rows, earlier=[], price=None)
    assert found.hours == pytest.approx(seconds / 3600)
    assert found.usd is None
