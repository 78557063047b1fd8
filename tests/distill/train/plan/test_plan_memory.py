"""Memory and time of a plan: against what autograd keeps, and against what others published."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from distill.train.config import StudentConfig, TrainConfig
from distill.train.plan.activations import LOGIT_ROWS, activation_bytes, mask_bytes, plain_layer
from distill.train.plan.architecture import Architecture, read_architecture
from distill.train.plan.hardware import Hardware, find_hardware
from distill.train.plan.memory import GIB, predict_memory
from distill.train.plan.plan import make_plan
from distill.train.plan.setting import Setting
from distill.train.plan.workload import (
    Workload,
    known_lengths,
    largest_micro_batch,
    record_tokens,
    steps,
)

LLAMA = "meta-llama/Llama-3.1-8B-Instruct"
CPU = Hardware(
    name="cpu", title="a machine", kind="cpu", memory_gib=16, tflops=0.1, achieved=0.5,
    achieved_source="a test",
)  # fmt: skip


def setting(
    *, student: dict[str, Any] | None = None, hardware: Hardware | None = None, **train: Any
) -> Setting:
    chosen = {"model": LLAMA, "max_length": 1024, **(student or {})}
    return Setting(
        StudentConfig(**chosen),
        TrainConfig(**{"workers": 4, "batch_size": 16, "micro_batch_size": 2, **train}),
        read_architecture(chosen["model"]),
        Workload(1000, 700, 1024, 0.4, "a test"),
        hardware or find_hardware("h100"),
    )


def gib(plan: Setting, name: str) -> float:
    memory = predict_memory(plan)
    return sum(part.bytes for part in memory.device if part.name == name) / GIB


def test_zero_shards_state_then_gradients_then_weights() -> None:
    """Rajbhandari et al. 2020, figure 1: 16 bytes a parameter, of which ever more is shared."""
    full = {"student": {"tuning": "full"}}
    parts = ("weights", "gradients", "optimiser state")
    found = {z: [gib(setting(zero_stage=z, **full), x) for x in parts] for z in (1, 2, 3)}
    weights, gradients, state = (8.03e9 * b / GIB for b in (2, 2, 12))
    assert found[1] == pytest.approx([weights, gradients, state / 4], rel=1e-3)
    assert found[2] == pytest.approx([weights, gradients / 4, state / 4], rel=1e-3)
    assert found[3] == pytest.approx([weights / 4, gradients / 4, state / 4], rel=1e-3)


def test_qlora_keeps_the_linear_layers_in_four_bits_and_the_rest_in_sixteen() -> None:
    rest = 2 * 128256 * 4096 * 2
    expected = (6_979_321_856 * 4.127 / 8 + rest) / GIB
    assert gib(setting(student={"tuning": "qlora"}), "weights") == pytest.approx(expected, rel=1e-3)


def test_offload_moves_state_to_the_host_and_nothing_vanishes() -> None:
    near, far = setting(zero_stage=2), setting(zero_stage=2, offload="optimizer")
    assert gib(far, "optimiser state") == 0
    assert sum(p.bytes for p in predict_memory(far).host) / GIB == gib(near, "optimiser state")
    alone = setting(workers=1, zero_stage=3, offload="all")
    assert gib(alone, "weights") == 0
    assert gib(alone, "gathered weights") == pytest.approx(1e9 * 2 / GIB)


def test_every_method_adds_what_it_needs() -> None:
    kd = setting(method="kd", kd={"teacher": LLAMA})
    assert gib(kd, "teacher") == pytest.approx(8.03e9 * 2 / GIB, rel=1e-3)
    dpo = setting(method="dpo")
    assert gib(dpo, "activations") == pytest.approx(2 * gib(setting(), "activations"))
    assert gib(setting(student={"tuning": "full"}, method="dpo"), "reference") > 14
    # Prompt, answer; reasoning before the answer; the label's and the rationale's tasks beside it.
    answer, label, rationale = (3000, 1000), (3100, 50), (3100, 1950)
    learnt = {"sft": [answer], "cot": [(3000, 3000)], "multitask": [answer, label, rationale]}
    found = {}
    for method, sequences in learnt.items():
        tokens = record_tokens(sequences)
        share = tokens.completion / tokens.total
        work = known_lengths([tokens.total] * 16, completion_share=share, source="a test")
        found[method] = make_plan(replace(setting(method=method), workload=work))
    assert gib(found["cot"].setting, "activations") == pytest.approx(
        1.5 * gib(found["sft"].setting, "activations")
    )
    # The tasks' common prompt is computed once: 3000 + 2 × 100 + 3000.
    assert gib(found["multitask"].setting, "activations") == pytest.approx(
        1.55 * gib(found["sft"].setting, "activations")
    )
    assert found["sft"].speed.hours < found["cot"].speed.hours < found["multitask"].speed.hours
    assert record_tokens(learnt["multitask"]).longest == 5050


@pytest.mark.parametrize(
    ("change", "student"),
    [
        ({"gradient_checkpointing": True}, {}),
        ({"micro_batch_size": 1}, {}),
        ({}, {"tuning": "qlora"}),
        ({"zero_stage": 3}, {}),
    ],
)
def test_each_lever_takes_less_memory(change: dict[str, Any], student: dict[str, Any]) -> None:
    assert predict_memory(setting(student=student, **change)).total < (
        predict_memory(setting()).total
    )


def test_the_micro_batch_of_known_lengths_is_the_widest_that_is_dealt() -> None:
    train = TrainConfig(workers=1, batch_size=4, micro_batch_size=2)
    work = known_lengths([10, 20, 30, 40] * 3, completion_share=0.5, source="a test")
    batch = largest_micro_batch(work, train)
    assert batch.sequences == 2
    assert batch.width == 40
    assert 50 <= batch.tokens <= 80
    assert steps(work, train) == 3


# QwenLM/Qwen's README, "Profiling of Memory and Speed": one A100 80 GB, batch 1 × 8 accumulated,
# gradient checkpointing, flash attention, full logits. (tokens, GB, seconds a step)
MEASURED_BY_OTHERS = {
    ("7B", "lora"): [(256, 20.1, 1.2), (1024, 21.5, 2.8), (2048, 23.8, 5.2), (8192, 36.6, 21.3)],
    ("14B", "lora"): [(256, 34.6, 1.6), (1024, 35.3, 4.4), (2048, 37.4, 8.4), (8192, 55.2, 36.0)],
    ("7B", "qlora"): [(2048, 13.9, 7.0), (8192, 23.5, 22.3)],
    ("14B", "qlora"): [(2048, 19.9, 11.8), (8192, 27.9, 38.3)],
}
SHAPES = {"7B": (32, 4096, 32, 11008), "14B": (40, 5120, 40, 13696)}


@pytest.mark.parametrize(("size", "tuning"), list(MEASURED_BY_OTHERS))
def test_a_gpu_plan_is_within_a_sixth_of_what_others_measured(size: str, tuning: str) -> None:
    """Another trainer with other kernels: memory within 15%, the time of a step within 20%."""
    layers, hidden, heads, inner = SHAPES[size]
    model = Architecture(
        name=f"Qwen-{size}", model_type="qwen", num_layers=layers, hidden_size=hidden,
        num_heads=heads, num_kv_heads=heads, head_dim=128, intermediate_size=inner,
        vocab_size=151936, qkv_bias=True,
    )  # fmt: skip
    for tokens, gb, seconds in MEASURED_BY_OTHERS[(size, tuning)]:
        plan = make_plan(
            Setting(
                StudentConfig(model="Qwen", tuning=tuning, rank=64, max_length=tokens),
                TrainConfig(
                    workers=1,
                    zero_stage=2,
                    batch_size=8,
                    micro_batch_size=1,
                    gradient_checkpointing=True,
                ),
                model,
                Workload(800, tokens, tokens, 1.0, "the README"),
                find_hardware("a100"),
            )
        )
        # Ours holds a chunk of logits at a time, theirs held all: bfloat16, float32, its gradient.
        full_logits = (tokens - min(tokens, LOGIT_ROWS)) * model.vocab_size * 10
        assert (plan.memory.total + full_logits) / GIB == pytest.approx(gb, rel=0.15)
        assert 8 * tokens / plan.speed.tokens_per_s == pytest.approx(seconds, rel=0.20)


def test_twice_the_gpus_take_half_the_time_and_the_same_money() -> None:
    one, two = (make_plan(setting(workers=n, zero_stage=2)).speed for n in (1, 2))
    assert two.hours == pytest.approx(one.hours / 2, rel=0.01)
    assert one.usd is not None
    assert two.usd == pytest.approx(one.usd, rel=0.01)


def test_without_a_price_there_are_no_dollars() -> None:
    assert make_plan(setting(hardware=find_hardware("a10"))).speed.usd is None


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize(
    ("precision", "targets", "recompute"),
    [
        ("fp32", ["q_proj", "up_proj"], False),
        ("bf16", ["q_proj", "down_proj"], False),
        ("fp32", "all-linear", True),
        ("bf16", "all-linear", False),  # the fused step
        ("fp32", "all-linear", False),
    ],
)
def test_activations_are_what_autograd_keeps(
    tiny_model: Path, precision: str, targets: Any, recompute: bool
) -> None:
    import torch

    from distill.train.encode import Encoded, Item
    from distill.train.model import Training, load_student, trunk_of
    from distill.train.objectives import NextToken, shares

    student = StudentConfig(model=str(tiny_model), rank=8, target_modules=targets)
    train = TrainConfig(
        precision=precision, workers=1, batch_size=4, micro_batch_size=4,
        gradient_checkpointing=recompute,
    )  # fmt: skip
    work = known_lengths([96] * 4, completion_share=0.01, source="a test")
    plan = Setting(student, train, read_architecture(str(tiny_model)), work, CPU)
    cpu = torch.device("cpu")
    peft = load_student(student, train, device=cpu)
    trunk, _ = trunk_of(peft, device=cpu, zero_stage=2, max_length=student.max_length)
    module = Training(peft, trunk, NextToken())
    records = [Encoded(str(i), list(range(i, i + 96)), 95) for i in range(0, 400, 100)]
    items = [Item(record.example_id, (record,)) for record in records]
    batch = module.batch(items, pad_token=0, device=cpu)
    own = {p.untyped_storage().data_ptr() for p in module.parameters()}
    kept: dict[int, Any] = {}

    def keep(tensor: Any) -> Any:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            kept[storage.data_ptr()] = storage  # alive, so that no other takes its place
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        module(batch, shares(items, train))
    found = sum(storage.nbytes() for storage in kept.values())
    planned = activation_bytes(plan, largest_micro_batch(work, train))
    if recompute:  # the block that is being recomputed is kept in the backward pass only
        planned -= 4 * 96 * plain_layer(plan)
        # The mask is there, and handed to each block rather than kept by autograd.
        planned -= mask_bytes(plan, largest_micro_batch(work, train))
    # Beside the blocks': the tables of the rotation, the last norm, four rows of logits.
    assert found == pytest.approx(planned, rel=0.05, abs=60_000)


@pytest.mark.slow
def test_as_many_logits_are_planned_as_are_held() -> None:
    from distill.train.head import CHUNK

    assert LOGIT_ROWS == CHUNK
