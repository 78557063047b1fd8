"""Memory of one training worker, part by part, in bytes.

Weights, gradients and optimiser state follow Rajbhandari et al. 2020 (ZeRO), section 3; activations
are counted in `activations.py`. What is sharded, and what DeepSpeed holds beside it, is its
documented configuration. Every constant below has its reason beside it.
"""

from __future__ import annotations

from dataclasses import dataclass

from cluster.heap import heap_environment
from distill.train.plan.activations import activation_bytes, loss_bytes, working_bytes
from distill.train.plan.architecture import NF4_BYTES, Architecture
from distill.train.plan.setting import Setting
from distill.train.plan.workload import MicroBatch, largest_micro_batch

MIB, GIB = 2**20, 2**30
CPU_BASELINE = 690 * MIB
"""A worker process that trains a model of next to no size: Python, Ray, torch, transformers, PEFT
and DeepSpeed as resident memory, seen as 693 MiB with the tests' two-layer model."""
GPU_BASELINE = int(1.0 * GIB)
"""CUDA context, cuBLAS workspaces and NCCL buffers: about half of it is the context. Not measured
here, but with it the plan meets what QwenLM/Qwen's README measured on an A100 (a test does)."""
GPU_USABLE = 0.92
"""Share of a GPU's memory that a plan may fill: PyTorch's caching allocator rounds blocks up and
leaves holes that nothing fits. Our own reserve: what others measured with LoRA on 7B and 14B lies
up to a tenth above a plan (a test has the figures)."""
CPU_USABLE = 0.90
"""Share of a machine's memory that workers may fill: the system, Ray and the driver need some."""
HEAP_JEMALLOC, HEAP_GLIBC_PLAIN, HEAP_GLIBC_FUSED = 1.2, 2.45, 1.47
"""Resident bytes a byte of live tensors on CPU: with jemalloc, seen as 1.04 to 1.34 in nine runs of
one worker and two (1.49 and 1.57 with two threads in the fused step); with glibc in transformers'
step and in the fused one. glibc puts an aligned tensor only into a larger hole than its own size,
so most of what the forward pass frees between two tensors that stay is not used again, and the
workers' environment keeps it from going back to the system (`cluster.heap`, for speed). The live
bytes are exact: what autograd saves was counted."""
BUCKET = 50_000_000
"""Elements of DeepSpeed's reduce bucket, as `deepspeed_settings` sets it."""
LIVE_PARAMETERS = 1_000_000_000
"""Parameters that ZeRO 3 keeps gathered at most (`stage3_max_live_parameters`, the default)."""


@dataclass(frozen=True)
class Part:
    """One reason why memory is needed."""

    name: str
    bytes: float
    note: str = ""


@dataclass(frozen=True)
class Memory:
    """All of one worker's memory."""

    device: list[Part]
    """On the GPU, or in the machine's memory when it trains on CPU."""
    host: list[Part]
    """What offload moves from the GPU to the machine's memory."""
    capacity: float
    """Bytes that the worker may fill on its device."""

    @property
    def total(self) -> float:
        """Bytes on the device at the peak."""
        return sum(part.bytes for part in self.device)

    @property
    def fits(self) -> bool:
        """Whether the peak stays below what may be filled."""
        return self.total <= self.capacity


def predict_memory(setting: Setting) -> Memory:
    """Work out the peak memory of a worker of `setting`."""
    batch = largest_micro_batch(setting.workload, setting.train)
    resident, host = _resident(setting)
    moving = _moving(setting, batch)
    if setting.hardware.kind == "cpu":
        share = _heap_factor(setting) - 1
        moving.append(Part("holes in the heap", share * sum(part.bytes for part in moving)))
    step = _step_bytes(setting)
    beyond = step - sum(part.bytes for part in moving)
    if beyond > 0:  # activations are gone when the optimiser steps
        moving.append(Part("optimiser's step", beyond, "float32 gradients, beyond activations"))
    parts = [part for part in (*resident, *moving) if part.bytes > 0]
    parts += _loading(setting, parts)
    hardware = setting.hardware
    if hardware.kind == "cpu":
        capacity = hardware.memory_gib * GIB * CPU_USABLE / setting.train.workers
    else:
        capacity = hardware.memory_gib * GIB * GPU_USABLE
    return Memory(parts, host, capacity)


def weights_of(model: Architecture, *, tuning: str, weight_bytes: int) -> float:
    """Bytes of all weights of a base model as it is kept for `tuning`."""
    if tuning != "qlora":
        return model.parameters * weight_bytes
    rest = model.parameters - model.quantised_weights
    return model.quantised_weights * NF4_BYTES + rest * weight_bytes


