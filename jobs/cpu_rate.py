"""How fast this machine trains blocks of a model's own shape, measured when a plan is made.

A host's speed changes by the minute and from product to product, so no stored figure would hold. A
model of one block and one of several, random weights in the student's widths, take real training
steps with DeepSpeed on a micro-batch like the run's; their difference is those blocks' time. As
many workers as the run has here step side by side: they share the machine's memory and caches. No
weight is read.

`python -m jobs.cpu_rate` is one such worker, with a training worker's environment.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.errors import StageError
from distill.train.config import StudentConfig, TrainConfig
from distill.train.plan.architecture import Architecture
from distill.train.plan.hardware import Hardware
from distill.train.plan.setting import Setting
from distill.train.plan.speed import operations
from distill.train.plan.workload import (
    MicroBatch,
    micro_batch_of,
    micro_batches_per_step,
    typical_lengths,
)

SECONDS = 8.0
"""How long steps are taken; a person waits for it."""
BEYOND_CACHE = 256 << 20
"""Bytes of weights that no processor's last-level cache keeps for one process."""
RAY_CORES = 0.25
"""Cores that Ray's own processes take while workers train, counted on two cores (docs/log.md)."""
LEAST_ROUNDS = 3
SOURCE = "blocks of this student, trained on this machine a moment ago"


@dataclass(frozen=True)
class StepTime:
    """Seconds of one micro-batch through all blocks, with its part of the optimiser's step."""

    mean: float
    """Over all rounds, with whatever else the machine did."""
    best: float
    """Of the fastest rounds: what the machine does undisturbed."""


def with_measured_rate(setting: Setting) -> Setting:
    """Return the setting with the speed that this machine has now."""
    return replace(setting, hardware=with_time(setting, measure(setting).mean))


def with_time(setting: Setting, seconds: float) -> Hardware:
    """Return the CPU as one that takes `seconds` for the setting's typical micro-batch of LoRA."""
    # What was timed trains adapters on one sequence a record: every weight's gradient, a second
    # sequence and what a teacher or a reference computes come on top.
    student, train = setting.student, setting.train.model_copy(update={"method": "sft"})
    if setting.full:
        student = student.model_copy(update={"tuning": "lora"})
    timed = replace(setting, student=student, train=train)
    rate = operations(timed, _typical(setting)) / seconds / 1e12
    update = {"tflops": rate, "achieved": share_left(train), "achieved_source": SOURCE}
    return setting.hardware.model_copy(update=update)


def share_left(train: TrainConfig) -> float:
    """Share of the measured speed that is left to workers beside Ray's own processes."""
    busy = workers_here(train) * train.threads_per_worker
    return 1.0 if train.in_process else min(1.0, (_cores() - RAY_CORES) / busy)


def _typical(setting: Setting) -> MicroBatch:
    lengths = typical_lengths(setting.workload, setting.train)
    return micro_batch_of(lengths, completion_share=setting.workload.completion_share)


def workers_here(train: TrainConfig) -> int:
    """Return how many of the run's workers this machine has cores for, at least one."""
    return max(1, min(train.workers, _cores() // train.threads_per_worker))


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def measure(setting: Setting, *, seconds: float = SECONDS) -> StepTime:
    """Train blocks like the student's in processes of their own; StageError if that fails."""
    # The settings of malloc change the speed, so they must be a worker's own.
    from distill.train.fit import worker_environment

    count = workers_here(setting.train)
    with tempfile.TemporaryDirectory(prefix="distillery-rate-") as name:
        folder = Path(name)
        told = {
            "student": setting.student.model_dump(),
            "train": setting.train.model_dump(),
            "architecture": setting.architecture.model_dump(),
            "lengths": typical_lengths(setting.workload, setting.train),
            "completion_share": setting.workload.completion_share,
            "micro_batches": micro_batches_per_step(setting.workload, setting.train),
            "seconds": seconds,
            "meeting": str(folder / "meeting"),
        }
        processes = []
        for rank in range(count):
            place = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count)}
            told_here = folder / f"told-{rank}"
            told_here.write_text(json.dumps(told))
            with (
                told_here.open() as stdin,
                (folder / f"out-{rank}").open("w") as out,
                (folder / f"err-{rank}").open("w") as err,
            ):
                processes.append(
                    subprocess.Popen(
                        [sys.executable, "-m", "jobs.cpu_rate"],
                        stdin=stdin,
                        stdout=out,
                        stderr=err,
                        env={**os.environ, **worker_environment(setting.train, None), **place},
                    )
                )
        try:
            failed = _wait(processes)
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if failed is not None:
            last = (folder / f"err-{failed}").read_text().strip().splitlines() or ["no message"]
            raise StageError(
                f"this machine's speed could not be measured: {_reason(last)}. Plan for a GPU with "
                "--hardware, or give the speed with --tflops"
            )
        return StepTime(**json.loads((folder / "out-0").read_text().splitlines()[-1]))


def _wait(processes: list[subprocess.Popen[bytes]]) -> int | None:
    """Wait for all to end well, or for the first that does not; return its number then."""
    while True:
        codes = [process.poll() for process in processes]
        for number, code in enumerate(codes):
            if code not in (None, 0):
                return number
        if None not in codes:
            return None
        time.sleep(0.05)


