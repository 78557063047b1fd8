"""From the configuration to the module that DeepSpeed drives: student, trunk, objective."""

from __future__ import annotations

import difflib
from typing import Any

import torch

from cluster.errors import ConfigError
from distill.train.config import StudentConfig, TrainConfig
from distill.train.model import PlainTrunk, Training, load_student, trunk_of
from distill.train.objectives import (
    CachedTeacher,
    Distillation,
    NextToken,
    OnlineTeacher,
    Preference,
)


def build_training(
    student_config: StudentConfig,
    train: TrainConfig,
    *,
    summary: dict[str, Any],
    device: torch.device,
) -> tuple[Training, str]:
    """Return the module, and why its trunk is not the hand-written one of the CPU ("" if it is).

    `summary` is what `prepare` returned: for a teacher it holds the common `vocabulary`, for a
    cached one the `cache_key` too.
    """
    student = load_student(student_config, train, device=device)
    trunk, reason = trunk_of(
        student,
        device=device,
        zero_stage=train.zero_stage,
        max_length=student_config.max_length,
    )
    objective = build_objective(student_config, train, summary=summary, device=device)
    return Training(student, trunk, objective), reason


def build_objective(
    student_config: StudentConfig,
    train: TrainConfig,
    *,
    summary: dict[str, Any],
    device: torch.device,
) -> Any:
    """Return what `train.method` minimises; loads the teacher where it runs beside the student."""
    if train.method == "dpo":
        return Preference(train.dpo.beta)
    if train.method not in ("kd", "on_policy"):
        return NextToken()
    vocabulary = int(summary["vocabulary"])
    if train.method == "kd" and train.kd.source == "cache":
        from distill.train.logprobs import LogprobCache

        cache = LogprobCache.open(train.kd.cache, summary["cache_key"])
        return Distillation(CachedTeacher(cache, train.kd, vocabulary=vocabulary))
    settings = train.kd if train.method == "kd" else train.on_policy
    teacher = load_teacher(
        settings.teacher, train, device=device, max_length=student_config.max_length
    )
    return Distillation(OnlineTeacher(teacher, settings, vocabulary=vocabulary))


def load_teacher(name: str, train: TrainConfig, *, device: torch.device, max_length: int) -> Any:
    """Load a frozen teacher onto the worker's device."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(
        name,
        dtype=torch.bfloat16 if train.in_bf16 else torch.float32,
        attn_implementation="flex_attention" if device.type == "cuda" else "sdpa",
    ).to(device)
    model.eval().requires_grad_(False)
    return PlainTrunk(model, max_length=max_length)


def parameter_groups(
    module: torch.nn.Module, train: TrainConfig
) -> tuple[list[dict[str, Any]], list[float]]:
    """Return the optimiser's parameter groups and the factor of the rate of each.

    A parameter is in the group of the first key of `train.learning_rates` that its name holds.
    ConfigError for a key that no trained parameter's name holds.
    """
    keys = [*train.learning_rates, ""]
    members: dict[str, list[Any]] = {key: [] for key in keys}
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            members[next(key for key in keys if key in name)].append(parameter)
    unused = [key for key in train.learning_rates if not members[key]]
    if unused:
        names = [name for name, p in module.named_parameters() if p.requires_grad]
        raise ConfigError(f"train.learning_rates.{unused[0]}: {_why_unused(unused[0], names)}")
    used = [key for key in keys if members[key]]
    groups = [{"params": members[key]} for key in used]
    return groups, [train.learning_rates.get(key, 1.0) for key in used]


def _why_unused(key: str, names: list[str]) -> str:
    """Why no parameter is in the group of `key`, and what to do; `names` are of the trained."""
    if any(key in name for name in names):
        return "the keys before it take every parameter that it fits; put it before them"
    parts = sorted({part for name in names for part in name.split(".")})
    near = difflib.get_close_matches(key, parts, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return (
        f"no trained parameter's name holds it; {hint}allowed is any part of a name such as "
        f"{', '.join(names[:3])}"
    )
