"""Every method's loss and gradients on a tiny model, against references written out here."""

from __future__ import annotations

import math
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
    student,
    training,
)

from distill.train.config import TrainConfig
from distill.train.encode import Encoded, Item

pytestmark = pytest.mark.model


@pytest.mark.parametrize("openings", [(0,), (70,), (70, 0, 40)])
@pytest.mark.parametrize("parts", [1, 3])
def test_packed_shared_and_accumulated_is_one_sequence_at_a_time(
    tiny_model: Path, openings: tuple[int, ...], parts: int
) -> None:
    import torch

    of = items(openings=openings)
    model = student(tiny_model)
    expected = torch.cat([negative_log_likelihood(model, i.sequences[0]) for i in of]).mean()
    exact = gradients_of(model, expected)
    for padded in (False, True):
        loss, found = loss_and_gradients(training(model, padded=padded), of, parts=parts)
        assert loss == pytest.approx(float(expected), rel=EXACT)
        assert max(distance(found, exact).values()) < EXACT


@pytest.mark.parametrize("tuning", ["rslora", "dora", "full"])
def test_other_tunings_are_exact_too(tiny_model: Path, tuning: str) -> None:
    import torch

    of = items(openings=(40, 0))
    model = student(tiny_model, tuning=tuning)
    expected = torch.cat([negative_log_likelihood(model, i.sequences[0]) for i in of]).mean()
    exact = gradients_of(model, expected)
    loss, found = loss_and_gradients(training(model), of)
    assert loss == pytest.approx(float(expected), rel=EXACT)
    # A weight that embeds and reads out is one parameter; its gradient comes from both ends.
    assert max(distance(found, exact).values()) < EXACT


@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_a_micro_batch_without_records_has_no_loss_and_a_backward_pass(
    tiny_model: Path, tuning: str
) -> None:
    loss, gradients = loss_and_gradients(training(student(tiny_model, tuning=tuning)), [])
    assert loss == 0
    assert all(float(gradient.norm()) == 0 for gradient in gradients.values())


def test_logits_that_a_model_caps_are_capped(tmp_path: Path, tiny_model: Path) -> None:
    import torch
    from transformers import AutoTokenizer, Gemma2Config, Gemma2ForCausalLM

    torch.manual_seed(4)
    config = Gemma2Config(
        vocab_size=600, hidden_size=32, intermediate_size=64, num_hidden_layers=2, head_dim=8,
        num_attention_heads=4, num_key_value_heads=2, final_logit_softcapping=1.5,
        attn_logit_softcapping=None, sliding_window=2048, query_pre_attn_scalar=8,
    )  # fmt: skip
    Gemma2ForCausalLM(config).save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    model = student(tmp_path)
    of = items(openings=(40, 0))
    expected = torch.cat([negative_log_likelihood(model, i.sequences[0]) for i in of]).mean()
    exact = gradients_of(model, expected)
    loss, found = loss_and_gradients(training(model), of)
    assert loss == pytest.approx(float(expected), rel=EXACT)
    assert max(distance(found, exact).values()) < 5 * EXACT


def test_many_rows_in_chunks_are_the_full_loss(tiny_model: Path) -> None:
    """More rows than a chunk holds, with a frozen head and with one that learns."""
    import torch

    from distill.train.head import CHUNK, row_losses

    torch.manual_seed(0)
    head = torch.nn.Linear(16, 50, bias=False)
    rows, targets = torch.randn(2 * CHUNK + 37, 16), torch.randint(0, 50, (2 * CHUNK + 37,))
    upstream = torch.rand(len(rows))

    def of(logits: Any, part: slice) -> Any:
        return torch.nn.functional.cross_entropy(logits, targets[part], reduction="none")

    for learns in (False, True):
        head.weight.requires_grad_(learns)
        mine, plain = rows.clone().requires_grad_(), rows.clone().requires_grad_()
        head.weight.grad = None
        (row_losses(mine, head, of) * upstream).sum().backward()
        weight, head.weight.grad = head.weight.grad, None
        (of(head(plain), slice(None)) * upstream).sum().backward()
        torch.testing.assert_close(mine.grad, plain.grad, rtol=1e-5, atol=1e-7)
        if learns:
            torch.testing.assert_close(weight, head.weight.grad, rtol=1e-5, atol=1e-5)


