"""Every method and tuning through the whole stage: a few real steps.

In the test's own process (`train.in_process`): that Ray Train's workers do the same is shown by
`test_train_stage.py`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_ray import local_ray

from cluster.errors import ConfigError, DataError
from distill.train.config import StudentConfig, TrainConfig
from distill.train.follow import Say
from distill.train.stage import TrainResult, train

pytestmark = [pytest.mark.ray, pytest.mark.model]


def rows(first: int, count: int) -> list[dict[str, Any]]:
    made = []
    for i in range(first, first + count):
        kind = "TIMING" if i % 2 else "MISSING"
        made.append(
            {
                "example_id": f"e{i}",
                "messages": [
                    {"role": "system", "content": "You reconcile bank lines."},
                    {"role": "user", "content": f"Bank: {kind} {i}"},
                ],
                "completion": json.dumps({"classification": kind}),
                "rationale": f"The line says {kind}, so it is that.",
                "label": kind,
            }
        )
    return made


def pairs(first: int, count: int) -> list[dict[str, Any]]:
    return [
        {
            "example_id": row["example_id"],
            "messages": row["messages"],
            "chosen": row["completion"],
            "rejected": "I cannot say.",
        }
        for row in rows(first, count)
    ]


@pytest.fixture(scope="module")
def runtime() -> Iterator[None]:
    with local_ray(num_cpus=2):
        yield


@pytest.fixture(scope="module")
def teacher(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same vocabulary that says something else."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = tmp_path_factory.mktemp("teacher") / "tiny-teacher"
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    torch.manual_seed(5)
    for weight in model.parameters():
        weight.data += 0.5 * weight.data.std() * torch.randn_like(weight)
    model.save_pretrained(folder)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(folder)
    return folder


def trained(
    model: Path,
    folder: Path,
    *,
    student: dict[str, Any] | None = None,
    say: Say | None = None,
    **settings: Any,
) -> tuple[TrainResult, list[float]]:
    """Train some steps; returns the result and the losses."""
    make = pairs if settings.get("method") == "dpo" else rows
    base: dict[str, Any] = {
        "workers": 1, "in_process": True, "precision": "fp32",
        "batch_size": 8, "micro_batch_size": 4,
        "learning_rate": 1e-2, "epochs": 2, "max_steps": 6, "eval_every": 3, "warmup_fraction": 0.0,
    }  # fmt: skip
    result = train(
        StudentConfig(**{"model": str(model), "rank": 8, "alpha": 16.0, **(student or {})}),
        TrainConfig(**{**base, **settings}),
        records=make(0, 24),
        validation=make(100, 4),
        run_folder=folder,
        say=say,
    )
    curves = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    return result, [row["loss"] for row in curves if "loss" in row]


@pytest.mark.parametrize(
    ("student", "settings"),
    [
        ({"tuning": "dora"}, {"method": "multitask", "gradient_checkpointing": True}),
        ({"tuning": "qlora"}, {"method": "cot", "precision": "bf16", "zero_stage": 1}),
        ({"tuning": "full"}, {"zero_stage": 3, "learning_rate": 1e-3, "offload": "optimizer"}),
        ({}, {"method": "dpo", "precision": "bf16", "learning_rates": {"lora_B": 4.0}}),
    ],
    ids=["multitask-dora", "cot-qlora", "full-zero3", "dpo-loraplus"],
)
def test_a_student_learns_by_it(
    runtime: None,
    tiny_model: Path,
    tmp_path: Path,
    student: dict[str, Any],
    settings: dict[str, Any],
) -> None:
    result, losses = trained(tiny_model, tmp_path, student=student, **settings)
    assert len(losses) == 6
    assert result.best_validation_loss < result.base_validation_loss
    names = {path.name for path in Path(result.adapter).iterdir()}
    if student.get("tuning") == "full":
        assert {"config.json", "model.safetensors", "tokenizer.json"} <= names
    else:
        assert names == {"adapter_config.json", "adapter_model.safetensors"}


def test_a_student_learns_from_a_cache_of_all_tokens_as_from_the_teacher_itself(
    runtime: None, tiny_model: Path, teacher: Path, tmp_path: Path
) -> None:
    from distill.train.cache_logprobs import cache_logprobs

    student = StudentConfig(model=str(tiny_model), rank=8, alpha=16)
    from transformers import AutoConfig

    kd = {
        "teacher": str(teacher),
        "top_k": AutoConfig.from_pretrained(tiny_model).vocab_size,
        "cache": str(tmp_path / "cache"),
        "weight": 0.5,
        "temperature": 2.0,
        "divergence": "jsd",
    }
    told: dict[str, Any] = {"method": "kd", "zero_stage": 0, "student": {"tuning": "rslora"}}
    result, online = trained(tiny_model, tmp_path / "online", kd=kd, **told)
    assert result.best_validation_loss < result.base_validation_loss
    cached = kd | {"source": "cache"}
    with pytest.raises(DataError, match=r"jobs\.cache_logprobs"):
        trained(tiny_model, tmp_path / "offline", kd=cached, **told)
    cache_logprobs(
        student,
        TrainConfig(workers=1, method="kd", kd=cached),
        records=rows(0, 24),
        validation=rows(100, 4),
    )
    _, offline = trained(tiny_model, tmp_path / "offline", kd=cached, **told)
    assert offline == pytest.approx(online, rel=1e-4)


def test_a_teacher_with_a_padded_vocabulary_is_cut_and_it_is_said(
    runtime: None, tiny_model: Path, teacher: Path, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    padded = tmp_path / "padded-teacher"
    model = AutoModelForCausalLM.from_pretrained(teacher)
    model.resize_token_embeddings(576)
    model.save_pretrained(padded)
    AutoTokenizer.from_pretrained(teacher).save_pretrained(padded)
    said: list[str] = []
    kd = {"teacher": str(padded)}
    trained(tiny_model, tmp_path / "run", say=said.append, method="kd", kd=kd, max_steps=1)
    (note,) = [text for text in said if "padding" in text]
    assert note.startswith("train.kd.teacher: the output heads have 512 rows (student) and 576")
    assert "both are cut to 512" in note


def test_on_policy_learns_from_its_own_answers_and_keeps_them(
    runtime: None, tiny_model: Path, teacher: Path, tmp_path: Path
) -> None:
    settings = {
        "teacher": str(teacher),
        "max_tokens": 12,
        "sample_every": 2,
        "student_fraction": 0.5,
    }
    result, losses = trained(
        tiny_model,
        tmp_path,
        student={"max_length": 256},
        method="on_policy",
        on_policy=settings,
        epochs=1,
    )
    # Three steps an epoch: two windows.
    assert result.steps == len(losses) == 3
    assert all(loss > 0 for loss in losses)
    kept = sorted((tmp_path / "samples").glob("step-*.jsonl"))
    assert [path.name for path in kept] == ["step-000000.jsonl", "step-000002.jsonl"]
    sampled = [json.loads(line) for path in kept for line in path.read_text().splitlines()]
    assert 0 < len(sampled) < 3 * 8
    assert all(0 < len(row["tokens"]) <= 12 for row in sampled)


@pytest.mark.parametrize(
    ("student", "settings", "message"),
    [
        ({"tuning": "full"}, {"method": "dpo"}, "needs an adapter"),
        ({}, {"method": "dpo", "mix": {"data": "x.jsonl"}}, "takes no general-domain records"),
        ({}, {"method": "kd", "kd": {"teacher": "/nowhere"}}, r"train\.kd\.teacher '/nowhere'"),
    ],
)
def test_what_does_not_go_together_is_said_first(
    tiny_model: Path,
    tmp_path: Path,
    student: dict[str, Any],
    settings: dict[str, Any],
    message: str,
) -> None:
    from cluster.errors import DistilleryError

    with pytest.raises((ConfigError, DistilleryError), match=message):
        trained(tiny_model, tmp_path, student=student, **settings)
    assert not (tmp_path / "curves.jsonl").exists()
