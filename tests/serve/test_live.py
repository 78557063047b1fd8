"""The figures of the gateway's own page: the last minutes, without a Prometheus."""

from __future__ import annotations

import numpy as np
import pytest

from serve.errors import CLIENT_CLOSED
from serve.live import NUM_STEPS, STEP_S, LiveFigures, Quantiles
from serve.metrics import GatewayMetrics, labels_of
from serve.routes import Target


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def test_quantiles_are_off_by_at_most_a_fortieth() -> None:
    rng = np.random.default_rng(0)
    latencies = rng.lognormal(0, 1, 20_000)
    found = Quantiles()
    for latency in latencies:
        found.add(latency)
    for share, name in ((0.5, "p50"), (0.9, "p90"), (0.99, "p99")):
        exact = np.quantile(latencies, share, method="inverted_cdf")
        assert found.shown()[name] == pytest.approx(exact, rel=0.025)


def test_of_nothing_there_is_no_quantile() -> None:
    assert LiveFigures().snapshot()["all"]["latency_s"] == {"p50": None, "p90": None, "p99": None}


def test_versions_add_up_to_their_adapter_and_adapters_to_all() -> None:
    live = LiveFigures(slo_p90_s=1.0)
    for version, latency_s in (("v1", 0.5), ("v1", 0.5), ("v2", 2.0)):
        live.answered(("reconcile", version), latency_s=latency_s, completion_tokens=10)
    live.missed_objective(("reconcile", "v2"))
    live.failed(("reconcile", "v2"), status=503)
    live.failed(("unknown", "-"), status=404)
    live.checked(("reconcile", "v1"), passed=False)
    live.fell_back(("reconcile", "v1"))
    live.paid("reconcile", teacher_usd=0.25)
    live.paid("reconcile", saved_usd=0.75)
    found = live.snapshot()
    assert found["all"]["requests"] == 5
    assert found["all"]["slo_misses"] == 1
    adapters = {row["adapter"]: row for row in found["adapters"]}
    assert adapters["reconcile"]["answered"] == 3
    assert adapters["reconcile"]["server_errors"] == 1
    assert adapters["reconcile"]["fallback_share"] == pytest.approx(1 / 3)
    assert adapters["unknown"]["client_errors"] == 1
    versions = {row["version"]: row for row in found["versions"]}
    assert versions["v1"]["latency_s"]["p90"] == pytest.approx(0.5, rel=0.025)
    assert versions["v2"]["latency_s"]["p50"] == pytest.approx(2.0, rel=0.025)
    assert (versions["v1"]["checked"], versions["v1"]["passed"]) == (1, 0)
    assert found["usd"] == {"reconcile": {"teacher_usd": 0.25, "saved_usd": 0.75}}


def test_a_client_that_leaves_once_the_objective_has_passed_is_a_miss() -> None:
    live = LiveFigures(slo_p90_s=1.0)
    metrics = GatewayMetrics(live=live, slo_p90_s=1.0)
    labels = labels_of(Target("reconcile@v1", "reconcile@v1", "reconcile", "v1"), "chat")
    for latency_s in (0.5, 1.5, 30.0):
        metrics.failed(labels, status=CLIENT_CLOSED, kind="client_closed", latency_s=latency_s)
    metrics.failed(labels, status=400, kind="bad_request", latency_s=1.5)
    found = live.snapshot()["all"]
    assert (found["requests"], found["slo_misses"], found["left_late"]) == (4, 2, 2)


def test_what_is_older_than_five_minutes_is_forgotten_but_not_the_dollars() -> None:
    clock = Clock()
    live = LiveFigures(clock=clock)
    live.answered(("reconcile", "v1"), latency_s=0.1)
    live.paid("reconcile", saved_usd=1.0)
    clock.now += STEP_S
    assert live.snapshot()["steps"][-1]["requests_per_s"] == 1 / STEP_S
    assert live.snapshot()["all"]["requests_per_s"] == 1 / STEP_S
    clock.now += NUM_STEPS * STEP_S
    assert live.snapshot()["all"]["requests"] == 0
    assert live.snapshot()["versions"] == []
    assert live.snapshot()["usd"]["reconcile"]["saved_usd"] == 1.0


def test_memory_does_not_grow_with_traffic() -> None:
    clock = Clock()
    live = LiveFigures(clock=clock)
    for number in range(5000):
        live.answered(("reconcile", "v1"), latency_s=0.001 * (1 + number % 1000))
        clock.now += 1
    assert len(live._steps) == NUM_STEPS
    buckets = max(len(step.of["reconcile", "v1"].latency._counts) for step in live._steps)
    assert buckets <= STEP_S