def test_cot_weighs_reasoning_and_answer(tiny_model: Path) -> None:
    import torch

    config = TrainConfig(method="cot", cot={"rationale_weight": 0.25, "answer_weight": 2.0})
    of = []
    for item in items(openings=(30,)):
        sequence = item.sequences[0]
        reasoned = Encoded(
            sequence.example_id, sequence.tokens, sequence.num_prompt, num_rationale=9
        )
        of.append(Item(item.example_id, (reasoned,)))
    model = student(tiny_model)
    total, weights = torch.zeros(()), 0.0
    for item in of:
        losses = negative_log_likelihood(model, item.sequences[0])
        mine = torch.tensor([0.25] * 9 + [2.0] * (len(losses) - 9))
        total, weights = total + (mine * losses).sum(), weights + float(mine.sum())
    exact = gradients_of(model, total / weights)
    loss, found = loss_and_gradients(training(model), of, config, parts=2)
    assert loss == pytest.approx(float(total) / weights, rel=EXACT)
    assert max(distance(found, exact).values()) < EXACT


def test_multitask_adds_three_means(tiny_model: Path) -> None:
    import torch

    config = TrainConfig(method="multitask", multitask={"alpha": 0.3, "beta": 0.7})
    answers = [item.sequences[0] for item in items(openings=(30,))]
    of = []
    for i, answer in enumerate(answers):
        prompt = answer.tokens[: answer.num_prompt]
        label = Encoded(answer.example_id, [*prompt, 7, 8], len(prompt), kind="label")
        why = Encoded(answer.example_id, [*prompt, *range(9, 19)], len(prompt), kind="rationale")
        # One record has no rationale: the mean is over those that have.
        of.append(Item(answer.example_id, (answer, label) if i == 0 else (answer, label, why)))
    model = student(tiny_model)
    mean: dict[str, Any] = {}
    for kind in ("label", "rationale", "answer"):
        these = [s for item in of for s in item.sequences if s.kind == kind]
        mean[kind] = torch.cat([negative_log_likelihood(model, s) for s in these]).mean()
    expected = mean["label"] + 0.3 * mean["rationale"] + 0.7 * mean["answer"]
    exact = gradients_of(model, expected)
    loss, found = loss_and_gradients(training(model), of, config, parts=2)
    assert loss == pytest.approx(float(expected), rel=EXACT)
    assert max(distance(found, exact).values()) < EXACT


def test_dpo_is_the_papers_formula(tiny_model: Path) -> None:
    import torch

    from distill.train.objectives import Preference

    beta = 0.5
    singles = items(openings=(50, 30, 20, 10), lengths=(60, 41))
    by_opening: dict[str, list[Encoded]] = {}
    for item in singles:
        by_opening.setdefault(item.example_id.split("/")[0], []).append(item.sequences[0])
    of = []
    for name, (a, b) in by_opening.items():
        width = int(name)  # the prompt is what both share, the answers are the rest
        pair = [Encoded(name, s.tokens, width) for s in (a, b)]
        of.append(Item(name, (pair[0], pair[1])))
    model = student(tiny_model)
    expected = torch.zeros((), dtype=torch.float64)
    for item in of:
        logp = [-negative_log_likelihood(model, s).sum() for s in item.sequences]
        with torch.no_grad(), model.disable_adapter():
            reference = [-negative_log_likelihood(model, s).sum() for s in item.sequences]
        gap = (logp[0] - reference[0]) - (logp[1] - reference[1])
        expected = expected - torch.log(1 / (1 + torch.exp(-beta * gap))) / len(of)
    exact = gradients_of(model, expected)
    config = TrainConfig(method="dpo")
    loss, found = loss_and_gradients(training(model, Preference(beta)), of, config, parts=2)
    assert loss == pytest.approx(float(expected), rel=EXACT)
    assert max(distance(found, exact).values()) < 5 * EXACT


def test_a_fresh_adapter_prefers_neither(tiny_model: Path) -> None:
    from distill.train.objectives import Preference

    model = student(tiny_model)
    for name, weight in model.named_parameters():
        if "lora_B" in name:
            weight.data.zero_()
    first, second = (i.sequences[0] for i in items(openings=(50,), lengths=(60, 41)))
    loss, _ = loss_and_gradients(
        training(model, Preference(0.1)),
        [Item("a", (first, second))],
        TrainConfig(method="dpo"),
    )
    assert loss == pytest.approx(math.log(2), rel=1e-6)


