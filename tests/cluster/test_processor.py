"""What a machine computes in, by what its processor says of itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster import cpu_engine, processor
from distill.train.config import TrainConfig

SAPPHIRE_RAPIDS = "flags\t\t: fpu avx2 avx512f avx512bw avx512_bf16 amx_bf16 amx_tile\n"
SKYLAKE = "flags\t\t: fpu avx2 avx512f avx512bw avx512dq avx512vl\n"
MILAN = "flags\t\t: fpu sse4_2 fma avx2\n"
GRAVITON_3 = "Features\t: fp asimd sve bf16 i8mm\n"


@pytest.mark.parametrize(
    ("flags", "precision"),
    [(SAPPHIRE_RAPIDS, "bf16"), (SKYLAKE, "fp32"), (MILAN, "fp32"), (GRAVITON_3, "bf16")],
)
def test_bfloat16_where_the_processor_has_its_products(
    tmp_path: Path, flags: str, precision: str
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text("processor\t: 0\n" + flags)
    assert processor.precision(None, cpuinfo=cpuinfo) == precision
    assert processor.precision("H100", cpuinfo=cpuinfo) == "bf16"


def test_tiles_where_the_processor_names_both_flags(tmp_path: Path) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(SAPPHIRE_RAPIDS)
    assert processor.has_tiles_for(64, cpuinfo=cpuinfo)
    assert not processor.has_tiles_for(80, cpuinfo=cpuinfo)
    other = tmp_path / "other"
    other.write_text(GRAVITON_3)
    assert not processor.has_tiles_for(64, cpuinfo=other)


def test_a_system_that_says_nothing_computes_in_float32(tmp_path: Path) -> None:
    assert processor.precision(None, cpuinfo=tmp_path / "nothing") == "fp32"


def test_training_and_engines_agree_and_a_run_may_say_otherwise() -> None:
    train = TrainConfig().for_hardware(None)
    assert train.precision == processor.precision(None)
    assert cpu_engine.engine_arguments(kv_cache_gb=1)["dtype"] == processor.dtype_name(None)
    assert TrainConfig(precision="bf16").for_hardware(None).in_bf16
    assert TrainConfig().for_hardware("H100").in_bf16
