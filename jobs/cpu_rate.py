"""How fast this machine trains a block of a model's own shape, measured when a plan is made.

A host's speed changes by the minute and from product to product, so no stored figure would hold. A
model of one block and one of several, random weights in the student's widths, take real training
steps on micro-batches like the run's; their difference is those blocks' time. No weight is read.

`python -m jobs.cpu_rate` does it in a process of its own, with a training worker's environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any

from cluster.errors import StageError
from distill.train.config import StudentConfig, TrainConfig
from distill.train.plan.architecture import Architecture
from distill.train.plan.hardware import Hardware
from distill.train.plan.setting import Setting
from distill.train.plan.speed import operations
from distill.train.plan.workload import MicroBatch, mean_micro_batch

SECONDS = 8.0
"""How long steps are taken; a person waits for it."""
STEP_SHARE = 1.0
"""Share of the micro-batches' speed that a worker reaches with DeepSpeed, Ray and the optimiser."""
BEYOND_CACHE = 256 << 20
"""Bytes of weights that no processor's last-level cache keeps for one process."""
LEAST_ROUNDS = 3
SOURCE = "blocks of this student, trained on this machine a moment ago"


@dataclass(frozen=True)
class StepTime:
    """Seconds of one micro-batch, forward and backward, through all blocks."""

    mean: float
    """Over all rounds, with whatever else the machine did."""
    best: float
    """Of the fastest rounds: what the machine does undisturbed."""


def with_measured_rate(setting: Setting) -> Setting:
    """Return the setting with the speed that this machine has now."""
    return replace(setting, hardware=with_time(setting, measure(setting).mean))


def with_time(setting: Setting, seconds: float) -> Hardware:
    """Return the CPU as one that takes `seconds` for the setting's usual micro-batch of LoRA."""
    batch = mean_micro_batch(setting.workload, setting.train)
    timed = setting
    if setting.full:  # what was timed trains adapters; every weight's gradient comes on top
        lora = setting.student.model_copy(update={"tuning": "lora"})
        timed = replace(setting, student=lora)
    rate = operations(timed, batch) / seconds / 1e12
    update = {"tflops": rate, "achieved": STEP_SHARE, "achieved_source": SOURCE}
    return setting.hardware.model_copy(update=update)


def measure(setting: Setting, *, seconds: float = SECONDS) -> StepTime:
    """Train blocks like the student's in another process; StageError if that fails."""
    # The settings of malloc change the speed, so they must be a worker's own.
    from distill.train.fit import worker_environment

    told = {
        "student": setting.student.model_dump(),
        "train": setting.train.model_dump(),
        "architecture": setting.architecture.model_dump(),
        "batch": asdict(mean_micro_batch(setting.workload, setting.train)),
        "seconds": seconds,
    }
    done = subprocess.run(
        [sys.executable, "-m", "jobs.cpu_rate"],
        input=json.dumps(told),
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, **worker_environment(setting.train, None)},
    )
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise StageError(
            f"this machine's speed could not be measured: {last}. Plan for a GPU with --hardware, "
            "or give the speed with --tflops"
        )
    return StepTime(**json.loads(done.stdout.splitlines()[-1]))


def time_step(
    student: StudentConfig,
    train: TrainConfig,
    *,
    model: Architecture,
    batch: MicroBatch,
    seconds: float = SECONDS,
) -> StepTime:
    """Time one and several blocks by turns for `seconds`, and scale to all of them."""
    import torch

    torch.set_num_threads(train.threads_per_worker)
    counts = (1, num_blocks(model))
    steps = {n: _step(student, train, model=model, batch=batch, blocks=n) for n in counts}
    times: dict[int, list[float]] = {n: [] for n in counts}
    for step in steps.values():  # kernels are built on first use
        step()
    start = time.perf_counter()
    while time.perf_counter() - start < seconds or len(times[counts[-1]]) < LEAST_ROUNDS:
        for blocks, step in steps.items():
            before = time.perf_counter()
            step()
            times[blocks].append(time.perf_counter() - before)

    def all_blocks(one: float, several: float) -> float:
        block = max(0.0, several - one) / (counts[-1] - 1) if counts[-1] > 1 else 0.0
        return one + block * (model.num_layers - 1)

    means = [sum(times[n]) / len(times[n]) for n in counts]
    return StepTime(all_blocks(*means), all_blocks(*(min(times[n]) for n in counts)))