def test_dpo_by_hand_on_cpu_agrees_with_the_plain_step(tiny_model: Path) -> None:
    from distill.train.cpu_model import why_not
    from distill.train.objectives import Preference

    model = student(tiny_model, "bf16")
    if why_not(model, zero_stage=2):
        pytest.skip("no C++ compiler")
    pair = [i.sequences[0] for i in items(openings=(50,), lengths=(60, 41))]
    of = [Item("a", (pair[0], pair[1]))]
    config = TrainConfig(method="dpo")
    exact_loss, exact = loss_and_gradients(
        training(student(tiny_model), Preference(0.1)), of, config
    )
    plain_loss, plain = loss_and_gradients(training(model, Preference(0.1)), of, config)
    fast_loss, fast = loss_and_gradients(
        training(student(tiny_model, "bf16"), Preference(0.1), fast=True), of, config
    )
    assert fast_loss == pytest.approx(exact_loss, abs=2 * abs(plain_loss - exact_loss) + 0.02)
    far, reference = distance(fast, exact), distance(plain, exact)
    for name in far:
        assert far[name] < 2 * reference[name] + 0.02, name


def test_qlora_is_lora_over_the_dequantised_weights(tiny_model: Path, tmp_path: Path) -> None:
    import torch
    from bitsandbytes.functional import dequantize_4bit
    from transformers import AutoModelForCausalLM, AutoTokenizer

    of = items(openings=(40,))
    model = student(tiny_model, tuning="qlora")
    inner = dict(model.get_base_model().named_modules())
    plain = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    quantised = 0
    for name, module in plain.named_modules():
        weight: Any = getattr(getattr(inner.get(name), "base_layer", None), "weight", None)
        if type(weight).__name__ == "Params4bit":
            quantised += 1
            assert weight.quant_state.quant_type == "nf4"
            assert weight.quant_state.nested  # double quantisation
            module.weight.data = dequantize_4bit(weight.data, weight.quant_state).float()
    assert quantised == 14  # seven linear layers in each of two blocks
    plain.save_pretrained(tmp_path)
    AutoTokenizer.from_pretrained(tiny_model).save_pretrained(tmp_path)
    # As the loop does: a look at the held-out loss comes before the first step.
    model.eval()
    with torch.no_grad():
        training(model)(
            training(model).batch(of, pad_token=0, device=torch.device("cpu")), {"answer": 1.0}
        )
    model.train()
    loss, found = loss_and_gradients(training(model), of)
    exact_loss, exact = loss_and_gradients(training(student(tmp_path)), of)
    assert loss == pytest.approx(exact_loss, rel=1e-5)
    assert all("lora_" in name for name in found)
    assert max(distance(found, exact).values()) < 1e-4


@pytest.mark.parametrize(
    ("settings", "counts", "expected"),
    [
        ({}, {"answer": 30}, 30),
        ({"method": "dpo"}, {"answer": 30}, 30),
        ({"method": "multitask"}, {"answer": 30, "label": 4, "rationale": 50}, 84),
        (
            {"method": "multitask", "multitask": {"alpha": 0.0, "beta": 0.0}},
            {"answer": 30, "label": 4, "rationale": 50},
            4,
        ),
        # Without a label nothing is learnt, which `MaskAllZero` names.
        (
            {"method": "multitask", "multitask": {"alpha": 0.0, "beta": 0.0}},
            {"answer": 30, "rationale": 50},
            0,
        ),
        (
            {"method": "cot", "cot": {"answer_weight": 1.0, "rationale_weight": 0.0}},
            {"answer": 30, "rationale": 50},
            30,
        ),
    ],
)
def test_tokens_of_a_kind_without_weight_are_not_tokens_with_loss(
    settings: dict[str, Any], counts: dict[str, int], expected: int
) -> None:
    from distill.train.objectives import KINDS, shares_of, tokens_with_loss

    train = TrainConfig(**settings)
    counts = dict.fromkeys(KINDS, 0) | counts
    of = shares_of(counts, num_items=8, train=train)
    assert tokens_with_loss(counts, of) == expected
