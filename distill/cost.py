"""What a request costs through an API and on one's own machine, and when the student pays off."""

from __future__ import annotations

import math
from dataclasses import dataclass

from cluster.errors import ConfigError
from cluster.prices import TokenPrice, api_price
from distill.teach.config import (
    AnyTeacher,
    LiteLLMTeacher,
    OneTeacher,
    ProgramTeacher,
    SeveralTeachers,
    VLLMTeacher,
)

DAYS_PER_MONTH = 30


@dataclass(frozen=True)
class Cost:
    """Dollars per 1,000 requests, and how the figure came about."""

    usd_per_1k: float | None
    """`None`: the price is not known; `basis` says what to set."""
    basis: str
    """One sentence: prices, tokens or throughput behind the figure."""


def teacher_price(teacher: AnyTeacher) -> TokenPrice | None:
    """Price of the teacher's answers: `[teacher] price` if given, else the price tables.

    Of several teachers it is what one prompt costs with them: the sum of those that all answer it,
    the mean of a mixture's by weight; each times its samples. `None` for a program without a price:
    it costs nothing. Raises ConfigError for a model or a recording whose price nobody knows.
    """
    if teacher.price is not None:
        return teacher.price.as_token_price("teacher.price of the run")
    if isinstance(teacher, SeveralTeachers):
        return _together(teacher)
    if isinstance(teacher, ProgramTeacher):
        return None
    if isinstance(teacher, LiteLLMTeacher):
        known = api_price(teacher.model)
        if known is not None:
            return known
    what = (
        f"the price of {teacher.model!r}"
        if isinstance(teacher, (LiteLLMTeacher, VLLMTeacher))
        else f"what the answers in {teacher.file!r} cost"
    )
    raise ConfigError(
        f"teacher.price is not set and no price table knows {what}: set [teacher] "
        "price = {input_usd_per_mtok = 3.0, output_usd_per_mtok = 15.0} with your provider's "
        "prices (0 and 0 if it costs nothing)."
    )


def _together(teacher: SeveralTeachers) -> TokenPrice:
    weights = teacher.weights or (1.0,) * len(teacher.members)
    mixed = teacher.combine == "mixture"
    per_input = per_output = 0.0
    for member, weight in zip(teacher.members, weights, strict=True):
        price = teacher_price(member)
        if price is None:
            continue
        part = weight / sum(weights) if mixed else 1.0
        part *= _samples(member)
        per_input += part * price.input_usd_per_mtok
        per_output += part * price.output_usd_per_mtok
    how = "their mean by weight" if mixed else "their sum"
    return TokenPrice(per_input, per_output, f"{len(teacher.members)} teachers, {how}")


def _samples(teacher: OneTeacher) -> int:
    return teacher.samples if isinstance(teacher, (LiteLLMTeacher, VLLMTeacher)) else 1


def teacher_cost(
    teacher: AnyTeacher,
    *,
    mean_prompt_tokens: float | None,
    mean_completion_tokens: float | None,
) -> Cost:
    """Cost of 1,000 of the teacher's answers at the mean tokens of a request."""
    try:
        price = teacher_price(teacher)
    except ConfigError as error:
        return Cost(None, str(error))
    if price is None:
        return Cost(0.0, "the teacher is a program of your own: no API is paid")
    if price.input_usd_per_mtok == price.output_usd_per_mtok == 0:
        return Cost(0.0, f"0 dollars by {price.source}")
    if mean_prompt_tokens is None or mean_completion_tokens is None:
        return Cost(None, "the teacher's answers were recorded without their tokens")
    usd = price.request_usd(
        prompt_tokens=mean_prompt_tokens, completion_tokens=mean_completion_tokens
    )
    return Cost(
        usd * 1000,
        f"{mean_prompt_tokens:.0f} prompt tokens at ${price.input_usd_per_mtok:g} and "
        f"{mean_completion_tokens:.0f} completion tokens at ${price.output_usd_per_mtok:g} a "
        f"million ({price.source})",
    )


def self_hosted_cost(*, usd_per_hour: float, requests_per_s: float, concurrency: int) -> Cost:
    """Cost of 1,000 requests on a machine kept as busy as it was measured.

    An idle hour costs as much as a busy one: at a fraction of the load the figure is higher by
    that fraction.
    """
    if requests_per_s <= 0:
        return Cost(None, "no request was answered, so the throughput is not known")
    return Cost(
        usd_per_hour / (requests_per_s * 3600) * 1000,
        f"${usd_per_hour:g} an hour at the {requests_per_s:.3g} requests/s measured with "
        f"{concurrency} in flight, the machine kept busy",
    )


def break_even_months(
    *,
    requests_per_day: float,
    api_usd_per_request: float,
    own_usd_per_month: float,
    one_time_usd: float,
) -> float:
    """Months until the one-time cost is saved; infinite when one's own machine costs more.

    one-time ÷ (API a month − own a month), with the API at requests a day × 30 × price a request.
    """
    saved_usd = requests_per_day * DAYS_PER_MONTH * api_usd_per_request - own_usd_per_month
    return one_time_usd / saved_usd if saved_usd > 0 else math.inf