def num_blocks(model: Architecture) -> int:
    """Return how many blocks are timed beside one: as many as no cache holds, or all there are.

    Two small blocks stay in the processor's cache from step to step, where a whole model's do not:
    planned by two of its blocks, SmolLM2 was twice as fast as it trains (docs/log.md).
    """
    return min(
        model.num_layers, max(2, BEYOND_CACHE // (model.layer_parameters * model.stored_bytes))
    )


def _step(
    student: StudentConfig,
    train: TrainConfig,
    *,
    model: Architecture,
    batch: MicroBatch,
    blocks: int,
) -> Callable[[], None]:
    """Return forward and backward of a random student with few blocks.

    With adapters whatever the tuning: full tuning and NF4 are timed as LoRA, though NF4 reaches
    only about 0.8 of bfloat16's speed on CPU.
    """
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from distill.train.encode import Encoded, Item
    from distill.train.model import Training, make_trainable, trunk_of, with_adapter
    from distill.train.objectives import NextToken, shares

    config = AutoConfig.for_model(model.model_type, **_fields(model, blocks))
    dtype = torch.bfloat16 if train.for_hardware(None).in_bf16 else torch.float32
    base = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    make_trainable(base, train)
    peft = with_adapter(base, student, train)
    cpu = torch.device("cpu")
    trunk, _ = trunk_of(
        peft, device=cpu, zero_stage=train.zero_stage, max_length=student.max_length
    )
    module = Training(peft, trunk, NextToken())
    width = max(2, batch.tokens // batch.sequences)
    prompt = min(width - 1, max(1, width - batch.completion_rows // batch.sequences))
    # Tokens differ from the first on: nothing is shared between the records.
    records = [
        Encoded(str(i), [(7 * i + 3 * k) % model.vocab_size for k in range(width)], prompt)
        for i in range(batch.sequences)
    ]
    items = [Item(record.example_id, (record,)) for record in records]
    made = module.batch(items, pad_token=0, device=cpu)
    of = shares(items, TrainConfig())

    def step() -> None:
        module(made, of).backward()
        module.zero_grad(set_to_none=True)

    return step


def _fields(model: Architecture, blocks: int) -> dict[str, Any]:
    """Return what `config.json` would hold of the architecture."""
    found: dict[str, Any] = {
        "num_hidden_layers": blocks,
        "hidden_size": model.hidden_size,
        "num_attention_heads": model.num_heads,
        "num_key_value_heads": model.num_kv_heads,
        "head_dim": model.head_dim,
        "intermediate_size": model.intermediate_size,
        "vocab_size": model.vocab_size,
        "tie_word_embeddings": model.tied_embeddings,
        "max_position_embeddings": model.context or 2048,
    }
    if model.num_experts:
        found["moe_intermediate_size"] = model.intermediate_size
        found["num_experts"] = model.num_experts
        found["num_experts_per_tok"] = model.experts_per_token
    return found


def main() -> None:
    """Read what to measure from standard input and print the times as JSON."""
    told = json.load(sys.stdin)
    found = time_step(
        StudentConfig.model_validate(told["student"]),
        TrainConfig.model_validate(told["train"]),
        model=Architecture.model_validate(told["architecture"]),
        batch=MicroBatch(**told["batch"]),
        seconds=told["seconds"],
    )
    print(json.dumps(asdict(found)))


if __name__ == "__main__":
    main()
