"""TRL's trainers in a process of their own that train on request: a line in, a line out.

The first command is `{"model", "rank", "alpha"}`; every other one trains a fresh adapter.
What would differ by accident is the same as on the other side: token ids, order of the records,
AdamW, clipping, and the learning rate of each step. What is TRL's own stays: collation, packing,
attention, loss. Gradient checkpointing, which TRL switches on by default, is off: it costs time.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from distill.train.config import TrainConfig
from distill.train.encode import Encoded, encode_records
from jobs.bench.side import answer


def main() -> None:
    """Serve training runs until standard input ends."""
    import trl  # noqa: F401 (what takes long belongs to the start-up)

    setup = json.loads(sys.stdin.readline())
    answer({"ready": True})
    for line in sys.stdin:
        command = json.loads(line)
        with tempfile.TemporaryDirectory(prefix="distillery-bench-") as folder:
            answer(train(setup, command, Path(folder)))


def train(setup: dict[str, Any], command: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Train as `command` says; return seconds and useful tokens of each step, and losses.

    `command` has `kind` (`sft`, `packed`, `dpo`), `train` (fields of `TrainConfig`),
    `max_length`, `records` and `validation` (rows, in the order in which they are to be used).
    """
    from transformers import AutoTokenizer

    began = time.perf_counter()
    settings = TrainConfig.model_validate(command["train"])
    tokenizer = AutoTokenizer.from_pretrained(setup["model"])
    kind, rows, longest = command["kind"], command["records"], command["max_length"]
    if kind == "dpo":
        trainer = _dpo_trainer(setup, settings, rows, tokenizer, longest, folder)
        tokens: list[int] = []
    else:
        records = encode_records(tokenizer, rows, max_length=longest).records
        trainer, tokens = _sft_trainer(
            setup, settings, records, tokenizer, longest, kind == "packed", folder
        )
    clock = _clock()
    trainer.add_callback(clock)
    built = time.perf_counter()
    trainer.train()
    result = {"seconds": clock.seconds, "tokens": tokens, "start_s": built - began}
    if command["validation"]:
        held_out = encode_records(tokenizer, command["validation"], max_length=longest).records
        result["validation_loss"] = held_out_loss(trainer.model, held_out)
    result["wall_s"] = time.perf_counter() - began
    return result


def _sft_trainer(
    setup: dict[str, Any],
    settings: TrainConfig,
    records: list[Encoded],
    tokenizer: Any,
    longest: int,
    packed: bool,
    folder: Path,
) -> tuple[Any, list[int]]:
    """Return the trainer and the useful tokens of each of its steps."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = [
        {
            "input_ids": record.tokens,
            "labels": [-100] * record.num_prompt + record.tokens[record.num_prompt :],
        }
        for record in records
    ]
    per_step = settings.batch_size
    micro = min(settings.micro_batch_size, per_step)
    if packed:
        # As many tokens a step as the unpacked batch has. One row at a time: without padding the
        # rows of a micro-batch are laid behind each other, and attention grows with the square.
        mean = sum(len(record.tokens) for record in records) / len(records)
        per_step, micro = max(1, round(per_step * mean / longest)), 1
    trainer = _trainer(SFTTrainer, settings)(
        model=_base(setup, settings),
        args=SFTConfig(
            **_arguments(settings, folder, micro=micro, per_step=per_step),
            num_train_epochs=1,
            packing=packed,
            max_length=longest,
            completion_only_loss=True,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=_lora(setup),
    )
    sizes = [len(ids) for ids in trainer.train_dataset["input_ids"]]
    return trainer, [
        sum(sizes[first : first + per_step]) for first in range(0, len(sizes), per_step)
    ]


def _dpo_trainer(
    setup: dict[str, Any],
    settings: TrainConfig,
    pairs: list[dict[str, Any]],
    tokenizer: Any,
    longest: int,
    folder: Path,
) -> Any:
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    micro = min(settings.micro_batch_size, settings.batch_size)
    return _trainer(DPOTrainer, settings)(
        model=_base(setup, settings),
        args=DPOConfig(
            **_arguments(settings, folder, micro=micro, per_step=settings.batch_size),
            num_train_epochs=1,
            beta=settings.dpo.beta,
            max_length=longest,
        ),
        train_dataset=Dataset.from_list(pairs),
        processing_class=tokenizer,
        peft_config=_lora(setup),
    )


def _trainer(base: type[Any], settings: TrainConfig) -> type[Any]:
    """Return TRL's trainer with the learning rate of our loop."""
    from torch.optim.lr_scheduler import LambdaLR

    from distill.train.loop import learning_rate

    class SameRate(base):
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            """Scale the peak rate as `distill.train.loop.learning_rate` does."""

            def factor(step: int) -> float:
                rate = learning_rate(step, total_steps=num_training_steps, train=settings)
                return rate / settings.learning_rate

            self.lr_scheduler = LambdaLR(optimizer or self.optimizer, factor)
            return self.lr_scheduler

    return SameRate


def _arguments(settings: TrainConfig, folder: Path, *, micro: int, per_step: int) -> dict[str, Any]:
    if per_step % micro:
        raise SystemExit(f"{per_step} rows a step cannot be cut into micro-batches of {micro}")
    return {
        "output_dir": str(folder),
        "use_cpu": True,
        "bf16": settings.in_bf16,
        "gradient_checkpointing": False,
        "per_device_train_batch_size": micro,
        "gradient_accumulation_steps": per_step // micro,
        "train_sampling_strategy": "sequential",
        "learning_rate": settings.learning_rate,
        "weight_decay": settings.weight_decay,
        "max_grad_norm": settings.max_grad_norm,
        "seed": settings.seed,
        "logging_strategy": "no",
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
    }


def _base(setup: dict[str, Any], settings: TrainConfig) -> Any:
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(
        setup["model"],
        dtype=torch.bfloat16 if settings.in_bf16 else torch.float32,
        attn_implementation="sdpa",
    )


def _lora(setup: dict[str, Any]) -> Any:
    from peft import LoraConfig

    return LoraConfig(
        r=setup["rank"],
        lora_alpha=setup["alpha"],
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )


def _clock() -> Any:
    """Return a callback that keeps the seconds of each optimiser step, collation included."""
    from transformers import TrainerCallback

    class Clock(TrainerCallback):
        def __init__(self) -> None:
            self.seconds: list[float] = []
            self._last = 0.0

        def on_train_begin(self, *_: Any, **__: Any) -> None:
            self._last = time.perf_counter()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            now = time.perf_counter()
            self.seconds.append(now - self._last)
            self._last = now

    return Clock()


def held_out_loss(model: Any, records: list[Encoded]) -> float:
    """Mean −log p of the completion tokens, nats; record by record, so nothing is padded."""
    import torch

    model.eval()
    total, count = 0.0, 0
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        for record in records:
            tokens = torch.tensor([record.tokens])
            kept = record.num_completion + 1
            logits = model(input_ids=tokens, logits_to_keep=kept).logits[0, :-1]
            targets = tokens[0, record.num_prompt :]
            total += float(
                torch.nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
            )
            count += record.num_completion
    return total / count


if __name__ == "__main__":
    main()
