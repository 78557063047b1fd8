"""What every training worker runs, top to bottom: set up, resume, train, evaluate, save.

The step is the only state besides weights and optimiser: shuffle, rate and random numbers are
functions of it, and the data that Ray Train hands out begin with it, so a run that resumes
continues with the very next batch.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from cluster.heap import leaves_holes, return_free_memory
from distill.train.batches import deal
from distill.train.checkpoint import Position, load_state
from distill.train.config import StudentConfig, TrainConfig
from distill.train.curves import append_row, keep_rows
from distill.train.deepspeed_settings import (
    DEEPSPEED,
    deepspeed_settings,
    skip_shared_memory_build,
)
from distill.train.encode import Item
from distill.train.feed import TRAINING, Steps, num_steps
from distill.train.follow import CURVES, read_rows
from distill.train.sampler import OnPolicyItems
from distill.train.saving import Saver, lacking_room

STARTS = "starts.jsonl"
TRIM_EVERY = 10
"""Steps between two returns of free memory to the system, where the heap grows for its holes."""


@dataclass
class WorkerConfig:
    """What a worker is told; the training records come through Ray Train."""

    student: dict[str, Any]
    train: dict[str, Any]
    run_folder: str
    summary: dict[str, Any]
    """What `prepare` found out: the padding token, how many items there are, the vocabulary in
    common with the teacher."""
    validation: list[Any] = field(default_factory=list)
    """One object reference to the validation items."""
    sampler: Any = None
    """Actor that samples the student's own answers, for `on_policy`."""
    findings: list[dict[str, Any]] = field(default_factory=list)
    """Rows of `findings.jsonl` that are known before the first step."""


def run_worker(config: dict[str, Any]) -> dict[str, Any]:
    """Train one student; returns the final `Position` as a dictionary, and what stopped the run."""
    with ExitStack() as stack:
        return _run(config, stack)


