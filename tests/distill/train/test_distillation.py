"""Learning from a teacher, online or from its cache: loss and gradients against closed forms."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training import (
    EXACT,
    distance,
    gradients_of,
    items,
    loss_and_gradients,
    negative_log_likelihood,
    one_by_one,
    student,
    training,
)

from distill.train.config import TrainConfig
from distill.train.encode import Item

pytestmark = pytest.mark.model


def teacher_of(tiny_model: Path) -> Any:
    """Another model of the same vocabulary: the student's base with other weights."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    torch.manual_seed(5)
    for weight in model.parameters():
        weight.data += 0.3 * weight.data.std() * torch.randn_like(weight)
    return model.eval().requires_grad_(False)


def kl(log_p: Any, log_q: Any) -> Any:
    return (log_p.exp() * (log_p - log_q)).sum()


def divergence_of(log_t: Any, log_s: Any, settings: Any) -> Any:
    """Sum over the rows of what the settings ask for; the last axis holds the events."""
    import torch

    if settings.divergence == "forward_kl":
        return kl(log_t, log_s)
    if settings.divergence == "reverse_kl":
        return kl(log_s, log_t)
    beta = settings.beta
    log_m = torch.log(beta * log_t.exp() + (1 - beta) * log_s.exp())
    return beta * kl(log_t, log_m) + (1 - beta) * kl(log_s, log_m)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
@pytest.mark.parametrize("source", ["online", "whole cache"])
def test_kd_mixes_divergence_and_cross_entropy(tiny_model: Path, kind: str, source: str) -> None:
    import numpy as np
    import torch

    from distill.train.config import KDConfig
    from distill.train.logprobs import TopK
    from distill.train.model import PlainTrunk
    from distill.train.objectives import CachedTeacher, Distillation, OnlineTeacher

    settings = KDConfig(teacher="t", divergence=kind, temperature=2.0, weight=0.7, beta=0.4)
    config = TrainConfig(method="kd", kd=settings)
    model, teacher = student(tiny_model), teacher_of(tiny_model)
    of = items(openings=(40, 0))
    width = teacher.config.vocab_size
    expected = torch.zeros((), dtype=torch.float64)
    cached = {}
    for item in of:
        [sequence] = item.sequences
        log_s = torch.log_softmax(one_by_one(model, sequence) / 2.0, -1)
        log_t = torch.log_softmax(one_by_one(teacher, sequence) / 2.0, -1)
        away = divergence_of(log_t, log_s, settings)
        entropy = negative_log_likelihood(model, sequence).sum()
        expected = expected + 0.7 * 2.0**2 * away + 0.3 * entropy
        values, ids = log_t.float().topk(width, -1)
        tail = np.full(len(ids), -np.inf, dtype=np.float32)
        cached[item.example_id] = TopK(ids.int().numpy(), values.numpy(), tail)
    expected = expected / sum(item.sequences[0].num_completion for item in of)
    exact = gradients_of(model, expected)

    class Kept:
        """A cache in memory: what `LogprobCache` gives for a record."""

        rows = staticmethod(cached.__getitem__)

    source_of: Any = (
        OnlineTeacher(PlainTrunk(teacher, max_length=1024), settings, vocabulary=width)
        if source == "online"
        else CachedTeacher(Kept(), settings, vocabulary=width)
    )
    module = training(model, Distillation(source_of))
    loss, found = loss_and_gradients(module, of, config, parts=2)
    assert loss == pytest.approx(float(expected), rel=EXACT)
    assert max(distance(found, exact).values()) < 5 * EXACT


def opinionated_teacher(tiny_model: Path) -> Any:
    """One whose logits lie some units apart and elsewhere than the student's."""
    teacher = teacher_of(tiny_model)
    teacher.model.norm.weight.data.normal_(0, 6)
    return teacher


def cache_of(teacher: Any, of: list[Item], folder: Path, *, width: int, settings: Any) -> Any:
    """The cache that the teacher's own scorer writes of these items, opened."""
    import torch

    from distill.train.logprobs import CacheKey, LogprobCache, records_digest
    from distill.train.logprobs_writer import plan_cache, write_shard
    from distill.train.teacher_logprobs import TeacherScorer

    teacher.save_pretrained(folder / "teacher")
    records = [item.sequences[0] for item in of]
    top_k, temperature = settings.top_k, settings.temperature
    key = CacheKey("t", "", "", top_k, temperature, width, records_digest(records))
    store, shards, _ = plan_cache(folder / "cache", key, records)
    scorer = TeacherScorer(
        str(folder / "teacher"),
        device=torch.device("cpu"),
        top_k=top_k,
        temperature=temperature,
        vocabulary_size=width,
    )
    for shard in shards:
        write_shard(store, shard, scorer(shard.records))
    return LogprobCache.open(folder / "cache", key)


