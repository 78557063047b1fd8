"""The stage on a real Ray: what it writes, what a killed driver costs, what it refuses."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from local_ray import local_ray

from cluster.errors import ConfigError
from distill.train.cache_key import cache_key
from distill.train.cache_logprobs import CacheResult, cache_logprobs
from distill.train.config import KDConfig, StudentConfig, TrainConfig
from distill.train.encode import encode_records
from distill.train.logprobs import LogprobCache
from distill.train.logprobs_writer import plan_cache, write_shard
from distill.train.teacher_logprobs import TeacherScorer
from distill.train.vocabulary import Vocabulary

pytestmark = [pytest.mark.ray, pytest.mark.model]

TOP_K = 32
RECORDS = [
    {
        "example_id": f"e{i}",
        "messages": [{"role": "user", "content": f"Bank: {'x' * random.Random(i).randint(1, 60)}"}],
        "completion": json.dumps({"classification": "TIMING_DIFFERENCE", "days": i}),
    }
    for i in range(200)
]


def settings(teacher: Path, cache: Path) -> TrainConfig:
    kd = KDConfig(teacher=str(teacher), source="cache", cache=str(cache), top_k=TOP_K)
    return TrainConfig(method="kd", kd=kd, workers=1)


def asked(model: Path, teacher: Path, cache: Path, **more: Any) -> CacheResult:
    return cache_logprobs(
        StudentConfig(model=str(model)),
        settings(teacher, cache),
        records=RECORDS[:160],
        validation=RECORDS[160:],
        tokens_per_shard=300,
        **more,
    )


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    with local_ray() as address:
        yield address


def files(folder: Path) -> dict[str, bytes]:
    return {f.name: f.read_bytes() for f in folder.iterdir() if not f.name.startswith(".")}


DRIVER = """
import json, sys
import ray
from distill.train.cache_logprobs import cache_logprobs
from distill.train.config import StudentConfig, TrainConfig
told = json.load(open(sys.argv[1]))
ray.init(address=told.pop("address"), log_to_driver=False)
cache_logprobs(StudentConfig(**told.pop("student")), TrainConfig(**told.pop("train")), **told)
"""


def in_this_process(model: Path, cache: Path) -> Path:
    """The same cache without Ray and undisturbed, with one thread as its workers have."""
    import torch
    from transformers import AutoTokenizer

    kd = settings(model, cache).kd
    tokenizer = AutoTokenizer.from_pretrained(model)
    encoded = encode_records(tokenizer, RECORDS, max_length=1024).records
    key = cache_key(kd, vocabulary=Vocabulary(512), tokenizer=tokenizer, records=encoded)
    store, shards, _ = plan_cache(cache, key, encoded, tokens_per_shard=300)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    scorer = TeacherScorer(
        str(model),
        device=torch.device("cpu"),
        top_k=TOP_K,
        temperature=1.0,
        vocabulary_size=512,
    )
    for shard in shards:
        write_shard(store, shard, scorer(shard.records))
    torch.set_num_threads(threads)
    read = LogprobCache.open(cache, key)
    read.check(encoded)
    assert read.rows("e7").ids.shape == (encoded[7].num_completion, TOP_K)
    return Path(store.path())


def test_a_killed_driver_asks_the_teacher_only_for_what_is_missing(
    ray_address: str, tiny_model: Path, tmp_path: Path
) -> None:
    undisturbed = in_this_process(tiny_model, tmp_path / "whole")
    told = {
        "address": ray_address,
        "student": {"model": str(tiny_model)},
        "train": settings(tiny_model, tmp_path / "killed").model_dump(),
        "records": RECORDS[:160],
        "validation": RECORDS[160:],
        "tokens_per_shard": 300,
    }
    (tmp_path / "told.json").write_text(json.dumps(told))
    driver = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(tmp_path / "told.json")],
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    folder = tmp_path / "killed" / undisturbed.name
    deadline = time.monotonic() + 120
    while len(list(folder.glob("part-*"))) < 2:
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.01)
    driver.kill()
    driver.wait()
    before = {file.name: file.stat().st_mtime_ns for file in folder.glob("part-*")}
    assert len(before) < len(list(undisturbed.glob("part-*")))

    seen: list[tuple[int, int, float]] = []
    result = asked(
        tiny_model, tiny_model, tmp_path / "killed", on_progress=lambda *state: seen.append(state)
    )
    assert 0 < result.asked_tokens == seen[-1][0] == seen[-1][1]
    assert result.num_records == len(RECORDS)
    assert result.num_bytes <= 300 * result.num_tokens
    assert (result.dropped, result.note) == ([], "")
    for name, written_at in before.items():
        assert (folder / name).stat().st_mtime_ns == written_at
    assert files(folder) == files(undisturbed)
    assert asked(tiny_model, tiny_model, tmp_path / "killed").asked_tokens == 0


def test_what_cannot_be_compared_is_refused_before_the_teacher_is_loaded(
    ray_address: str, tiny_model: Path, tmp_path: Path
) -> None:
    teacher = tmp_path / "teacher"
    teacher.mkdir()
    for name in ("config.json", "tokenizer_config.json"):
        shutil.copy(tiny_model / name, teacher)
    tokenizer = json.loads((tiny_model / "tokenizer.json").read_text())
    vocab = tokenizer["model"]["vocab"]
    vocab["A"], vocab["B"] = vocab["B"], vocab["A"]
    (teacher / "tokenizer.json").write_text(json.dumps(tokenizer))
    with pytest.raises(ConfigError, match=r"differ in 2 tokens: 'A' is id"):
        asked(tiny_model, teacher, tmp_path / "cache")
    assert not (tmp_path / "cache").exists()
