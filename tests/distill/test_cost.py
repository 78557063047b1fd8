"""Costs against prices multiplied out by hand."""

from __future__ import annotations

import math
import subprocess
import sys

import pytest

from cluster.errors import ConfigError
from cluster.prices import api_price
from distill.cost import break_even_months, self_hosted_cost, teacher_cost, teacher_price
from distill.teach.config import LiteLLMTeacher, Price, ProgramTeacher, ReplayTeacher

PRICE = Price(input_usd_per_mtok=3.0, output_usd_per_mtok=15.0)


def test_a_teachers_cost_is_tokens_times_price() -> None:
    teacher = LiteLLMTeacher(model="openai/whatever", price=PRICE)
    cost = teacher_cost(teacher, mean_prompt_tokens=5000, mean_completion_tokens=2000)
    # 1,000 · (5,000 · 3 + 2,000 · 15) / 1e6: the reference story's $45 per 1,000.
    assert cost.usd_per_1k == pytest.approx(45.0)
    assert "teacher.price" in cost.basis


def test_known_models_are_priced_by_the_tables() -> None:
    sonnet = api_price("anthropic/claude-sonnet-4-20250514")
    assert sonnet is not None
    assert (sonnet.input_usd_per_mtok, sonnet.output_usd_per_mtok) == (3.0, 15.0)
    nano = api_price("openai/gpt-4.1-nano")
    assert nano is not None
    assert nano.input_usd_per_mtok == pytest.approx(0.10)
    assert nano.output_usd_per_mtok == pytest.approx(0.40)
    assert nano.source.startswith("price table of LiteLLM 1.")


def test_the_runs_price_wins_over_the_tables() -> None:
    price = teacher_price(LiteLLMTeacher(model="openai/gpt-4.1-nano", price=PRICE))
    assert price is not None
    assert price.output_usd_per_mtok == 15.0


@pytest.mark.parametrize(
    "model",
    [
        "openai/my-own-model",
        "ollama/llama3",  # LiteLLM lists it at zero dollars: that is nobody's price
        "anthropic/gpt-4.1-nano",  # the name is known, but of another provider
    ],
)
def test_an_unknown_price_is_asked_for_and_never_zero(model: str) -> None:
    assert api_price(model) is None
    with pytest.raises(ConfigError, match=r"teacher\.price .*input_usd_per_mtok"):
        teacher_price(LiteLLMTeacher(model=model))
    cost = teacher_cost(LiteLLMTeacher(model=model), mean_prompt_tokens=1, mean_completion_tokens=1)
    assert cost.usd_per_1k is None
    assert "teacher.price" in cost.basis


def test_a_recording_without_price_is_asked_for_too() -> None:
    with pytest.raises(ConfigError, match="answers\\.jsonl"):
        teacher_price(ReplayTeacher(file="answers.jsonl"))


def test_a_program_costs_nothing_and_says_so() -> None:
    cost = teacher_cost(ProgramTeacher(), mean_prompt_tokens=None, mean_completion_tokens=None)
    assert cost.usd_per_1k == 0.0
    assert "program" in cost.basis


def test_a_price_without_tokens_gives_no_figure() -> None:
    cost = teacher_cost(
        ReplayTeacher(file="a.jsonl", price=PRICE),
        mean_prompt_tokens=None,
        mean_completion_tokens=None,
    )
    assert cost.usd_per_1k is None
    assert "tokens" in cost.basis


def test_a_machine_of_ones_own() -> None:
    # 2 requests/s are 7,200 an hour: 3.60 dollars an hour are 0.50 a thousand.
    cost = self_hosted_cost(usd_per_hour=3.60, requests_per_s=2.0, concurrency=16)
    assert cost.usd_per_1k == pytest.approx(0.50)
    assert (
        self_hosted_cost(usd_per_hour=3.60, requests_per_s=0.0, concurrency=16).usd_per_1k is None
    )


def test_break_even() -> None:
    # 1,000 a day at 4.5 cents: 1,350 a month; 350 own; 2,000 once: two months.
    months = break_even_months(
        requests_per_day=1000,
        api_usd_per_request=0.045,
        own_usd_per_month=350,
        one_time_usd=2000,
    )
    assert months == pytest.approx(2.0)
    never = break_even_months(
        requests_per_day=1, api_usd_per_request=0.045, own_usd_per_month=350, one_time_usd=2000
    )
    assert never == math.inf


def test_a_price_is_looked_up_without_importing_litellm() -> None:
    code = (
        "import sys; from cluster.prices import api_price; api_price('openai/gpt-4.1-nano');"
        "assert 'litellm' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
