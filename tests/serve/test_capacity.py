"""The simulator against queueing theory, its traffic, its curve and its search."""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from cluster.errors import ConfigError, DataError
from serve.autoscale import Scaling
from serve.capacity import queueing
from serve.capacity.curve import Point, ServiceCurve, read_curve
from serve.capacity.search import Search
from serve.capacity.simulate import Outcome, Site, simulate
from serve.capacity.trace import Trace, read_trace, scaled, synthetic
from serve.request_log import SCHEMA

ENDLESS = 10**9


def curve(seconds: dict[int, float], **fields: Any) -> ServiceCurve:
    points = [Point(concurrency=k, seconds_per_request=s) for k, s in seconds.items()]
    return ServiceCurve(points=points, **({"startup_s": 0.0} | fields))


SHARED = {1: 1.0, 1000: 1000.0}
"""A replica whose speed is shared: k requests take k times as long."""
BATCHED = {1: 1.0, 8: 1.4, 32: 3.2}
"""A replica that batches, as an inference engine does."""


def fixed(count: int) -> Scaling:
    return Scaling(min_replicas=count, max_replicas=count, target_ongoing_requests=1.0)


def latencies(
    arrival_s: np.ndarray, work_s: np.ndarray, *, replicas: int, limit: int, seconds: dict[int, Any]
) -> np.ndarray:
    """Play requests of given sizes against a fixed number of replicas."""
    speed = curve(seconds).speed(limit)
    pool = queueing.new_pool(arrival_s, work_s, speed=speed, max_replicas=replicas, seed=1)
    for _ in range(replicas):
        queueing.start_replica(pool)
    queueing.advance(pool, float(arrival_s[-1] + 1e6), ENDLESS)
    return np.asarray(pool.finish_s - arrival_s)


def erlang_c(servers: int, offered: float) -> float:
    """Probability of waiting in M/M/c (Erlang 1917; Kleinrock, Queueing Systems I, eq. 3.40)."""
    terms = sum(offered**k / math.factorial(k) for k in range(servers))
    last = offered**servers / math.factorial(servers) / (1 - offered / servers)
    return last / (terms + last)


@pytest.mark.parametrize(("servers", "load"), [(1, 0.7), (4, 0.8), (20, 0.9)])
def test_one_request_at_a_time_waits_as_erlang_c_says(servers: int, load: float) -> None:
    random = np.random.default_rng(servers)
    arrival_s = np.cumsum(random.exponential(1 / (load * servers), 400_000))
    work_s = random.exponential(1.0, len(arrival_s))
    took_s = latencies(arrival_s, work_s, replicas=servers, limit=1, seconds={1: 1.0})
    waits_s = erlang_c(servers, load * servers) / (servers * (1 - load))
    # 400,000 autocorrelated waits: their mean is off by a few per cent at a load of 0.9.
    assert (took_s - work_s).mean() == pytest.approx(waits_s, rel=0.06)


@pytest.mark.parametrize("sizes", ["exponential", "all alike", "two kinds"])
def test_a_shared_replica_takes_as_long_as_processor_sharing_says(sizes: str) -> None:
    random = np.random.default_rng(7)
    load = 0.7
    arrival_s = np.cumsum(random.exponential(1 / load, 400_000))
    kinds = {
        "exponential": random.exponential(1.0, len(arrival_s)),
        "all alike": np.ones(len(arrival_s)),
        "two kinds": random.choice([0.5, 3.0], p=[0.8, 0.2], size=len(arrival_s)),
    }
    work_s = kinds[sizes]
    took_s = latencies(arrival_s, work_s, replicas=1, limit=1000, seconds=SHARED)
    # M/G/1-PS: E[T | size x] = x / (1 - load), whatever the sizes' distribution is (Kleinrock,
    # Queueing Systems II, eq. 4.17).
    assert took_s.mean() == pytest.approx(work_s.mean() / (1 - load), rel=0.05)
    if sizes == "two kinds":
        for size in (0.5, 3.0):
            assert took_s[work_s == size].mean() == pytest.approx(size / (1 - load), rel=0.05)


def test_a_replica_under_constant_concurrency_gives_its_curve_back() -> None:
    # 8 requests at once, and the next 8 as they end: each takes what the curve says of 8.
    arrival_s = np.repeat(np.arange(50) * 1.4, 8)
    took_s = latencies(arrival_s, np.ones(400), replicas=1, limit=32, seconds=BATCHED)
    assert took_s == pytest.approx(1.4)


def test_two_choices_are_nearly_as_good_as_knowing_all() -> None:
    random = np.random.default_rng(3)
    arrival_s = np.cumsum(random.exponential(1 / 80, 200_000))
    took_s = latencies(arrival_s, np.ones(200_000), replicas=100, limit=64, seconds=SHARED)
    # A load of 0.8 split blindly would take 1 / (1 - 0.8) = 5 s.
    assert 1.0 < took_s.mean() < 2.5


