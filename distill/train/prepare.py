"""What can be known before a weight is loaded: template, lengths, adapter targets, enough data.

Runs as one Ray task, so that the driver imports neither transformers nor torch and the encoded
records never pass through it.
"""

from __future__ import annotations

import difflib
import os
import random
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.errors import ConfigError, DataError
from distill.train.cache_key import cache_key
from distill.train.config import StudentConfig, TrainConfig
from distill.train.encode import Item, check_template
from distill.train.encoded import encoded_items, table_of
from distill.train.feed import Outline
from distill.train.items import Items
from distill.train.logprobs import LogprobCache
from distill.train.pairs import read_records
from distill.train.vocabulary import load_vocabulary


def check_model_folder(model: str) -> None:
    """Raise ConfigError for a path without a model; a hub name (`org/name`) passes."""
    folder = Path(model).expanduser()
    looks_like_path = model.startswith((".", "/", "~")) or model.count("/") != 1
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(
                f"student.model: {model!r} is a folder without config.json; give the folder of a "
                "Hugging Face causal language model"
            )
    elif looks_like_path or os.environ.get("HF_HUB_OFFLINE"):
        raise ConfigError(
            f"student.model: {model!r} is no folder; give an existing model folder or a hub name "
            "such as 'HuggingFaceTB/SmolLM2-135M-Instruct'"
        )


def check_settings(student: StudentConfig, train: TrainConfig) -> None:
    """Raise ConfigError for settings that do not go together."""
    if train.method in ("dpo", "on_policy") and student.tuning == "full":
        why = {
            "dpo": "the reference is the student with its adapter off",
            "on_policy": "the sampling engine is handed the current adapter",
        }[train.method]
        raise ConfigError(
            f"train.method {train.method!r} needs an adapter ({why}), and student.tuning is "
            "'full'; take 'lora', 'rslora' or 'qlora'"
        )
    if train.mix is not None and train.method in ("dpo", "on_policy"):
        raise ConfigError(
            f"train.mix: method {train.method!r} takes no general-domain records; it goes with "
            "'sft', 'cot', 'multitask' and 'kd'; leave [train.mix] out"
        )
    if train.mix is not None and train.method == "kd" and train.kd.source == "cache":
        raise ConfigError(
            "train.mix: the cache of log-probabilities holds the run's own records only; leave "
            "[train.mix] out or take train.kd.source 'online'"
        )
    if train.mix is not None and train.method == "cot":
        raise ConfigError(
            "train.mix: method 'cot' trains on records with a rationale only, and general-domain "
            "records have none; leave [train.mix] out or take 'sft'"
        )
    if student.tuning == "dora" and train.method == "on_policy":
        raise ConfigError(
            "train.method 'on_policy' samples through vLLM, which loads no DoRA adapter; take "
            "student.tuning 'lora', 'rslora' or 'qlora'"
        )


def prepare(
    student: StudentConfig,
    train: TrainConfig,
    *,
    records: list[dict[str, Any]],
    validation: list[dict[str, Any]],
    cache: Path | None = None,
) -> tuple[dict[str, Any], tuple[list[Item], list[Item]]]:
    """Check everything and encode: returns a summary and the (training, validation) items.

    Encoded items are kept in the folder `cache` and read from it.
    """
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(student.model)
    check_template(tokenizer, model=student.model)
    check_targets(student)
    check_rates(student, train)
    told: dict[str, Any] = {"train": train, "max_length": student.max_length, "cache": cache}
    records = [*records, *_mixed_in(train, len(records))]
    training = encoded_items(tokenizer, records, **told)
    held_out = encoded_items(tokenizer, validation, **told)
    _require_items(training, held_out, student=student, train=train)
    pad = tokenizer.pad_token_id
    summary = {
        "pad_token": pad if pad is not None else tokenizer.eos_token_id or 0,
        "dropped_train": training.too_long,
        "dropped_validation": held_out.too_long,
        "without_rationale": training.without_rationale,
        "without_loss": training.without_loss,
        "num_train": len(training.items),
        "num_validation": len(held_out.items),
        **_teacher(student, train, [*training.items, *held_out.items], tokenizer=tokenizer),
    }
    return summary, (training.items, held_out.items)


def prepare_feed(
    student: StudentConfig, train: TrainConfig, **told: Any
) -> tuple[dict[str, Any], Outline, pa.Table, list[Item]]:
    """`prepare` as workers take it: summary, outline and table of the training items, validation.

    The table (`encoded.SEQUENCE`) is read in place wherever the batches are made.
    """
    summary, (training, validation) = prepare(student, train, **told)
    return summary, Outline.of(training, train), table_of(training), validation


def _require_items(
    training: Items, held_out: Items, *, student: StudentConfig, train: TrainConfig
) -> None:
    if training.without_rationale and not training.items and not training.too_long:
        raise DataError(
            f"train.method 'cot' needs reasoning, and none of {len(training.without_rationale)} "
            "records has a rationale; set teacher.reasoning = true and generate again, or take "
            "method 'sft'"
        )
    what = "preference pairs" if train.method == "dpo" else "training records"
    if len(training.items) < train.workers:
        given = len(training.items) + len(training.too_long) + len(training.without_loss)
        raise DataError(
            f"{len(training.items)} {what} for {train.workers} workers "
            f"({given} given, {len(training.too_long)} above student.max_length "
            f"{student.max_length}, {len(training.without_loss)} without a token with loss); "
            "give more records, raise max_length or lower train.workers"
        )
    if not held_out.items:
        raise DataError(_why_no_validation(held_out, student=student))