def _resident(setting: Setting) -> tuple[list[Part], list[Part]]:
    """What is there from the first step to the last: on the device, and on the host."""
    train, model, p = setting.train, setting.architecture, setting.weight_bytes
    tuning, n = setting.student.tuning, setting.trained
    shards = train.workers
    gpu = setting.hardware.kind == "gpu"
    base = weights_of(model, tuning=tuning, weight_bytes=p)
    # A quantised weight is no parameter that ZeRO 3 could shard: it stays whole.
    sharded = train.zero_stage == 3 and tuning != "qlora"
    weights = base / shards if sharded else base
    state = optimiser_bytes(setting) / (shards if train.zero_stage >= 1 else 1)
    gradients = n * p / (shards if train.zero_stage >= 2 else 1)
    adapter = 0 if setting.full else n * p / (shards if sharded else 1)
    parts = [
        Part("process", GPU_BASELINE if gpu else CPU_BASELINE, "context and libraries"),
        Part("cast", 0 if gpu else _cast_bytes(setting), "freed after loading, kept by the heap"),
        Part("adapter", adapter, f"{n / 1e6:,.1f}M parameters"),
        Part("gradients", gradients),
        Part("bucket", (BUCKET if gpu else min(n, BUCKET)) * p if train.zero_stage else 0),
    ]
    note = f"{model.parameters / 1e9:.2f}B" + (", NF4" if tuning == "qlora" else "")
    weights_part = Part("weights", weights, note + (f", a share of {shards}" if sharded else ""))
    state_part = Part("optimiser state", state, "AdamW, float32")
    host: list[Part] = []
    away = gpu and sharded and train.offload == "all"
    if away:
        host.append(weights_part)
    else:
        parts.insert(1, weights_part)
    (host if gpu and train.offload != "none" else parts).append(state_part)
    if sharded and (shards > 1 or away):
        block = model.layer_parameters
        live = min(model.parameters, max(LIVE_PARAMETERS, block)) * p
        parts.append(Part("gathered weights", live, "ZeRO 3, at most 1B parameters or one block"))
    return [*parts, *_others(setting)], host


def _cast_bytes(setting: Setting) -> float:
    """The largest tensor as it lay on disk: its copy is a hole until the first step is over."""
    model = setting.architecture
    if model.stored_bytes == setting.weight_bytes:
        return 0.0
    return model.vocab_size * model.hidden_size * model.stored_bytes


def _loading(setting: Setting, parts: list[Part]) -> list[Part]:
    """What loading takes beyond the training's peak: on CPU the file is mapped while it is cast."""
    model, p = setting.architecture, setting.weight_bytes
    if setting.hardware.kind != "cpu" or model.stored_bytes == p:
        return []
    peak = CPU_BASELINE + model.parameters * (p + model.stored_bytes)
    beyond = peak - sum(part.bytes for part in parts)
    return [Part("loading", beyond, "the file beside its cast")] if beyond > 0 else []


def optimiser_bytes(setting: Setting) -> float:
    """AdamW's state of all workers: two moments, and a float32 copy where DeepSpeed keeps one.

    ZeRO 1 to 3 keep a flat float32 copy of what they step, whatever the precision; without ZeRO a
    float32 model is stepped in place and a bfloat16 one also accumulates its gradients in float32.
    """
    if setting.train.zero_stage == 0:
        return setting.trained * (8 if setting.weight_bytes == 4 else 16)
    return setting.trained * 12


def _others(setting: Setting) -> list[Part]:
    """Further models on the same device."""
    train, p = setting.train, setting.weight_bytes
    found = []
    if setting.teacher is not None:
        name = f"{setting.teacher.parameters / 1e9:.2f}B"
        found.append(Part("teacher", setting.teacher.parameters * p, name))
    if train.method == "dpo" and setting.full:
        untouched = setting.architecture.parameters * p
        found.append(Part("reference", untouched, "the untouched student"))
    return found


def _moving(setting: Setting, batch: MicroBatch) -> list[Part]:
    """What a micro-batch needs at the height of its backward pass."""
    note = f"{batch.sequences} × {batch.width:,} tokens"
    return [
        Part("activations", activation_bytes(setting, batch), note),
        Part("backward", working_bytes(setting, batch), "of one block"),
        Part("logits", loss_bytes(setting, batch), f"{batch.completion_rows:,} rows with loss"),
    ]


def _heap_factor(setting: Setting) -> float:
    # In the driver's process the heap is whatever that process began with.
    if "LD_PRELOAD" in heap_environment() and not setting.train.in_process:
        return HEAP_JEMALLOC
    return HEAP_GLIBC_FUSED if setting.fused else HEAP_GLIBC_PLAIN


def _step_bytes(setting: Setting) -> float:
    """The float32 gradients that a ZeRO step makes of its share."""
    shards = setting.train.workers if setting.train.zero_stage >= 1 else 1
    on_device = setting.train.offload == "none" or setting.hardware.kind == "cpu"
    return setting.trained * 4 / shards if setting.train.zero_stage and on_device else 0
