"""Drift that was planted is found and named; the same traffic again is quiet."""

from __future__ import annotations

import random
from datetime import timedelta

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from production import START, asked, log_row, write_log
from threadpoolctl import threadpool_limits

from cluster.errors import ConfigError, DataError
from cluster.masking import MaskingConfig
from distill.curate.config import EmbeddingsConfig
from distill.monitor.config import MonitorConfig
from distill.monitor.monitor import monitor, reference_rows
from distill.monitor.signals import (
    compare_categories,
    compare_embeddings,
    compare_numbers,
    judge_signals,
)
from distill.monitor.validity import over_time, proportion
from distill.monitor.window import parse_time, read_window
from distill.tasks.task import load_task

QUICK = MonitorConfig(permutations=99)
TASK = load_task("reconcile")


@pytest.fixture(autouse=True)
def _one_thread():
    """Several threads for matrices as small as these wait for each other."""
    with threadpool_limits(1):
        yield


HELD_OUT = asked(TASK, 200, seed=1)


def found(tmp_path, rows, *, config=QUICK, reference=HELD_OUT, min_valid=None,
          every=timedelta(minutes=7)):  # fmt: skip
    log = write_log(
        tmp_path / "log",
        [log_row(n, row, created_at=START + n * every) for n, row in enumerate(rows)],
    )
    return monitor(
        TASK,
        config,
        reference=reference,
        window=read_window(str(log), adapter="reconcile"),
        embeddings=EmbeddingsConfig(),
        min_valid=min_valid,
    )


def drifted(report):
    return {entry["signal"] for entry in report["drifted"]}


def test_the_same_traffic_again_is_quiet(tmp_path):
    report = found(tmp_path, asked(TASK, 300, seed=2), min_valid=0.98)
    assert report["verdict"] == "none"
    assert report["drifted"] == []
    assert {s["verdict"] for s in report["signals"]} == {"none"}
    names = [signal["name"] for signal in report["signals"]]
    # The reason is free text: it is compared by length and embedding, not by value.
    assert names == [
        "prompt.characters", "completion.characters", "prompt.embedding", "completion.embedding",
        "answer is valid", "answer.classification", "answer.confidence", "answer.standard",
        "answer.action",
    ]  # fmt: skip


def test_longer_prompts_are_drift_of_the_prompts_length(tmp_path):
    rows = asked(TASK, 300, seed=2)
    for row in rows:
        row["messages"][-1]["content"] += " Please check again."
    report = found(tmp_path, rows)
    assert "prompt.characters" in drifted(report)
    assert "answer.classification" not in drifted(report)
    assert report["verdict"] == "major"


def test_another_mix_of_cases_is_drift_of_the_answers_fields_and_of_the_prompts(tmp_path):
    def keep(variables):
        return variables["scenario"] in ("missing", "two_currencies", "material")

    report = found(tmp_path, asked(TASK, 300, seed=2, keep=keep))
    assert {"answer.classification", "answer.action", "prompt.embedding"} <= drifted(report)


def test_a_few_more_escalations_are_found_too(tmp_path):
    """What is answered moves by some 20 points: neither chance nor a disaster."""
    usual = asked(TASK, 400, seed=2)
    more = asked(TASK, 150, seed=3, keep=lambda v: v["scenario"] in ("stale", "two_currencies"))
    report = found(tmp_path, [*usual, *more])
    entry = {e["signal"]: e for e in report["drifted"]}["answer.classification"]
    assert entry["change"] == "moderate"
    assert 0.1 <= entry["psi"] < 0.25


def test_invalid_answers_are_found_with_their_hour_and_held_against_the_gate(tmp_path):
    rows = asked(TASK, 300, seed=2)
    for row in rows[180:240]:
        row["completion"] = "I think it is rounding."
    report = found(tmp_path, rows, min_valid=0.98, every=timedelta(minutes=1))
    assert {"answer is valid", "validity over time", "valid answers below the gate"} <= drifted(
        report
    )
    current = report["validity"]["current"]
    assert (current["num_valid"], current["num_rows"]) == (240, 300)
    assert current["ci95"][0] < 0.8 < current["ci95"][1]
    worse = [p["start"] for p in report["validity"]["periods"] if p["worse"]]
    assert worse == ["2026-05-01T03:00:00+00:00"]


