"""The speed of a plan on CPU comes from training blocks like the student's there and then."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import StageError
from distill.train.config import StudentConfig, TrainConfig
from distill.train.plan.architecture import read_architecture
from distill.train.plan.hardware import Hardware
from distill.train.plan.plan import make_plan
from distill.train.plan.setting import Setting
from distill.train.plan.workload import known_lengths
from jobs.cpu_rate import measure, num_blocks, with_time

CPU = Hardware(
    name="cpu", title="a machine", kind="cpu", memory_gib=16, tflops=0.1, achieved=1.0,
    achieved_source="a test",
)  # fmt: skip


def setting(model: Path | str, *, tokens: int, targets: list[str] | None = None) -> Setting:
    student = StudentConfig(model=str(model), rank=8, target_modules=targets or "all-linear")
    train = TrainConfig(workers=1, batch_size=8, micro_batch_size=8, precision="fp32")
    work = known_lengths([tokens] * 64, completion_share=0.5, source="a test")
    return Setting(student, train, read_architecture(str(model)), work, CPU)


def test_the_plan_takes_exactly_the_time_that_was_measured() -> None:
    plain = setting("HuggingFaceTB/SmolLM2-135M-Instruct", tokens=100)
    told = Setting(
        plain.student, plain.train, plain.architecture, plain.workload, with_time(plain, 4.0)
    )
    assert make_plan(told).speed.tokens_per_s == pytest.approx(8 * 100 / 4.0)


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
