"""What a registry's files must be before an engine sees them."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from cluster.errors import RegistryError
from serve.adapters import check_files, check_manifest


def manifest(**changes: Any) -> Any:
    told = {"model_name": "reconcile@v1", "base_digest": "a" * 64, "rank": 8}
    return SimpleNamespace(**told | changes)


def files(folder: Path, *, rank: int = 8, value: float = 0.5) -> Path:
    (folder / "adapter_config.json").write_text(json.dumps({"r": rank}))
    weights = torch.full((8, 4), 0.1)
    weights[3, 2] = value
    save_file({"q_proj.lora_A.weight": weights}, folder / "adapter_model.safetensors")
    return folder


def test_what_the_manifest_says_is_taken(tmp_path: Path) -> None:
    check_files(files(tmp_path), model_id="reconcile@v1", manifest=manifest())
    check_manifest(manifest(), base_digest="a" * 64, max_rank=8)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_an_adapter_with_one_weight_that_is_no_number_is_refused(
    tmp_path: Path, value: float
) -> None:
    with pytest.raises(RegistryError, match=r"reconcile@v1: tensor q_proj.lora_A.weight holds NaN"):
        check_files(files(tmp_path, value=value), model_id="reconcile@v1", manifest=manifest())


def test_another_rank_than_the_manifests_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RegistryError, match="has rank 16, manifest 8"):
        check_files(files(tmp_path, rank=16), model_id="reconcile@v1", manifest=manifest())


def test_another_base_or_too_large_a_rank_is_refused_before_anything_is_fetched() -> None:
    with pytest.raises(RegistryError, match="base model with digest bbbb"):
        check_manifest(manifest(base_digest="b" * 64), base_digest="a" * 64, max_rank=8)
    with pytest.raises(RegistryError, match=r"serve.max_lora_rank"):
        check_manifest(manifest(rank=64), base_digest="a" * 64, max_rank=16)