def _run(config: dict[str, Any], stack: ExitStack) -> dict[str, Any]:
    import deepspeed
    import ray
    import ray.train
    import torch
    import torch.distributed as dist

    from distill.train.model import save_student
    from distill.train.objectives import shares, shares_of, tokens_with_loss
    from distill.train.observe import Observer, peak_memory_mib
    from distill.train.setup import build_training, parameter_groups

    told = WorkerConfig(**config)
    student_config = StudentConfig.model_validate(told.student)
    train = TrainConfig.model_validate(told.train)
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    folder = Path(told.run_folder)
    checkpoints = folder / "checkpoints"
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(train.threads_per_worker)
        skip_shared_memory_build()

    # Set up
    deepspeed.init_distributed(
        dist_backend="nccl" if device.type == "cuda" else "gloo", verbose=False
    )
    short = lacking_room(checkpoints)
    if short is not None:
        return {**asdict(Position()), "stopped": "disk_full", **short}
    # Ray Data fills the first batches while the model is loaded.
    shard = ray.train.get_dataset_shard(TRAINING)
    steps = stack.enter_context(closing(Steps(shard, worker=rank)))
    module, plain_because = build_training(
        student_config, train, summary=told.summary, device=device
    )
    student = module.model
    if rank == 0:
        start = {"started_at": time.time(), "pid": os.getpid(), "plain_because": plain_because}
        append_row(checkpoints / STARTS, start)
    groups, factors = parameter_groups(module, train)
    settings = deepspeed_settings(train)
    if rank == 0:
        (folder / DEEPSPEED).write_text(json.dumps(settings, indent=2) + "\n")
    engine, optimizer, _, _ = deepspeed.initialize(
        model=module, model_parameters=groups, config=settings
    )
    pad_token = told.summary["pad_token"]
    steps_per_epoch, total_steps = num_steps(told.summary["num_train"], train)
    validation: list[Item] = ray.get(told.validation[0])
    saver = Saver(engine, student, train=train, checkpoints=checkpoints)

    def batches(items: Mapping[int, Item], parts: list[list[int]]) -> list[Any]:
        return [
            module.batch([items[i] for i in part], pad_token=pad_token, device=device)
            for part in parts
        ]

    on_policy = OnPolicyItems(told.sampler, student=student_config, train=train, folder=folder)
    sampled: Mapping[int, Item] = {}

    def evaluate() -> float:
        """Loss over all validation items, the same on every worker."""
        sizes = [item.num_tokens for item in validation]
        mine = deal(range(len(validation)), sizes, workers, train.micro_batch_size)[rank]
        of = shares(validation, train)
        total = torch.zeros((), dtype=torch.float64, device=device)
        engine.eval()
        with torch.no_grad():
            for batch in batches(dict(enumerate(validation)), mine):
                total += engine(batch, of).double()
        engine.train()
        dist.all_reduce(total)
        return float(total)

    # Resume
    position = Position()
    last = ray.train.get_checkpoint()
    if last is not None:
        with last.as_directory() as local:
            position = load_state(engine, Path(local), workers=workers)
    position.workers = workers
    observer: Observer | None = None
    if rank == 0:
        keep_rows(folder / CURVES, up_to_step=position.step)
        done = read_rows(folder / CURVES)
        observer = Observer(folder, rows=done, patience=train.patience, known=told.findings)
    if position.step == 0:
        position.base_loss = position.last_loss = evaluate()
        if observer is not None:
            row = {"step": 0, "epoch": 0.0, "total_steps": total_steps}
            row["validation_loss"] = position.base_loss
            append_row(folder / CURVES, row)
            observer.see(row)

    # Train
    holes = device.type == "cpu" and leaves_holes()
    if device.type == "cpu":
        return_free_memory()  # what loading took
    while position.step < total_steps and not position.stopped:
        started = time.perf_counter()
        mine = steps.take(position.step)
        items: Mapping[int, Item] = mine.items
        waited = time.perf_counter() - started
        if train.method == "on_policy":
            epoch, place = divmod(position.step, steps_per_epoch)
            window = place - place % train.on_policy.sample_every
            if place == window or not sampled:
                left = min(window + train.on_policy.sample_every, steps_per_epoch) - place
                sampled = on_policy.window(
                    [mine, *steps.peek(left - 1, first=position.step + 1)],
                    first_step=epoch * steps_per_epoch + window,
                    save=lambda to: save_student(student, to, zero_stage=train.zero_stage),
                )
            items = {i: sampled[i] for i in items}
        rate = learning_rate(position.step, total_steps=total_steps, train=train)
        for group, factor in zip(optimizer.param_groups, factors, strict=True):
            group["lr"] = rate * factor
        torch.manual_seed(_step_seed(train.seed, position.step, rank))
        counts = _over_workers(list(items.values()), device=device)
        of = shares_of(counts, num_items=counts["items"], train=train)
        num_tokens = counts["tokens"]

        loss_sum = torch.zeros((), dtype=torch.float64, device=device)
        broken: list[str] = []
        packed = batches(items, mine.micro_batches)
        for k, batch in enumerate(packed):
            engine.set_gradient_accumulation_boundary(k == len(packed) - 1)
            loss = engine(batch, of)
            loss_sum += loss.detach().double()
            if not torch.isfinite(loss.detach()):
                broken += batch.example_ids
            # DeepSpeed averages gradients over workers: times `workers` makes it a sum.
            engine.backward(loss * workers, scale_wrt_gas=False)
        dist.all_reduce(loss_sum)
        if not bool(torch.isfinite(loss_sum)):
            broken = _everyones(broken)
        grad_norm = 0.0
        if not broken:
            engine.step()
            grad_norm = float(engine.get_global_grad_norm() or 0.0)
            if not 0 <= grad_norm < math.inf:  # ZeRO gives -1 for one that is not finite
                broken = _everyones([item.example_id for item in items.values()])
        if broken:
            if observer is not None:
                observer.not_finite(position.step + 1, broken)
            return {**asdict(position), "stopped": "not_finite", "example_ids": broken}
        if holes and (position.step + 1) % TRIM_EVERY == 0:
            return_free_memory()

        position.step += 1
        position.tokens += num_tokens
        seconds = time.perf_counter() - started
        position.seconds += seconds
        row = {
            "step": position.step,
            "epoch": round(position.step / steps_per_epoch, 4),
            "total_steps": total_steps,
            "loss": float(loss_sum),
            "loss_tokens": tokens_with_loss(counts, of),
            "learning_rate": rate,
            "grad_norm": grad_norm,
            "tokens": position.tokens,
            "tokens_per_s": round(num_tokens / seconds, 1),
            "eta_s": round((total_steps - position.step) * position.seconds / position.step, 1),
            "data_s": round(waited, 3),
            "memory_mib": peak_memory_mib(device),
        }
        last_step = position.step == total_steps
        if last_step or position.step % train.eval_every == 0:
            started = time.perf_counter()
            position.last_loss = evaluate()
            row["validation_loss"] = position.last_loss
            if position.last_loss < position.best_loss:
                position.best_loss, position.looks_without_gain = position.last_loss, 0
            else:
                position.looks_without_gain += 1
            if position.looks_without_gain >= train.patience and not last_step:
                position.stopped = "early"
            short = saver.save(position)
            if short is not None:
                return {**asdict(position), "stopped": "disk_full", **short}
            row["look_s"] = round(time.perf_counter() - started, 2)
        if observer is not None:
            append_row(folder / CURVES, row)
            observer.see(row)
    if observer is not None:
        observer.close()
    return asdict(position)


def learning_rate(step: int, *, total_steps: int, train: TrainConfig) -> float:
    """Rate of step `step` (from 0): linear warm-up, then a cosine that ends at zero."""
    warmup = round(train.warmup_fraction * total_steps)
    if step < warmup:
        return train.learning_rate * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, total_steps - warmup)
    return train.learning_rate * 0.5 * (1 + math.cos(math.pi * progress))


def _step_seed(seed: int, step: int, rank: int) -> int:
    return (seed * 1_000_003 + step) * 4_099 + rank


def _over_workers(items: Sequence[Item], *, device: Any) -> dict[str, int]:
    """Sum up over all workers the step's `items`, `tokens`, and target tokens of each kind."""
    import torch
    import torch.distributed as dist

    from distill.train.objectives import target_counts

    counts = target_counts(items)
    counts |= {"items": len(items), "tokens": sum(item.num_tokens for item in items)}
    summed = torch.tensor(list(counts.values()), device=device)
    dist.all_reduce(summed)
    return dict(zip(counts, summed.tolist(), strict=True))


def _everyones(mine: list[str]) -> list[str]:
    """Gather every worker's list."""
    import torch.distributed as dist

    gathered: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(gathered, mine)
    return [name for names in gathered for name in names]