def play(trace: Trace, scaling: Scaling, **site: Any) -> Outcome:
    defaults = {"curve": curve(BATCHED, startup_s=30.0), "max_ongoing_requests": 32}
    return simulate(trace, scaling=scaling, site=Site(**(defaults | site)))


def test_every_request_is_answered_or_refused_and_the_sums_agree() -> None:
    trace = synthetic(rate=20, hours=0.2, seed=2)
    found = play(trace, fixed(2), max_queued_requests=10)
    assert found.requests == len(trace)
    assert found.rejected > 0
    assert found.replica_s == pytest.approx(2 * found.time_s[-1])
    assert 0 <= found.busy_s <= found.replica_s
    # Little's law over the whole run.
    inside = found.latency_s.sum() / found.time_s[-1]
    assert found.ongoing.mean() == pytest.approx(inside, rel=0.02)


def test_a_burst_is_met_by_new_replicas_after_their_start() -> None:
    calm, burst = np.arange(0, 120, 1.0), np.arange(120, 420, 0.05)
    trace = Trace(np.concatenate((calm, burst)))
    scaling = Scaling(
        min_replicas=1, max_replicas=20, target_ongoing_requests=8.0, slo_p90_s=2.0,
        downscale_delay_s=60.0,
    )  # fmt: skip
    found = play(trace, scaling, max_queued_requests=ENDLESS)
    grown_s = found.time_s[np.argmax(found.running > 1)]
    asked_s = found.time_s[np.argmax(found.target > 1)]
    assert 120 < asked_s < 130
    assert grown_s == pytest.approx(asked_s + 30, abs=2.1)
    late = found.arrival_s > 300
    assert np.quantile(found.latency_s[late], 0.9) < 2.0


def test_an_idle_base_costs_nothing_and_its_first_request_waits_for_the_start() -> None:
    trace = Trace(np.array([0.0, 3000.0, 3000.5]))
    scaling = Scaling(min_replicas=0, max_replicas=2, target_ongoing_requests=8.0, idle_s=60.0)
    found = play(trace, scaling)
    assert found.replica_s < 60 + 120
    assert 30 < found.latency_s[1] < 30 + 2 + 1.5


def test_the_same_seed_plays_the_same() -> None:
    trace = synthetic(rate=10, hours=0.1)
    scaling = Scaling(min_replicas=1, max_replicas=9, target_ongoing_requests=4.0)
    once, again = play(trace, scaling), play(trace, scaling)
    assert (once.latency_s == again.latency_s).all()


@pytest.mark.slow
def test_the_search_finds_what_holds_for_less_than_a_fixed_number() -> None:
    day = synthetic(rate=1 / 24, daily_peak=60 / 24, hours=24, seed=5)
    trace = Trace(day.arrival_s / 24)  # an hour for a day
    scaling = Scaling(min_replicas=1, max_replicas=64, target_ongoing_requests=32.0, slo_p90_s=2.0)
    site = Site(curve=curve(BATCHED, startup_s=10.0), max_ongoing_requests=32)
    search = Search(trace, site, slo_p90_s=2.0)
    best, steady = search.cheapest(scaling), search.fixed(64)
    assert best.holds(2.0)
    assert steady is not None
    assert not search.outcome(fixed(steady.scaling.max_replicas - 1)).holds(2.0)
    assert best.replica_s < 0.9 * steady.replica_s
    assert all(
        best.replica_s <= other.replica_s
        for setting, other in search.tried.items()
        if other.holds(2.0) and setting.min_replicas != setting.max_replicas
    )


def test_what_no_number_of_replicas_can_hold_is_not_held() -> None:
    search = Search(synthetic(rate=1, hours=0.2), Site(curve=curve(BATCHED)), slo_p90_s=0.5)
    scaling = Scaling(min_replicas=1, max_replicas=8, target_ongoing_requests=1.0, slo_p90_s=0.5)
    assert not search.cheapest(scaling).holds(0.5)
    assert search.fixed(8) is None


def test_a_curve_is_interpolated_and_saturates() -> None:
    found = curve(BATCHED)
    assert found.seconds(np.array([1, 8, 20, 64])) == pytest.approx([1.0, 1.4, 2.3, 6.4])
    assert found.concurrency_within(1.4, limit=32) == 8
    assert found.concurrency_within(0.9, limit=32) == 0
    tokens = ServiceCurve(
        completion_tokens=32, points=[Point(concurrency=4, tokens_per_s=64, ttft_s=0.5)]
    )
    assert tokens.seconds(np.array([4.0])) == pytest.approx([2.0])


