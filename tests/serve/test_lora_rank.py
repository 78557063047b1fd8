"""A rank between those that vLLM takes is served in the next larger slot."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path

import pytest

from cluster.lora_rank import LARGEST, RANKS, engine_rank
from distill.evaluate.engine import EnginePlan
from serve.app import engine_config
from serve.config import ServeConfig


@pytest.mark.parametrize(
    ("rank", "room"), [(1, 1), (2, 8), (8, 8), (24, 32), (257, 320), (512, 512)]
)
def test_the_engine_makes_room_for_the_next_rank_that_vllm_takes(rank: int, room: int) -> None:
    assert engine_rank(rank) == room


def test_the_ranks_are_those_of_the_installed_vllm() -> None:
    found = importlib.util.find_spec("vllm")
    assert found is not None
    assert found.origin is not None
    # Read, not imported: importing vLLM takes seconds.
    lines = (Path(found.origin).parent / "config" / "lora.py").read_text().splitlines()
    line = next(line for line in lines if line.startswith("MaxLoRARanks = Literal"))
    assert tuple(ast.literal_eval(line.removeprefix("MaxLoRARanks = Literal"))) == RANKS


@pytest.mark.parametrize(("limit", "room"), [(24, 32), (LARGEST, LARGEST)])
def test_serving_and_evaluating_ask_for_the_same_room(limit: int, room: int) -> None:
    config = ServeConfig(max_lora_rank=limit)
    served = engine_config(config, base_model="org/model", accelerator="H100").engine_kwargs
    plan = EnginePlan(
        model="org/model", max_model_len=64, rank=limit, concurrency=1, on_cpu=False,
        kv_cache_gb=1, extra={},
    )  # fmt: skip
    assert served["max_lora_rank"] == plan.arguments()["max_lora_rank"] == room
