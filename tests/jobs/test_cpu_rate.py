"""The speed of a plan on CPU comes from training blocks like the student's there and then."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from cluster.errors import StageError
from distill.train.config import StudentConfig, TrainConfig
from distill.train.plan.architecture import read_architecture
from distill.train.plan.hardware import Hardware
from distill.train.plan.plan import make_plan
from distill.train.plan.setting import Setting
from distill.train.plan.workload import known_lengths
from jobs.cpu_rate import RAY_CORES, measure, num_blocks, share_left, with_time, workers_here

CPU = Hardware(
    name="cpu", title="a machine", kind="cpu", memory_gib=16, tflops=0.1, achieved=1.0,
    achieved_source="a test",
)  # fmt: skip


def setting(model: Path | str, *, tokens: int, targets: list[str] | None = None) -> Setting:
    student = StudentConfig(model=str(model), rank=8, target_modules=targets or "all-linear")
    train = TrainConfig(workers=1, batch_size=8, micro_batch_size=8, precision="fp32")
    work = known_lengths([tokens] * 64, completion_share=0.5, source="a test")
    return Setting(student, train, read_architecture(str(model)), work, CPU)


@pytest.fixture
def eight_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(8)))


@pytest.mark.usefixtures("eight_cores")
def test_the_plan_takes_exactly_the_time_that_was_measured() -> None:
    plain = setting("HuggingFaceTB/SmolLM2-135M-Instruct", tokens=100)
    told = Setting(
        plain.student, plain.train, plain.architecture, plain.workload, with_time(plain, 4.0)
    )
    assert make_plan(told).speed.tokens_per_s == pytest.approx(8 * 100 / 4.0)


def test_a_method_that_computes_more_than_was_timed_is_planned_slower() -> None:
    plain = setting("HuggingFaceTB/SmolLM2-135M-Instruct", tokens=100)
    dpo = replace(plain, train=plain.train.model_copy(update={"method": "dpo"}))
    speeds = [
        make_plan(replace(one, hardware=with_time(one, 4.0))).speed.tokens_per_s
        for one in (plain, dpo)
    ]
    # Two answers a record, forward and backward; the reference reads both once more.
    assert speeds[0] / speeds[1] == pytest.approx(3, rel=0.1)


@pytest.mark.usefixtures("eight_cores")
def test_ray_takes_its_part_only_where_the_workers_leave_it_no_core() -> None:
    half, all_, here = (
        TrainConfig(workers=1, threads_per_worker=n, batch_size=8, in_process=inside)
        for n, inside in ((4, False), (8, False), (8, True))
    )
    assert share_left(half) == 1
    assert share_left(all_) == pytest.approx((8 - RAY_CORES) / 8)
    assert share_left(here) == 1


@pytest.mark.parametrize(
    ("workers", "threads", "here"), [(1, 2, 1), (2, 1, 2), (64, 1, 2), (8, 4, 1)]
)
def test_as_many_workers_are_timed_side_by_side_as_there_are_cores_for(
    monkeypatch: pytest.MonkeyPatch, workers: int, threads: int, here: int
) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    train = TrainConfig(workers=workers, threads_per_worker=threads, batch_size=64)
    assert workers_here(train) == here


def test_a_small_model_is_timed_whole_and_a_large_one_by_two_blocks() -> None:
    small, large = (
        read_architecture(name)
        for name in ("HuggingFaceTB/SmolLM2-135M-Instruct", "meta-llama/Llama-3.1-8B-Instruct")
    )
    assert num_blocks(small) == small.num_layers == 30
    assert num_blocks(large) == 2


@pytest.mark.model
@pytest.mark.slow
def test_longer_records_take_longer(tiny_model: Path) -> None:
    short, long = (measure(setting(tiny_model, tokens=n), seconds=1) for n in (32, 512))
    assert 0 < short.best <= short.mean
    assert long.best > 2 * short.best  # sixteen times the tokens, and a fixed part


@pytest.mark.model
@pytest.mark.slow
def test_two_workers_step_together(tiny_model: Path) -> None:
    alone = setting(tiny_model, tokens=64)
    train = alone.train.model_copy(update={"workers": 2, "batch_size": 16})
    found = measure(replace(alone, train=train), seconds=1)
    assert 0 < found.best <= found.mean


@pytest.mark.model
@pytest.mark.slow
def test_what_cannot_be_measured_is_one_sentence(tiny_model: Path) -> None:
    broken = setting(tiny_model, tokens=32, targets=["q_proj"])
    broken = Setting(
        broken.student.model_copy(update={"target_modules": ["no_such_layer"]}),
        broken.train,
        broken.architecture,
        broken.workload,
        CPU,
    )
    with pytest.raises(StageError, match=r"could not be measured: .*no_such_layer"):
        measure(broken, seconds=1)
