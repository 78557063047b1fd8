"""Students, items and gradients for the tests of training; tiny models, float32 unless said."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from distill.train.config import StudentConfig, TrainConfig
from distill.train.encode import Encoded, Item

EXACT = 1e-5
"""Relative difference that the order of float32 sums makes."""


def student(folder: Path, precision: str = "fp32", **config: Any) -> Any:
    """A student whose adapter does something: B is zero at first, which hides half of it."""
    import torch

    from distill.train.model import load_student

    told = {"model": str(folder), "rank": 8, "alpha": 16.0, "dropout": 0.0, **config}
    model = load_student(
        StudentConfig(**told),
        TrainConfig(precision=precision, seed=1),
        device=torch.device("cpu"),
    )
    torch.manual_seed(2)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.normal_(0, 0.02)
    return model


def training(model: Any, objective: Any = None, *, fast: bool = False, padded: bool = False) -> Any:
    """What DeepSpeed would drive."""
    from distill.train.cpu_model import FastTrunk
    from distill.train.model import PlainTrunk, Training
    from distill.train.objectives import NextToken
    from distill.train.packed import PaddedBatch

    trunk: Any = FastTrunk(model) if fast else PlainTrunk(model, max_length=1024)
    if padded:
        trunk.batch = PaddedBatch
    return Training(model, trunk, objective or NextToken())


def items(*, openings: tuple[int, ...], lengths: tuple[int, ...] = (90, 64, 33)) -> list[Item]:
    """Items of random tokens; those of one opening begin alike, 0 stands for no opening."""
    draw = random.Random(3)

    def tokens(count: int) -> list[int]:
        return [draw.randrange(5, 500) for _ in range(count)]

    made = []
    for width in openings:
        opening = tokens(width)
        for n in lengths:
            sequence = Encoded(f"{width}/{n}", opening + tokens(n), width + n // 2)
            made.append(Item(sequence.example_id, (sequence,)))
    draw.shuffle(made)
    return made


def loss_and_gradients(
    module: Any, of: list[Item], train: TrainConfig | None = None, *, parts: int = 1
) -> tuple[float, dict[str, Any]]:
    """Loss of a step and all gradients, computed in so many micro-batches."""
    import torch

    from distill.train.objectives import shares

    share = shares(of, train or TrainConfig())
    total = 0.0
    module.zero_grad()
    for part in (of[k::parts] for k in range(parts)):
        batch = module.batch(part, pad_token=0, device=torch.device("cpu"))
        loss = module(batch, share)
        loss.backward()
        total += loss.item()
    grads = {n: p.grad.double() for n, p in module.named_parameters() if p.grad is not None}
    return total, grads


def distance(grads: dict[str, Any], exact: dict[str, Any]) -> dict[str, float]:
    """Relative error of each gradient."""
    assert grads.keys() == exact.keys()
    return {n: float((grads[n] - exact[n]).norm() / exact[n].norm()) for n in exact}


def one_by_one(model: Any, sequence: Encoded) -> Any:
    """Logits [n, V] that predict the completion: the sequence alone, transformers' own forward."""
    import torch

    logits = model(input_ids=torch.tensor([sequence.tokens])).logits[0]
    return logits[sequence.num_prompt - 1 : -1].double()


def negative_log_likelihood(model: Any, sequence: Encoded) -> Any:
    """Of each token of the completion, in float64."""
    import torch

    targets = torch.tensor(sequence.tokens[sequence.num_prompt :])
    return torch.nn.functional.cross_entropy(one_by_one(model, sequence), targets, reduction="none")


def gradients_of(model: Any, loss: Any) -> dict[str, Any]:
    """Gradients of all that is trained, by the name it has in the module."""
    model.zero_grad()
    loss.backward()
    return {
        f"model.{n}": p.grad.double() for n, p in model.named_parameters() if p.grad is not None
    }
