"""A canary ends by itself: how fast, and how seldom wrongly."""

from __future__ import annotations

import json
import random

import numpy as np
import pytest
from gateway_path import Served
from routing import EASY, predictor_of

from cluster.registry import CanaryBounds, Split
from serve.routes import Alias
from serve.split.canary import Arm, decide
from serve.split.sequential import rate_bounds

BOUNDS = CanaryBounds()


def arm(rng: np.random.Generator, number: int, *, scale: float = 1.0, **rates: float) -> Arm:
    found = Arm()
    more(found, rng, number, scale=scale, **rates)
    return found


def more(
    to: Arm, rng: np.random.Generator, number: int, *, scale: float = 1.0, **rates: float
) -> None:
    for _ in range(number):
        error = rng.random() < rates.get("errors", 0.0)
        to.add(
            latency_s=None if error else scale * rng.lognormal(0, 0.3),
            error=error,
            refused=rng.random() < rates.get("refused", 0.0),
            fallback=rng.random() < rates.get("fallbacks", 0.0),
        )


def run(seed: int, *, share: float = 0.5, most: int = 6000, other: dict, canary: dict):
    """Requests one after the other, a look after every 50: the decision and when it fell."""
    rng = np.random.default_rng(seed)
    arms = {True: Arm(), False: Arm()}
    for number in range(1, most + 1):
        is_canary = rng.random() < share
        more(arms[is_canary], rng, 1, **(canary if is_canary else other))
        if number % 50 == 0:
            decision = decide(arms[True], arms[False], BOUNDS, hours=0)
            if decision.action != "wait":
                return decision, arms[True].requests
    return decide(arms[True], arms[False], BOUNDS, hours=0), arms[True].requests


def test_an_equal_canary_is_promoted():
    same = {"errors": 0.001, "refused": 0.02}
    decision, requests = run(1, other=same, canary=same)
    assert decision.action == "promote"
    assert BOUNDS.min_samples <= requests < 2500


@pytest.mark.parametrize(
    ("canary", "criterion"),
    [
        ({"errors": 1.0}, "errors"),
        ({"errors": 0.3}, "errors"),
        ({"refused": 0.5}, "refused"),
        ({"fallbacks": 0.5}, "fallbacks"),
    ],
)
def test_a_broken_canary_is_rolled_back_within_a_hundred_of_its_requests(canary, criterion):
    rng = np.random.default_rng(0)
    other = arm(rng, 500)
    seen = Arm()
    while (decision := decide(seen, other, BOUNDS, hours=0)).action == "wait":
        more(seen, rng, 1, **canary)
        assert seen.requests < 100
    assert decision.action == "roll_back"
    assert criterion in decision.reason


def test_a_slower_canary_is_rolled_back_by_its_p90():
    decision, requests = run(3, other={}, canary={"scale": 1.6})
    assert (decision.action, decision.reason) == ("roll_back", "out of bounds: slow")
    assert requests < 500


def test_one_that_answers_nothing_but_errors_has_no_latency_to_hide_behind():
    rng = np.random.default_rng(0)
    decision = decide(arm(rng, 60, errors=1.0), arm(rng, 500), BOUNDS, hours=0)
    assert decision.action == "roll_back"


def test_a_stream_that_breaks_ends_with_an_error_and_counts_as_one(tmp_path):
    served = Served(tmp_path, predictor_of("reconcile", base_model="tiny"), "large", breaks=True)
    since = "2026-01-01T00:00:00+00:00"
    served.table.splits[Alias("reconcile", "prod")] = Split(version=2, weight=1.0, since=since)
    answer = served.ask(EASY, stream=True)
    last = answer.text.strip().split("\n\n")[-1]
    assert json.loads(last.removeprefix("data: "))["error"]["code"] == "internal_error"
    assert [row["status"] for row in served.kept.rows] == [500]
    arm = served.splits._watched[Alias("reconcile", "prod")].second
    assert (arm.requests, arm.errors, list(arm.latencies_s)) == (1, 1, [])