@pytest.mark.parametrize("size", [0, 1, 40, 99])
def test_too_few_rows_give_no_verdict(tmp_path, size):
    rows = asked(TASK, size, seed=2) if size else [{**asked(TASK, 1, seed=2)[0]}]
    for row in rows:
        row["completion"] = "not valid at all"
    if not size:
        rows = [{**row, "messages": []} for row in rows]
    report = found(tmp_path, rows, min_valid=0.98)
    assert report["verdict"] == "not_enough_rows"
    assert report["drifted"] == []
    assert {s["verdict"] for s in report["signals"]} == {"not_enough_rows"}
    assert report["num_compared"] == size


def test_a_small_evaluation_set_gives_no_verdict_either(tmp_path):
    report = found(tmp_path, asked(TASK, 300, seed=2), reference=HELD_OUT[:50])
    assert report["verdict"] == "not_enough_rows"


@pytest.mark.slow
def test_false_alarms_over_seeds_stay_below_the_rate_that_is_asked_for(tmp_path):
    """Thirty times the same traffic; a rate of 0.05 would be 1.5 false alarms."""
    # The scenarios come in fixed proportions, which vary less than traffic does: draws with
    # replacement are independent of each other.
    traffic = asked(TASK, 2000, seed=77)
    alarms = []
    for seed in range(30):
        draw = random.Random(seed)
        report = found(
            tmp_path / str(seed),
            draw.choices(traffic, k=150),
            reference=draw.choices(traffic, k=150),
            min_valid=0.98,
        )
        alarms += [(seed, entry) for entry in report["drifted"]]
    # More than five of thirty would have a probability of 0.3% at a rate of 0.05.
    assert len({seed for seed, _ in alarms}) <= 5, alarms


def test_p_values_of_the_embeddings_are_uniform_without_drift():
    p_values = []
    for seed in range(60):
        vectors = np.random.default_rng(seed).normal(size=(120, 8)).astype(np.float32)
        p_values.append(
            compare_embeddings(
                "x", vectors[:60], vectors[60:], clusters=4, permutations=99, seed=seed
            ).p_value
        )
    # Six of sixty are expected at or below 0.1; 14 or more happen once in 400 times.
    assert sum(p <= 0.1 for p in p_values) < 14
    assert 0.3 < float(np.mean(p_values)) < 0.7


def test_personal_data_in_the_evaluation_set_is_masked_as_the_log_is():
    messages = [{"role": "user", "content": "from ann@example.com"}]
    prompts = [{"example_id": "a", "messages": messages}, {"example_id": "b", "messages": messages}]
    predictions = [
        {"example_id": "a", "completion": "to ann@example.com", "error": ""},
        {"example_id": "b", "completion": "", "error": "out of memory"},
    ]
    (row,) = reference_rows(prompts, predictions)
    assert row["messages"][0]["content"] == "from <EMAIL_1>"
    assert row["completion"] == "to <EMAIL_1>"
    (plain,) = reference_rows(prompts, predictions, masking=MaskingConfig(kinds=()))
    assert plain["completion"] == "to ann@example.com"


def test_the_window_holds_one_adapters_answered_requests_of_its_time(tmp_path):
    rows = asked(TASK, 11, seed=2)
    log = [log_row(n, row) for n, row in enumerate(rows)]
    log[10]["route"] = "shadow"
    log[1]["model_answered"] = log[1]["model_asked"] = "other@v1"
    log[2]["model_answered"] = log[2]["model_asked"] = "reconcile-eu@v1"
    log[3]["status"] = 500
    log[4]["model_answered"] = "reconcile@v2"
    log[5]["refused_completion"], log[5]["completion"] = "what the student said", "the teacher's"
    write_log(tmp_path, log)
    window = read_window(str(tmp_path), adapter="reconcile")
    assert [row["request_id"] for row in window.rows] == ["r0", "r4", "r5", "r6", "r7", "r8", "r9"]
    assert window.left_out == {"shadow": 1, "not_answered": 1}
    assert window.versions == {"reconcile@v1": 6, "reconcile@v2": 1}
    assert window.rows[2]["student"] == "what the student said"
    later = read_window(
        str(tmp_path),
        adapter="reconcile",
        since=START + timedelta(minutes=7 * 6),
        until=START + timedelta(minutes=7 * 8),
    )
    assert [row["request_id"] for row in later.rows] == ["r6", "r7"]
    drawn = read_window(str(tmp_path), adapter="reconcile", max_rows=3)
    assert (len(drawn.rows), drawn.num_rows) == (3, 7)
    assert drawn == read_window(str(tmp_path), adapter="reconcile", max_rows=3)


