"""The student as DeepSpeed drives it: base model, adapter, and the objective on top."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from distill.train.config import StudentConfig, TrainConfig
from distill.train.encode import Item
from distill.train.head import row_losses
from distill.train.liger import use_liger
from distill.train.objectives import Trunk
from distill.train.packed import PackedBatch, PaddedBatch

FULL_ATTENTION = {"full_attention", "sliding_attention", "chunked_attention"}


class PlainTrunk:
    """Any causal language model of transformers, with or without a PEFT adapter."""

    def __init__(self, model: Any, *, max_length: int):
        """`max_length` is the longest sequence, which decides whether they can be packed."""
        self._model = model
        causal = model.get_base_model() if hasattr(model, "peft_config") else model
        self._inner = causal.base_model
        self.head = causal.get_output_embeddings()
        config = causal.config.get_text_config()
        # Gemma 2; Granite; Cohere: names and formulas as in transformers' own modelling files.
        self._cap = getattr(config, "final_logit_softcapping", None)
        self._scale = getattr(config, "logit_scale", None) or 1.0
        self._scale /= getattr(config, "logits_scaling", None) or 1.0
        self.why_padded = why_padded(causal.config, max_length=max_length)
        self.batch = PaddedBatch if self.why_padded else PackedBatch

    def rows(self, batch: Any) -> torch.Tensor:
        """Hidden rows [N, D], final norm included, of the batch's positions."""
        if isinstance(batch, PaddedBatch):
            told: dict[str, Any] = {"input_ids": batch.tokens}
        else:
            told = {
                "input_ids": batch.tokens[None],
                "position_ids": batch.places[None],
                "attention_mask": attention_mask(batch, dtype=self._inner.dtype),
            }
        hidden = self._inner(**told, use_cache=False).last_hidden_state
        return hidden.reshape(-1, hidden.shape[-1])[batch.positions]

    @torch.no_grad()
    def reference_rows(self, batch: Any) -> torch.Tensor:
        """Return the same with the adapter off."""
        with self._model.disable_adapter():
            return self.rows(batch)

    def shaped(self, logits: torch.Tensor) -> torch.Tensor:
        """Scale and cap the head's logits as the model does."""
        if self._scale != 1.0:
            logits = logits * self._scale
        return logits if self._cap is None else self._cap * torch.tanh(logits / self._cap)

    def next_token_losses(self, rows_N_D: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
        """−log p of each row's target, [N], nats."""

        def of(logits: torch.Tensor, part: slice) -> torch.Tensor:
            logits = self.shaped(logits)
            return nn.functional.cross_entropy(logits, targets_N[part], reduction="none")

        return row_losses(rows_N_D, self.head, of)


def attention_mask(batch: PackedBatch, *, dtype: torch.dtype) -> Any:
    """Who sees whom: on GPU a `BlockMask` for FlexAttention, elsewhere [1, 1, M, M] for SDPA."""
    own, prefix = batch.may_attend()
    places = torch.arange(len(own), device=own.device)

    def sees(q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return (k <= q) & ((own[k] == own[q]) | (own[k] == prefix[q]))

    if own.device.type == "cuda":
        from torch.nn.attention.flex_attention import create_block_mask

        size = len(own)
        return create_block_mask(lambda _b, _h, q, k: sees(q, k), None, None, size, size)
    hidden = ~sees(places[:, None], places[None, :])
    # As numbers: SDPA would turn a mask of truth values into this in each layer, and keep it.
    return torch.zeros(hidden.shape, dtype=dtype).masked_fill(hidden, -torch.inf)[None, None]


def why_padded(config: Any, *, max_length: int) -> str:
    """Why sequences of this model cannot lie behind each other in one row, or "" if they can."""
    text = config.get_text_config()
    kinds = set(getattr(text, "layer_types", None) or ()) - FULL_ATTENTION
    if kinds:
        return f"it has layers of {', '.join(sorted(kinds))}, whose state would run on"
    recurrent = [name for name in ("mamba_d_state", "state_size", "rwkv") if hasattr(text, name)]
    if recurrent:
        return "it is recurrent, and its state would run on"
    window = getattr(text, "sliding_window", None)
    if window and window < max_length:
        return f"its attention window of {window} is shorter than student.max_length {max_length}"
    if getattr(text, "position_embedding_type", None) == "alibi" or getattr(text, "alibi", False):
        return "its positions are distances between rows"
    return ""


class Training(nn.Module):
    """What DeepSpeed drives: micro-batch in, its part of the step's loss out."""

    def __init__(self, model: nn.Module, trunk: Trunk, objective: Any):
        """`model` holds the parameters that `trunk` computes with."""
        super().__init__()
        self.model = model
        self.trunk = trunk
        self.objective = objective

    def batch(self, items: Sequence[Item], *, pad_token: int, device: torch.device) -> Any:
        """Lay the items' sequences out as the trunk takes them."""
        sequences = [sequence for item in items for sequence in item.sequences]
        return self.trunk.batch(sequences, pad_token=pad_token, device=device)

    def forward(self, batch: Any, shares: Mapping[str, float]) -> torch.Tensor:
        """Return the objective's sum over the batch, a float32 scalar."""
        loss: torch.Tensor = self.objective.loss(self.trunk, batch, shares)
        return loss


def trunk_of(
    student: Any, *, device: torch.device, zero_stage: int, max_length: int
) -> tuple[Any, str]:
    """Return what computes the student's hidden rows, and why not by hand on CPU ("" if so)."""
    reason = "not on CPU"
    if device.type == "cpu":
        from distill.train.cpu_model import FastTrunk, why_not

        reason = why_not(student, zero_stage=zero_stage)
        if not reason:
            return FastTrunk(student), ""
    return PlainTrunk(student, max_length=max_length), reason


def load_student(config: StudentConfig, train: TrainConfig, *, device: torch.device) -> Any:
    """Load the base model and make it trainable as `config.tuning` says.

    Fresh adapters: A is random by `train.seed`, B is zero.
    """
    base = load_base(config, train, device=device)
    return base if config.tuning == "full" else with_adapter(base, config, train)


def with_adapter(base: Any, config: StudentConfig, train: TrainConfig) -> Any:
    """Put a fresh adapter on a base; of `full` tuning, which has none, a LoRA."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(train.seed)
    student = get_peft_model(
        base,
        LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,
            lora_dropout=config.dropout,
            target_modules=target_names(base, config.target_modules),
            use_rslora=config.tuning == "rslora",
            use_dora=config.tuning == "dora",
            task_type="CAUSAL_LM",
        ),
        autocast_adapter_dtype=False,
    )
    student.peft_config["default"].base_model_name_or_path = base_name(config.model)
    return student


def make_trainable(base: Any, train: TrainConfig) -> None:
    """Recompute activations if asked to, and leave the evaluation mode that a model comes in.

    In it there is no dropout and no recomputation either.
    """
    if train.gradient_checkpointing:
        base.gradient_checkpointing_enable({"use_reentrant": False})
        base.enable_input_require_grads()
    base.train()


def load_base(config: StudentConfig, train: TrainConfig, *, device: torch.device) -> Any:
    """Load the base model in the precision of the training; in NF4 for `qlora`.

    NF4 with double quantisation (Dettmers et al. 2023); under ZeRO 3 the codes are stored as
    bfloat16, which is the only kind of weight that DeepSpeed can cut up.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype = torch.bfloat16 if train.in_bf16 else torch.float32
    attention = "flex_attention" if device.type == "cuda" else "sdpa"
    told: dict[str, Any] = {"dtype": dtype, "attn_implementation": attention}
    if config.tuning == "qlora":
        told["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            bnb_4bit_quant_storage=torch.bfloat16 if train.zero_stage == 3 else torch.uint8,
        )
        told["device_map"] = {"": device}
    base = AutoModelForCausalLM.from_pretrained(config.model, **told)
    for module in base.modules():
        # bitsandbytes 0.50 repacks a weight for good when it is first met in evaluation on a CPU
        # with AVX-512, and the repacked product has no gradient: training would go on without one.
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    use_liger(base, train, on_gpu=device.type == "cuda")
    make_trainable(base, train)
    return base


def target_names(model: Any, wanted: str | list[str]) -> list[str]:
    """Names of the modules that get an adapter; `all-linear` is every linear layer but the head.

    PEFT's own `all-linear` also takes the experts that transformers keeps in one fused tensor:
    for Qwen3-Coder-30B-A3B 997 million parameters at rank 16 where the linear layers have 13.
    """
    if wanted != "all-linear":
        return list(wanted)
    return sorted({name.rpartition(".")[2] for name in linear_layers(model)})


def linear_layers(model: Any) -> dict[str, nn.Linear]:
    """Linear layers by name, without the output head."""
    head = model.get_output_embeddings()
    return {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not head
    }


def base_name(model: str) -> str:
    """Name of the base for `adapter_config.json`: a folder's absolute path, or the hub name."""
    folder = Path(model).expanduser()
    return str(folder.absolute()) if folder.is_dir() else model


def save_student(student: Any, folder: Path, *, zero_stage: int) -> None:
    """Write what was trained: a plain PEFT adapter folder, or the model where all weights were.

    Under ZeRO 3 every worker must call this.
    """
    import deepspeed

    weights = [p for p in student.parameters() if p.requires_grad]
    with deepspeed.zero.GatheredParameters(weights, enabled=zero_stage == 3):
        if torch.distributed.get_rank() == 0:
            student.save_pretrained(folder, safe_serialization=True)
            # PEFT adds a model card full of blanks; the registry's manifest says it better.
            (folder / "README.md").unlink(missing_ok=True)
            if not hasattr(student, "peft_config"):
                from transformers import AutoTokenizer

                AutoTokenizer.from_pretrained(student.name_or_path).save_pretrained(folder)