@pytest.mark.parametrize(("errors", "action"), [(1.0, "roll_back"), (0.3, "wait")])
def test_one_that_fails_with_nothing_beside_it_is_not_waited_for(errors, action):
    rng = np.random.default_rng(0)
    decision = decide(arm(rng, 60, errors=errors), Arm(), BOUNDS, hours=0)
    assert decision.action == action


def test_one_that_hangs_is_ended_by_the_clients_that_leave():
    rng = np.random.default_rng(0)
    other, seen = arm(rng, 500), Arm()
    while (decision := decide(seen, other, BOUNDS, hours=0)).action == "wait":
        seen.leave(30.0)
        assert len(seen.seen_s) < 100
    assert (decision.action, decision.reason) == ("roll_back", "out of bounds: slow")


def test_clients_that_leave_as_often_from_both_versions_are_no_difference():
    rng = np.random.default_rng(0)
    arms = arm(rng, 800), arm(rng, 800)
    for one in arms:
        for _ in range(120):
            one.leave(30.0)  # later than nine in ten answers come
            one.leave(0.01)  # says nothing of how long the answer would have taken
    assert arms[0].p90_s == arms[1].p90_s == 30.0
    assert decide(*arms, BOUNDS, hours=0).action == "promote"


def test_a_client_that_leaves_is_seen_on_its_way(tmp_path):
    served = Served(tmp_path, predictor_of("reconcile", base_model="tiny"), "large", hangs=True)
    since = "2026-01-01T00:00:00+00:00"
    served.table.splits[Alias("reconcile", "prod")] = Split(version=2, weight=1.0, since=since)
    with pytest.raises(TimeoutError):
        served.ask(EASY, leave_after_s=0.1)
    arm = served.splits._watched[Alias("reconcile", "prod")].second
    ((elapsed_s, answered),) = arm.seen_s
    assert (arm.requests, answered) == (0, False)
    assert 0.05 < elapsed_s < 10


@pytest.mark.slow
def test_wrong_ends_are_as_rare_as_stated():
    # Just within its bound a canary may never be rolled back, just outside never promoted, in
    # more than alpha of the cases, although there are 120 looks at each.
    other = {"refused": 0.02}
    within = [run(s, other=other, canary={"refused": 0.02 + 0.03})[0].action for s in range(20)]
    outside = [run(s, other=other, canary={"refused": 0.02 + 0.035})[0].action for s in range(20)]
    assert within.count("roll_back") <= 0.05 * 20
    assert outside.count("promote") <= 0.05 * 20


def test_without_a_decision_in_its_time_it_is_rolled_back():
    rng = np.random.default_rng(0)
    few = arm(rng, 5)
    assert decide(few, arm(rng, 50), BOUNDS, hours=23.9).action == "wait"
    decision = decide(few, arm(rng, 50), BOUNDS, hours=24)
    assert decision.action == "roll_back"
    assert "undecided after 24 hours" in decision.reason


@pytest.mark.parametrize("rate", [0.01, 0.1, 0.5])
def test_an_interval_holds_at_every_moment(rate):
    rng = random.Random(5)
    alpha, missed = 0.1, 0
    for _ in range(100):
        successes = 0
        for trials in range(1, 301):
            successes += rng.random() < rate
            if trials % 5 == 0:
                low, high = rate_bounds(successes, trials, alpha=alpha)
                if not low <= rate <= high:
                    missed += 1
                    break
    assert missed <= alpha * 100


def test_intervals_narrow_and_contain_what_was_seen():
    widths = []
    for trials in (10, 100, 1000, 10_000):
        low, high = rate_bounds(trials // 10, trials, alpha=0.05)
        assert 0 <= low < 0.1 < high <= 1
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    assert rate_bounds(0, 0, alpha=0.05) == (0.0, 1.0)
    assert rate_bounds(0, 50, alpha=0.05)[0] == 0.0
    assert rate_bounds(50, 50, alpha=0.05)[1] == 1.0