def _reason(lines: list[str]) -> str:
    """Return the error's line: torch may say more after it, of a group that was not left."""
    errors = [line for line in lines if "Error: " in line and not line.startswith("[W")]
    return (errors or lines)[-1]


def time_step(
    student: StudentConfig,
    train: TrainConfig,
    *,
    model: Architecture,
    lengths: tuple[int, ...],
    completion_share: float,
    micro_batches: float,
    seconds: float = SECONDS,
) -> StepTime:
    """Time one and several blocks by turns for `seconds`, and scale to all of them.

    The optimiser's step is shared out among the `micro_batches` that a run takes it for. All
    workers of the process group call it together, and each gets its own figures.
    """
    import torch

    torch.set_num_threads(train.threads_per_worker)
    counts = (1, num_blocks(model))
    steps = {
        n: _step(student, train, model=model, lengths=lengths, share=completion_share, blocks=n)
        for n in counts
    }
    times: dict[int, list[tuple[float, float]]] = {n: [] for n in counts}
    for step in steps.values():  # kernels are built on first use
        step()
    start = time.perf_counter()
    while _one_more(start + seconds, rounds=len(times[counts[-1]])):
        for blocks, step in steps.items():
            times[blocks].append(step())

    def all_blocks(of: Callable[[list[float]], float]) -> float:
        one, several = (
            of([micro for micro, _ in times[n]])
            + of([step for _, step in times[n]]) / micro_batches
            for n in counts
        )
        block = max(0.0, several - one) / (counts[-1] - 1) if counts[-1] > 1 else 0.0
        return one + block * (model.num_layers - 1)

    return StepTime(all_blocks(lambda found: sum(found) / len(found)), all_blocks(min))


def _one_more(end: float, *, rounds: int) -> bool:
    """Whether to take another round; the first worker decides for all, whose clocks differ."""
    import torch
    import torch.distributed as dist

    go_on = torch.tensor(int(rounds < LEAST_ROUNDS or time.perf_counter() < end))
    dist.broadcast(go_on, src=0)
    return bool(go_on)


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
    lengths: tuple[int, ...],
    share: float,
    blocks: int,
) -> Callable[[], tuple[float, float]]:
    """Return a training step of a random student with few blocks, as `distill.train.loop` takes it.

    It returns the seconds of forward and backward pass, and of the optimiser's step. With adapters
    whatever the tuning: full tuning and NF4 are timed as LoRA, though NF4 reaches only about 0.8 of
    bfloat16's speed on CPU.
    """
    import deepspeed
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    from distill.train.deepspeed_settings import deepspeed_settings
    from distill.train.encode import Encoded, Item
    from distill.train.model import Training, make_trainable, trunk_of, with_adapter
    from distill.train.objectives import NextToken, shares
    from distill.train.setup import parameter_groups

    precise = train.for_hardware(None)
    config = AutoConfig.for_model(model.model_type, **_fields(model, blocks))
    dtype = torch.bfloat16 if precise.in_bf16 else torch.float32
    base = AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    make_trainable(base, train)
    peft = with_adapter(base, student, train)
    cpu = torch.device("cpu")
    trunk, _ = trunk_of(
        peft, device=cpu, zero_stage=train.zero_stage, max_length=student.max_length
    )
    module = Training(peft, trunk, NextToken())
    groups, _ = parameter_groups(module, precise)
    engine, *_ = deepspeed.initialize(
        model=module, model_parameters=groups, config=deepspeed_settings(precise)
    )

    def record(i: int, length: int) -> Encoded:
        length = max(2, length)
        prompt = min(length - 1, max(1, length - round(length * share)))
        # Tokens differ from the first on: nothing is shared between the records.
        return Encoded(str(i), [(7 * i + 3 * k) % model.vocab_size for k in range(length)], prompt)

    items = [Item(str(i), (record(i, length),)) for i, length in enumerate(lengths)]
    made = module.batch(items, pad_token=0, device=cpu)
    of = shares(items, TrainConfig())

    def step() -> tuple[float, float]:
        start = time.perf_counter()
        engine.set_gradient_accumulation_boundary(True)
        engine.backward(engine(made, of), scale_wrt_gas=False)
        passed = time.perf_counter()
        engine.step()
        return passed - start, time.perf_counter() - passed

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
    import deepspeed
    import torch.distributed as dist

    from distill.train.deepspeed_settings import skip_shared_memory_build

    told = json.load(sys.stdin)
    rank, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = dist.FileStore(told["meeting"], count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
    skip_shared_memory_build()
    deepspeed.init_distributed(dist_backend="gloo", verbose=False)
    found = time_step(
        StudentConfig.model_validate(told["student"]),
        TrainConfig.model_validate(told["train"]),
        model=Architecture.model_validate(told["architecture"]),
        lengths=tuple(told["lengths"]),
        completion_share=told["completion_share"],
        micro_batches=told["micro_batches"],
        seconds=told["seconds"],
    )
    print(json.dumps({"mean": found.mean, "best": found.best}))


if __name__ == "__main__":
    main()