@pytest.mark.parametrize("kind", ["forward_kl", "reverse_kl", "jsd"])
def test_what_a_cache_leaves_out_is_one_event_of_both(
    tiny_model: Path, tmp_path: Path, kind: str
) -> None:
    """32 of 512 log-probabilities: the loss is that of 33 events, in which no mass is lost."""
    import torch

    from distill.train.config import KDConfig
    from distill.train.objectives import CachedTeacher, Distillation

    settings = KDConfig(
        teacher="t", source="cache", cache=str(tmp_path), divergence=kind, top_k=32,
        temperature=2.0, weight=1.0, beta=0.4,
    )  # fmt: skip
    model, teacher = student(tiny_model), opinionated_teacher(tiny_model)
    of = items(openings=(40, 0))
    expected, dropped, scaled = (torch.zeros((), dtype=torch.float64) for _ in range(3))
    for item in of:
        [sequence] = item.sequences
        log_s = torch.log_softmax(one_by_one(model, sequence) / 2.0, -1)
        log_t = torch.log_softmax(one_by_one(teacher, sequence) / 2.0, -1)
        ids = log_t.topk(32, -1).indices
        top_s, top_t = log_s.gather(1, ids), log_t.gather(1, ids)
        rest_s, rest_t = (torch.log1p(-x.exp().sum(1, keepdim=True)) for x in (top_s, top_t))
        assert rest_t.exp().min() > 0.1  # what a loss without the tail would miss
        whole = torch.cat([top_t, rest_t], 1), torch.cat([top_s, rest_s], 1)
        expected = expected + 2.0**2 * divergence_of(*whole, settings)
        dropped = dropped + 2.0**2 * divergence_of(top_t, top_s, settings)
        alone = torch.log_softmax(top_t, -1), torch.log_softmax(top_s, -1)
        scaled = scaled + 2.0**2 * divergence_of(*alone, settings)
    tokens = sum(item.sequences[0].num_completion for item in of)
    exact = gradients_of(model, expected / tokens)
    cache = cache_of(teacher, of, tmp_path, width=512, settings=settings)
    module = training(model, Distillation(CachedTeacher(cache, settings, vocabulary=512)))
    loss, found = loss_and_gradients(module, of, TrainConfig(method="kd", kd=settings), parts=2)
    assert loss == pytest.approx(float(expected) / tokens, rel=EXACT)
    assert max(distance(found, exact).values()) < 5 * EXACT
    for other in (dropped, scaled):  # the figures tell the three apart
        assert float(other) / tokens != pytest.approx(loss, rel=100 * EXACT)


@pytest.mark.parametrize("source", ["online", "cache"])
def test_padded_heads_are_compared_over_what_they_have_in_common(
    tiny_model: Path, tmp_path: Path, source: str
) -> None:
    """Heads of 512 (student) and 528 rows (teacher), of which 500 are tokens of both."""
    import torch

    from distill.train.config import KDConfig
    from distill.train.model import PlainTrunk
    from distill.train.objectives import CachedTeacher, Distillation, OnlineTeacher

    settings = KDConfig(
        teacher="t", source=source, cache=str(tmp_path), top_k=500, weight=1.0,
    )  # fmt: skip
    model, teacher = student(tiny_model), opinionated_teacher(tiny_model)
    teacher.resize_token_embeddings(528)
    of = items(openings=(40, 0))
    expected = torch.zeros((), dtype=torch.float64)
    for item in of:
        s, t = (one_by_one(m, item.sequences[0]) for m in (model, teacher))
        assert (s.shape[1], t.shape[1]) == (512, 528)
        log_s, log_t = (torch.log_softmax(x[:, :500], -1) for x in (s, t))
        expected = expected + divergence_of(log_t, log_s, settings)
    expected = expected / sum(item.sequences[0].num_completion for item in of)
    exact = gradients_of(model, expected)
    source_of: Any = (
        OnlineTeacher(PlainTrunk(teacher, max_length=1024), settings, vocabulary=500)
        if source == "online"
        else CachedTeacher(
            cache_of(teacher, of, tmp_path, width=500, settings=settings), settings, vocabulary=500
        )
    )
    module = training(model, Distillation(source_of))
    loss, found = loss_and_gradients(module, of, TrainConfig(method="kd", kd=settings))
    assert loss == pytest.approx(float(expected), rel=EXACT)
    assert max(distance(found, exact).values()) < 5 * EXACT