def test_longer_prompts_and_completions_are_more_work() -> None:
    point = Point(concurrency=1, seconds_per_request=3.0, ttft_s=1.0)
    found = ServiceCurve(prompt_tokens=100, completion_tokens=50, points=[point])
    work_s = found.work_s(np.array([100.0, 200, 100]), np.array([50.0, 50, 100]), count=3)
    assert work_s == pytest.approx([3.0, 4.0, 5.0])


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ({"points": []}, "points"),
        ({"points": [{"concurrency": 1}]}, "has no seconds_per_request"),
        ({"points": [{"concurrency": 1, "seconds_per_request": 1}] * 2}, "stands twice"),
        ({"points": [{"concurrency": 1, "seconds_per_request": 0}]}, "seconds_per_request"),
    ],
)
def test_a_broken_curve_is_said(content: dict[str, Any], told: str, tmp_path: Path) -> None:
    (tmp_path / "curve.json").write_text(json.dumps(content))
    with pytest.raises(ConfigError, match=told):
        read_curve(tmp_path / "curve.json")


def test_the_request_log_is_read_as_it_is(tmp_path: Path) -> None:
    def row(created_ms: int, latency_s: float, status: int, tokens: int) -> dict[str, Any]:
        return {
            "created_at": created_ms,
            "latency_s": latency_s,
            "status": status,
            "prompt_tokens": 90,
            "completion_tokens": tokens,
        }

    files = [
        [row(10_000, 1.0, 200, 30), row(12_000, 4.0, 200, 10)],
        [row(13_000, 0.0, 404, 0), row(20_000, 5.0, 504, 0)],
    ]
    for number, rows in enumerate(files):
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), tmp_path / f"{number}.parquet")
    trace = read_trace(str(tmp_path))
    # Arrivals at 8, 9 and 15 s; the 404 never came to a replica, the late one was as long as most.
    assert trace.arrival_s == pytest.approx([0, 1, 7])
    assert trace.completion_tokens == pytest.approx([10, 30, 20])


@pytest.mark.parametrize("name", ["trace.jsonl", "trace.csv"])
def test_jsonl_and_csv_are_read(name: str, tmp_path: Path) -> None:
    text = (
        '{"arrival_s": 3.5}\n{"arrival_s": 1.5}\n' if name.endswith("l") else "arrival_s\n3.5\n1.5"
    )
    (tmp_path / name).write_text(text)
    trace = read_trace(str(tmp_path / name))
    assert trace.arrival_s == pytest.approx([0, 2])
    assert trace.completion_tokens is None


@pytest.mark.parametrize(
    ("name", "text", "told"),
    [
        ("gone.csv", None, "no such file"),
        ("other.csv", "when\n1", "has the columns when; needed: arrival_s"),
        ("words.csv", "arrival_s\nsoon", "arrival_s must be a number"),
        ("empty.csv", "arrival_s\n", "has no request"),
        ("half.jsonl", '{"arrival_s": 1}\n{"arrival_s": }', "cannot be read"),
    ],
)
def test_a_trace_that_cannot_be_used_is_said(
    name: str, text: str | None, told: str, tmp_path: Path
) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(DataError, match=told):
        read_trace(str(tmp_path / name))


def test_a_day_has_its_peak_at_noon_and_its_mean_between() -> None:
    trace = synthetic(rate=1, daily_peak=9, hours=24, seed=3)
    per_hour = np.bincount((trace.arrival_s / 3600).astype(int), minlength=24) / 3600
    assert per_hour[11:13] == pytest.approx(9, rel=0.05)
    assert per_hour[0] == pytest.approx(1.05, rel=0.1)
    assert len(trace) == pytest.approx(5 * 86_400, rel=0.01)


def test_twice_the_traffic_is_twice_the_requests_over_the_same_time() -> None:
    trace = synthetic(rate=5, hours=1)
    doubled, halved = scaled(trace, 2.0), scaled(trace, 0.5)
    assert len(doubled) == 2 * len(trace)
    assert len(halved) == pytest.approx(len(trace) / 2, rel=0.05)
    assert doubled.span_s == pytest.approx(trace.span_s, abs=1)
    assert (np.diff(doubled.arrival_s) >= 0).all()


@pytest.mark.slow
def test_a_million_requests_on_ten_thousand_replicas_take_seconds() -> None:
    play(synthetic(rate=5, hours=0.1), fixed(2))  # compiled, or read from numba's cache
    trace = synthetic(rate=8000, hours=125 / 3600, seed=4)
    scaling = Scaling(min_replicas=2000, max_replicas=10_000, target_ongoing_requests=1.0)
    began = time.perf_counter()
    found = play(trace, scaling, curve=curve(BATCHED, startup_s=20.0), max_queued_requests=ENDLESS)
    took_s = time.perf_counter() - began
    assert found.requests == len(trace) > 990_000
    assert found.peak > 8000
    # Two seconds on an idle core; the machine may be busy with something else.
    assert took_s < 60
    print(f"{len(trace):,} requests, {found.peak:,} replicas at most: {took_s:.1f} s")