def _why_no_validation(held_out: Items, *, student: StudentConfig) -> str:
    """Say what took the validation records, and the remedy for just that."""
    reasons = (held_out.too_long, held_out.without_rationale, held_out.without_loss)
    too_long, without_rationale, without_loss = map(len, reasons)
    given = too_long + without_rationale + without_loss
    if given and without_rationale == given:
        return (
            "no validation record is left: method 'cot' learns from reasoning, and none of "
            f"{given} validation records has a rationale; set teacher.reasoning = true and "
            "generate again, or take method 'sft'"
        )
    counted = [f"{given} given", f"{too_long} above student.max_length {student.max_length}"]
    remedies = ["raise prompts.validation"]
    if too_long:
        remedies.append("raise student.max_length")
    if without_rationale:
        counted.append(f"{without_rationale} without a rationale")
        remedies.append("set teacher.reasoning = true and generate again")
    if without_loss:
        counted.append(f"{without_loss} without a token with loss")
        remedies.append("look at their completions")
    return (
        f"no validation record is left ({', '.join(counted)}); early stopping and the held-out "
        f"loss need at least one: {', '.join(remedies)}"
    )


def _mixed_in(train: TrainConfig, num_records: int) -> list[dict[str, Any]]:
    """Draw general-domain records so that they make up `train.mix.fraction` of all."""
    if train.mix is None:
        return []
    rows = read_records(train.mix.data, field="train.mix.data")
    if any("completion" not in row for row in rows):
        raise DataError(
            f"train.mix.data: {train.mix.data} holds preference pairs; give prompts with one answer"
        )
    wanted = round(num_records * train.mix.fraction / (1 - train.mix.fraction))
    if wanted > len(rows):
        raise DataError(
            f"train.mix: a share of {train.mix.fraction:g} takes {wanted} records, "
            f"{train.mix.data} has {len(rows)}; give more or lower train.mix.fraction"
        )
    return random.Random(train.seed).sample(rows, wanted)


def _teacher(
    student: StudentConfig, train: TrainConfig, items: list[Item], *, tokenizer: Any
) -> dict[str, Any]:
    """Check the teacher's vocabulary, and its cache where one is read."""
    if train.method not in ("kd", "on_policy"):
        return {}
    settings = getattr(train, train.method)
    common = load_vocabulary(
        student=student.model, teacher=settings.teacher, field=f"train.{train.method}.teacher"
    )
    found: dict[str, Any] = {"vocabulary": common.size, "vocabulary_note": common.note}
    if train.method == "kd" and train.kd.source == "cache":
        records = [sequence for item in items for sequence in item.sequences]
        found["cache_key"] = cache_key(
            train.kd, vocabulary=common, tokenizer=tokenizer, records=records
        )
        LogprobCache.open(train.kd.cache, found["cache_key"]).check(records)
    return found


def check_targets(student: StudentConfig) -> None:
    """Raise ConfigError for a target module the model lacks or a rank above its layers' width."""
    from distill.train.model import linear_layers, target_names

    model = _without_weights(student)
    names = target_names(model, "all-linear")
    linear = linear_layers(model)
    wanted = target_names(model, student.target_modules)
    missing = [w for w in wanted if not any(n == w or n.endswith(f".{w}") for n in linear)]
    if missing:
        near = difflib.get_close_matches(missing[0], names, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ConfigError(
            f"student.target_modules: {', '.join(missing)} not in {student.model!r}; "
            f"{hint}allowed: 'all-linear' or any of {', '.join(names)}"
        )
    width = min(
        min(m.in_features, m.out_features)
        for n, m in linear.items()
        if any(n == w or n.endswith(f".{w}") for w in wanted)
    )
    if student.rank > width:
        raise ConfigError(
            f"student.rank: {student.rank} is above {width}, the width of the model's narrowest "
            "adapted layer, so the adapter would be larger than the layer; lower the rank"
        )


def check_rates(student: StudentConfig, train: TrainConfig) -> None:
    """Raise ConfigError for a key of `train.learning_rates` that no trained parameter answers to.

    Workers would find it once the model is loaded, and Ray Train would start them again for it.
    """
    if not train.learning_rates:
        return
    import torch

    from distill.train.model import with_adapter
    from distill.train.setup import parameter_groups

    model = _without_weights(student)
    if student.tuning != "full":
        with torch.device("meta"):
            model = with_adapter(model, student, train)
    # Workers know the student as `model` of the module that DeepSpeed drives.
    parameter_groups(torch.nn.ModuleDict({"model": model}), train)


def _without_weights(student: StudentConfig) -> Any:
    """Return the base on the meta device, where a model of any size has modules and no weights."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(student.model))