def test_a_log_from_before_a_column_is_read_with_one_that_has_it(tmp_path):
    rows = [log_row(n, row) for n, row in enumerate(asked(TASK, 2, seed=2))]
    write_log(tmp_path, rows[1:], name="requests-2.parquet")
    old = pq.read_table(tmp_path / "requests-2.parquet").slice(0, 0)
    old = pa.Table.from_pylist(rows[:1], schema=old.schema).drop_columns(
        ["mean_logprob", "quality", "answered_by", "refused_completion", "masked"]
    )
    pq.write_table(old, tmp_path / "requests-1.parquet")
    window = read_window(str(tmp_path), adapter="reconcile")
    assert [row["mean_logprob"] for row in window.rows] == [None, None]


def test_what_is_no_request_log_is_refused(tmp_path):
    pq.write_table(pa.table({"request_id": ["a"]}), tmp_path / "a.parquet")
    with pytest.raises(DataError, match="has no column example_id"):
        read_window(str(tmp_path), adapter="reconcile")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("2026-05-01", START),
        ("2026-05-01T02:00+02:00", START),
        ("24h", START + timedelta(days=9)),
        ("1w", START + timedelta(days=3)),
        (None, None),
    ],
)
def test_times_are_dates_or_so_long_ago(text, expected):
    assert parse_time(text, now=START + timedelta(days=10), option="--since") == expected


def test_a_time_that_is_none_is_refused():
    with pytest.raises(ConfigError, match="--since 'yesterday': give a date"):
        parse_time("yesterday", now=START, option="--since")


def test_psi_agrees_with_its_formula():
    """Siddiqi's index of 60/40 against 40/60: 0.2 · ln(1.5) · 2 = 0.1622."""
    reference, current = ["a"] * 6000 + ["b"] * 4000, ["a"] * 4000 + ["b"] * 6000
    signal = compare_categories("x", reference, current, seed=1)
    assert signal.psi == pytest.approx(0.16219, abs=1e-4)
    assert signal.p_value < 1e-6


def test_a_number_is_binned_at_the_references_quantiles():
    reference = [float(n) for n in range(1000)]
    signal = compare_numbers("x", reference, [n + 500.0 for n in reference], bins=10)
    assert [bin["label"] for bin in signal.bins][:2] == ["≤ 99.9", "> 99.9 and ≤ 199.8"]
    assert [round(bin["reference"], 3) for bin in signal.bins] == [0.1] * 10
    assert signal.statistic == pytest.approx(0.5)


def test_constants_do_not_drift():
    signal = compare_numbers("x", [1.0] * 200, [1.0] * 200, bins=10)
    judge_signals([signal], min_rows=100, alpha=0.05, moderate=0.1, major=0.25)
    assert (signal.psi, signal.p_value, signal.verdict) == (0.0, 1.0, "none")
    signal = compare_categories("x", ["a"] * 200, ["a"] * 200, seed=1)
    assert (signal.psi, signal.p_value) == (0.0, 1.0)


def test_what_is_significant_and_tiny_is_no_drift():
    numbers = np.random.default_rng(1).normal(size=60_000)
    signal = compare_numbers("x", list(numbers[:30_000]), list(numbers[30_000:] + 0.05), bins=10)
    judge_signals([signal], min_rows=100, alpha=0.05, moderate=0.1, major=0.25)
    assert signal.p_adjusted < 0.05
    assert signal.verdict == "none"


def test_a_bad_hour_is_named():
    at = [START + timedelta(minutes=n) for n in range(240)]
    valid = [not (120 <= n < 180 and n % 3 == 0) for n in range(240)]
    report = over_time(at, valid, reference=(198, 200), alpha=0.05)
    assert [period["worse"] for period in report["periods"]] == [False, False, True, False]
    assert report["periods"][2]["start"] == "2026-05-01T02:00:00+00:00"
    days = over_time([at[0], at[0] + timedelta(days=5)], [True, True], reference=(1, 1), alpha=0.05)
    assert days["unit"] == "day"
    assert [period["worse"] for period in days["periods"]] == [None, None]


def test_the_interval_is_wilsons():
    """Newcombe 1998, table I: 81 of 263 has 0.2553 to 0.3662."""
    figures = proportion(81, 263)
    assert figures["ci95"] == pytest.approx([0.2553, 0.3662], abs=5e-5)
