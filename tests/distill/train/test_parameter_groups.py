"""Rates of their own for some parameters: what `train.learning_rates` does to the optimiser."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from training import student, training

from cluster.errors import ConfigError
from distill.train.config import TrainConfig

pytestmark = pytest.mark.model


def grouped(module: Any, rates: dict[str, float]) -> dict[str, float]:
    """Name of each parameter in a group -> the factor of its rate; none may come twice."""
    from distill.train.setup import parameter_groups

    groups, factors = parameter_groups(module, TrainConfig(learning_rates=rates))
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    found = [
        (names[id(parameter)], factor)
        for group, factor in zip(groups, factors, strict=True)
        for parameter in group["params"]
    ]
    assert len(dict(found)) == len(found)
    return dict(found)


def test_lora_plus_is_a_higher_rate_of_the_b_matrices(tiny_model: Path) -> None:
    module = training(student(tiny_model))
    trained = {name for name, p in module.named_parameters() if p.requires_grad}
    rates = grouped(module, {"lora_B": 16.0})
    assert rates == {name: 16.0 if "lora_B" in name else 1.0 for name in trained}
    assert sorted(rates.values()) == [1.0] * 14 + [16.0] * 14  # A and B of 14 linear layers
    assert grouped(module, {}) == dict.fromkeys(trained, 1.0)


def test_the_first_key_that_fits_counts(tiny_model: Path) -> None:
    rates = grouped(training(student(tiny_model)), {"layers.0.": 0.5, "lora_B": 16.0})
    for name, factor in rates.items():
        assert factor == (0.5 if "layers.0." in name else 16.0 if "lora_B" in name else 1.0)


def test_a_key_that_fits_nothing_is_named(tiny_model: Path) -> None:
    module = training(student(tiny_model))
    # The norms are there, but frozen: a rate for them would do nothing.
    for key in ("lora_C", "input_layernorm"):
        with pytest.raises(ConfigError, match=f"train.learning_rates.{key}: .*lora_A"):
            grouped(module, {"lora_B": 16.0, key: 2.0})
