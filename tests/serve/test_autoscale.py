"""How many replicas: properties of the decision, on its own and on what Ray Serve hands over."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.app import scaling_config
from serve.autoscale import WINDOW_S, LatencyPolicy, Memory, Scaling, Window, decide
from serve.config import ServeConfig
from serve.recent import RecentLatencies

QUIET = Window(ongoing=0)


def scaling(**fields: Any) -> Scaling:
    defaults = {"min_replicas": 1, "max_replicas": 100, "target_ongoing_requests": 10.0}
    return Scaling(**(defaults | fields))


def busy(ongoing: float, *, p90_s: float = 1.0, queue_s: float = 0.0) -> Window:
    return Window(ongoing=ongoing, finished=200, p90_s=p90_s, queue_s=queue_s)


def targets(
    windows: Iterable[Window], *, setting: Scaling, start: int = 1, every_s: float = 1.0
) -> list[int]:
    """Targets one decision after the other, where replicas start and stop at once."""
    target, memory, seen = start, Memory(), []
    for tick, window in enumerate(windows):
        target, memory = decide(
            window,
            replicas=target,
            target=target,
            scaling=setting,
            memory=memory,
            now_s=1000 + tick * every_s,
        )
        seen.append(target)
    return seen


windows = st.builds(
    Window,
    ongoing=st.floats(0, 1e6),
    finished=st.integers(0, 10**6),
    p90_s=st.floats(0, 1e3),
    queue_s=st.floats(0, 1e3),
)


@given(
    seen=st.lists(windows, max_size=40),
    least=st.integers(0, 5),
    more=st.integers(1, 50),
    slo_p90_s=st.sampled_from([0.0, 0.5, 5.0]),
    delay_s=st.sampled_from([0.0, 3.0, 300.0]),
)
def test_the_target_never_leaves_its_bounds(
    seen: list[Window], least: int, more: int, slo_p90_s: float, delay_s: float
) -> None:
    setting = scaling(
        min_replicas=least,
        max_replicas=least + more,
        slo_p90_s=slo_p90_s,
        upscale_delay_s=delay_s,
        downscale_delay_s=delay_s,
        idle_s=5.0,
    )
    found = targets(seen, setting=setting, start=max(1, least))
    assert all(least <= target <= least + more for target in found)


def test_replicas_follow_the_requests_under_way() -> None:
    assert targets([busy(95)], setting=scaling()) == [10]


@pytest.mark.parametrize("seed", range(5))
def test_a_steady_load_does_not_flap(seed: int) -> None:
    noise = random.Random(seed)
    seen = [busy(noise.uniform(80, 120)) for _ in range(1000)]
    found = targets(seen, setting=scaling(), every_s=5.0)
    # It settles on what the noise's upper edge needs, and stays there for well over an hour.
    assert set(found[60:]) == {12}
    assert all(after >= before for before, after in itertools.pairwise(found))


def test_a_missed_p90_is_answered_in_the_same_decision() -> None:
    setting = scaling(slo_p90_s=2.0)
    # 40 requests on 5 replicas are below the target of 10 each, and yet too slow.
    assert targets([busy(40, p90_s=3.0)], setting=setting, start=5) == [8]


def test_waiting_for_a_replica_counts_into_the_p90() -> None:
    setting = scaling(slo_p90_s=2.0)
    assert targets([busy(40, p90_s=1.5, queue_s=1.5)], setting=setting, start=5) == [8]


def test_latency_alone_at_most_doubles_what_runs() -> None:
    setting = scaling(slo_p90_s=1.0)
    assert targets([busy(40, p90_s=50.0)], setting=setting, start=5) == [10]


def test_requests_that_are_slow_alone_start_no_replicas() -> None:
    setting = scaling(slo_p90_s=1.0)
    assert targets([busy(1.5, p90_s=9.0)] * 100, setting=setting, start=3) == [3] * 100


def test_a_few_requests_say_nothing_about_the_p90() -> None:
    window = Window(ongoing=20, finished=3, p90_s=60.0)
    assert targets([window], setting=scaling(slo_p90_s=1.0), start=2) == [2]


def test_after_growth_the_old_latencies_are_not_answered_twice() -> None:
    setting = scaling(slo_p90_s=2.0)
    found = targets([busy(200, p90_s=3.0)] * int(WINDOW_S + 2), setting=setting, start=20)
    assert found[0] == 30
    # The look at which the new replicas run starts the window again.
    assert set(found[: int(WINDOW_S)]) == {30}
    assert found[-1] == 45


def test_fewer_replicas_wait_for_the_cool_down() -> None:
    setting = scaling(downscale_delay_s=60.0)
    found = targets([busy(95)] * 5 + [busy(25)] * 70, setting=setting, start=10)
    assert found[: 5 + 59] == [10] * 64
    assert found[-1] == 3


def test_one_burst_in_the_cool_down_keeps_what_it_needed() -> None:
    setting = scaling(downscale_delay_s=60.0)
    seen = [busy(95), *[busy(25)] * 50, busy(75), *[busy(25)] * 40]
    assert targets(seen, setting=setting, start=10)[-1] == 8


def test_no_replica_is_let_go_that_the_p90_needs() -> None:
    setting = scaling(slo_p90_s=2.0, downscale_delay_s=5.0)
    replicas, memory = 10, Memory()
    for now_s in range(100):
        # By load 4 replicas would do, but the latency follows the requests each of them has.
        window = busy(40, p90_s=14 / replicas)
        replicas, memory = decide(
            window, replicas=replicas, target=replicas, scaling=setting, memory=memory, now_s=now_s
        )
    assert replicas == 9


def test_more_replicas_wait_for_their_delay() -> None:
    setting = scaling(upscale_delay_s=10.0)
    found = targets([busy(5)] + [busy(95)] * 15, setting=setting)
    assert found[:10] == [1] * 10
    assert found[-1] == 10


def test_an_idle_base_stops_and_its_first_request_starts_one() -> None:
    setting = scaling(min_replicas=0, idle_s=30.0, downscale_delay_s=0.0)
    found = targets([busy(5)] + [QUIET] * 35, setting=setting)
    assert found[29] == 1
    assert found[-1] == 0
    assert targets([*[QUIET] * 40, busy(25)], setting=setting)[-1] == 1


def test_a_base_that_is_used_now_and_then_stays() -> None:
    setting = scaling(min_replicas=0, idle_s=30.0)
    assert set(targets(([busy(1)] + [QUIET] * 20) * 10, setting=setting)) == {1}


def context(**fields: Any) -> Any:
    """What Ray Serve hands a policy (`ray.serve.config.AutoscalingContext`), as far as read."""
    defaults = {
        "current_num_replicas": 2,
        "target_num_replicas": 2,
        "total_num_requests": 12.0,
        "total_queued_requests": 0.0,
        "raw_metrics": {},
        "policy_state": {},
        "current_time": 5000.0,
    }
    return SimpleNamespace(**(defaults | fields))


def series(*values: float) -> list[Any]:
    return [SimpleNamespace(timestamp=float(i), value=v) for i, v in enumerate(values)]


def test_the_policy_reads_each_replicas_newest_report() -> None:
    policy = LatencyPolicy(
        min_replicas=1, max_replicas=9, target_ongoing_requests=10.0, slo_p90_s=2.0
    )
    reports = {
        "finished": {"a": series(0, 30), "b": series(10)},
        "p90_s": {"a": series(9, 2.0), "b": series(6.0)},
    }
    # (30 × 2 s + 10 × 6 s) / 40 = 3 s, half again the objective.
    target, state = policy(context(raw_metrics=reports))
    assert target == 3
    again, _ = policy(context(raw_metrics=reports, policy_state=state, target_num_replicas=3))
    assert again == 3


def test_the_policy_works_before_a_replica_reported() -> None:
    policy = LatencyPolicy(**ServeConfig(max_replicas=4).model_dump(include={"min_replicas",
        "max_replicas", "target_ongoing_requests"}))  # fmt: skip
    assert policy(context(raw_metrics=None, total_queued_requests=None))[0] == 2


def test_ray_serve_takes_the_configuration_and_pickles_the_policy() -> None:
    from ray.serve.config import AutoscalingConfig

    fields = scaling_config(ServeConfig(max_replicas=4, min_replicas=0, slo_p90_s=2.5))
    taken = AutoscalingConfig(**fields["autoscaling_config"])
    assert (taken.min_replicas, taken.initial_replicas, taken.max_replicas) == (0, 1, 4)
    policy = taken.policy.get_policy()(**taken.policy.policy_kwargs)
    assert policy(context(total_num_requests=60.0))[0] == 4


def test_without_max_replicas_the_number_is_fixed() -> None:
    assert scaling_config(ServeConfig(replicas=3)) == {"num_replicas": 3}


@pytest.mark.parametrize(
    ("fields", "told"),
    [
        ({"max_replicas": 2, "min_replicas": 3}, "min_replicas 3 is above serve.max_replicas 2"),
        ({"min_replicas": 0}, "does nothing without serve.max_replicas"),
        ({"max_replicas": 2, "target_ongoing_requests": 65}, "above serve.max_ongoing_requests 64"),
    ],
)
def test_what_cannot_scale_is_said(fields: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        ServeConfig(**fields)


def test_a_replica_reports_the_p90_of_its_window_only() -> None:
    clock = [0.0]
    recent = RecentLatencies(window_s=30, now=lambda: clock[0])
    assert recent.stats() == {"finished": 0.0, "p90_s": 0.0}
    for latency_s in range(1, 11):
        recent.add(float(latency_s))
    assert recent.stats() == {"finished": 10.0, "p90_s": 9.0}
    clock[0] = 20.0
    recent.add(0.5)
    clock[0] = 40.0
    assert recent.stats() == {"finished": 1.0, "p90_s": 0.5}
