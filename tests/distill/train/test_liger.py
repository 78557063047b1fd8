"""`train.liger`: an error before anything is loaded, or nothing at all where it cannot help."""

from __future__ import annotations

from importlib.util import find_spec

import pytest

from cluster.errors import ConfigError
from distill.train.config import TrainConfig
from distill.train.liger import check_liger, use_liger


def test_liger_on_says_what_is_missing() -> None:
    with pytest.raises(ConfigError, match=r"train\.liger 'on' needs CUDA"):
        check_liger(TrainConfig(liger="on"), on_gpu=False)
    if find_spec("liger_kernel") is None:
        with pytest.raises(ConfigError, match="pip install liger-kernel"):
            check_liger(TrainConfig(liger="on"), on_gpu=True)


@pytest.mark.parametrize("wanted", ["auto", "off"])
def test_on_cpu_the_model_stays_as_it_is(wanted: str) -> None:
    train = TrainConfig.model_validate({"liger": wanted})
    check_liger(train, on_gpu=False)
    assert not use_liger(object(), train, on_gpu=False)
