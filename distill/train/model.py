"""The student as DeepSpeed drives it: base model, LoRA, and a loss with few logits."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.train.encode import Encoded


class PaddedBatch:
    """One micro-batch, padded on the right.

    Shapes: `tokens` [B, T]; `positions` [N], places in the flattened [B·T] whose next token
    counts; `targets` [N], that token. Right padding needs no attention mask: under causal
    attention nothing looks at what comes later.
    """

    def __init__(self, records: Sequence[Encoded], *, pad_token: int, device: torch.device):
        """Pad `records` to their longest; no records at all make a batch without loss."""
        self.example_ids = [record.example_id for record in records]
        rows = [record.tokens for record in records] or [[pad_token]]
        width = max(map(len, rows))
        self.tokens = torch.full((len(rows), width), pad_token, device=device)
        for i, row in enumerate(rows):
            self.tokens[i, : len(row)] = torch.tensor(row, device=device)
        positions = [
            i * width + place
            for i, record in enumerate(records)
            for place in range(record.num_prompt - 1, len(record.tokens) - 1)
        ]
        targets = [t for record in records for t in record.tokens[record.num_prompt :]]
        self.positions = torch.tensor(positions, dtype=torch.long, device=device)
        self.targets = torch.tensor(targets, dtype=torch.long, device=device)


class CompletionLoss(nn.Module):
    """Summed negative log-likelihood of the completion tokens, in nats.

    The head runs only where a token counts: a record of 200 tokens with 60 in the completion
    needs 60 rows of the vocabulary's width, not 200.
    """

    batch = PaddedBatch

    def __init__(self, model: nn.Module):
        """`model` is a PEFT model around a causal language model."""
        super().__init__()
        self.model = model

    def forward(self, batch: PaddedBatch) -> torch.Tensor:
        """Return the sum over `batch.targets` of −log p, a float32 scalar."""
        causal = self.model.get_base_model()
        hidden = causal.base_model(input_ids=batch.tokens, use_cache=False).last_hidden_state
        chosen = hidden.reshape(-1, hidden.shape[-1])[batch.positions]
        logits = causal.get_output_embeddings()(chosen)
        return nn.functional.cross_entropy(logits.float(), batch.targets, reduction="sum")


def loss_module(student: Any, *, device: torch.device, zero_stage: int) -> tuple[Any, str]:
    """Return the module that DeepSpeed drives, and why it is not the fused CPU one ("" if so).

    Its `batch` makes the micro-batches that its forward takes.
    """
    if device.type != "cpu":
        return CompletionLoss(student), "not on CPU"
    from distill.train.cpu_model import FastCompletionLoss, why_not

    reason = why_not(student, zero_stage=zero_stage)
    return (CompletionLoss(student) if reason else FastCompletionLoss(student)), reason


def load_student(
    *,
    model: str,
    rank: int,
    alpha: float,
    dropout: float,
    target_modules: str | list[str],
    precision: str,
    gradient_checkpointing: bool,
    seed: int,
) -> Any:
    """Load the base model and put fresh adapters on it; A is random by `seed`, B is zero."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    base = AutoModelForCausalLM.from_pretrained(model, dtype=dtype, attn_implementation="sdpa")
    if gradient_checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
    torch.manual_seed(seed)
    student = get_peft_model(
        base,
        LoraConfig(
            r=rank,
            lora_alpha=alpha,
            lora_dropout=dropout,
            target_modules=target_modules,
            task_type="CAUSAL_LM",
        ),
        autocast_adapter_dtype=False,
    )
    student.peft_config["default"].base_model_name_or_path = base_name(model)
    return student


def base_name(model: str) -> str:
    """Name of the base for `adapter_config.json`: a folder's absolute path, or the hub name."""
    folder = Path(model).expanduser()
    return str(folder.absolute()) if folder.is_dir() else model


def save_adapter(student: Any, folder: Path, *, zero_stage: int) -> None:
    """Write a plain PEFT adapter folder; under ZeRO 3 every worker must call this."""
    import deepspeed

    weights = [p for p in student.parameters() if p.requires_grad]
    with deepspeed.zero.GatheredParameters(weights, enabled=zero_stage == 3):
        if torch.distributed.get_rank() == 0:
            student.save_pretrained(folder, safe_serialization=True)
            # PEFT adds a model card full of blanks; the registry's manifest says it better.
            (folder / "README.md").unlink(missing_ok=True)
