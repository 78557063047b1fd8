from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from cluster.errors import ConfigError, DataError
from distill.train.config import StudentConfig, TrainConfig
from distill.train.prepare import prepare

pytestmark = pytest.mark.model

RECORDS = [
    {
        "example_id": f"e{i}",
        "messages": [{"role": "user", "content": "Bank: ACME Ltd USD 1,204.50" + "!" * i}],
        "completion": '{"classification": "TIMING_DIFFERENCE"}',
    }
    for i in range(8)
]
REASONED = [{**record, "rationale": "The amounts agree."} for record in RECORDS]


def prepared(model: Path, **changes: Any) -> tuple[dict[str, Any], Any]:
    student = {k: v for k, v in changes.items() if k not in ("records", "validation", "train")}
    return prepare(
        StudentConfig(**{"model": str(model), **student}),
        TrainConfig(**{"workers": 2, **changes.get("train", {})}),
        records=changes.get("records", RECORDS),
        validation=changes.get("validation", RECORDS[:2]),
    )


def test_records_come_back_encoded_with_what_was_left_out(tiny_model: Path) -> None:
    long = {**RECORDS[0], "example_id": "long", "completion": "no " * 500}
    summary, (training, validation) = prepared(
        tiny_model, max_length=200, records=[*RECORDS, long], validation=[RECORDS[0], long]
    )
    assert [r.example_id for r in training] == [r["example_id"] for r in RECORDS]
    assert summary["dropped_train"] == summary["dropped_validation"] == ["long"]
    assert len(validation) == 1


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"records": RECORDS[:1]}, DataError, "1 training records for 2 workers"),
        ({"max_length": 16}, DataError, "8 above student.max_length 16"),
        ({"validation": []}, DataError, "no validation record is left"),
        ({"target_modules": ["q_prj"]}, ConfigError, "did you mean 'q_proj'"),
        ({"rank": 512}, ConfigError, "student.rank: 512 is above 64"),
        (
            {"train": {"learning_rates": {"lora-B": 16.0}}},
            ConfigError,
            "train.learning_rates.lora-B: no trained parameter's name holds it; did you mean "
            "'lora_B'",
        ),
        (
            {"train": {"learning_rates": {"lora": 2.0, "lora_B": 16.0}}},
            ConfigError,
            "train.learning_rates.lora_B: the keys before it take every parameter that it fits; "
            "put it before them",
        ),
        (
            {"tuning": "full", "train": {"learning_rates": {"lora_B": 16.0}}},
            ConfigError,
            "train.learning_rates.lora_B: no trained parameter's name holds it",
        ),
        (
            {"records": REASONED, "train": {"method": "cot"}},
            DataError,
            "no validation record is left: method 'cot' learns from reasoning, and none of 2 "
            "validation records has a rationale; set teacher.reasoning = true",
        ),
        (
            {
                "records": REASONED,
                "validation": [*RECORDS[:2], {**REASONED[0], "completion": "no " * 500}],
                "train": {"method": "cot"},
                "max_length": 200,
            },
            DataError,
            "no validation record is left .3 given, 1 above student.max_length 200, 2 without a "
            "rationale.; .* raise student.max_length, set teacher.reasoning = true",
        ),
    ],
)
def test_what_cannot_be_trained_is_refused(
    tiny_model: Path, changes: dict[str, Any], error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        prepared(tiny_model, **changes)


@pytest.mark.parametrize("tuning", ["lora", "dora", "qlora", "full"])
def test_rates_by_names_that_the_student_has_pass(tiny_model: Path, tuning: str) -> None:
    key = "q_proj.weight" if tuning == "full" else "lora_B"
    _, (training, _) = prepared(tiny_model, tuning=tuning, train={"learning_rates": {key: 16.0}})
    assert len(training) == len(RECORDS)


def test_a_template_without_a_generation_prompt_is_refused(
    tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").write_text(
        "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}<|im_end|>{% endfor %}"
    )
    with pytest.raises(ConfigError, match=f"{folder}' has no generation prompt"):
        prepared(folder)


def cached(teacher: Path, uri: Path) -> tuple[TrainConfig, Path]:
    """Settings that read a cache of `RECORDS`, and its folder; every token is equally likely."""
    from transformers import AutoTokenizer

    from distill.train.cache_key import cache_key
    from distill.train.encode import encode_records
    from distill.train.logprobs import TopK
    from distill.train.logprobs_writer import plan_cache, write_shard
    from distill.train.vocabulary import load_vocabulary

    kd = {"teacher": str(teacher), "source": "cache", "cache": str(uri), "top_k": 4}
    train = TrainConfig(workers=2, method="kd", kd=kd)
    tokenizer = AutoTokenizer.from_pretrained(teacher)
    vocabulary = load_vocabulary(student=str(teacher), teacher=str(teacher))
    encoded = encode_records(tokenizer, [*RECORDS, *RECORDS[:2]], max_length=1024).records
    key = cache_key(train.kd, vocabulary=vocabulary, tokenizer=tokenizer, records=encoded)
    store, shards, _ = plan_cache(uri, key, encoded)
    width = vocabulary.size
    for shard in shards:
        counts = [record.num_completion for record in shard.records]
        rows = [
            TopK(
                np.tile(np.arange(4, dtype=np.int32), (n, 1)),
                np.full((n, 4), -np.log(width), dtype=np.float32),
                np.full(n, np.log(1 - 4 / width), dtype=np.float32),
            )
            for n in counts
        ]
        write_shard(store, shard, rows)
    return train, Path(store.path())


def test_a_teachers_cache_is_read_whole_before_training(tiny_model: Path, tmp_path: Path) -> None:
    train, folder = cached(tiny_model, tmp_path)
    told = {"train": train.model_dump()}
    summary, _ = prepared(tiny_model, **told)
    assert summary["cache_key"].digest == folder.name

    shard = folder / "part-00000.parquet"
    table = pq.read_table(shard)
    rows = table.to_pylist()
    rows[3]["logprobs"][2 * 4] = float("nan")  # the third token's likeliest id
    pq.write_table(type(table).from_pylist(rows, schema=table.schema), shard)
    name = rows[3]["example_id"]
    with pytest.raises(
        DataError, match=f"record {name}: log-probability nan at completion token 2"
    ):
        prepared(tiny_model, **told)


def general(folder: Path, count: int) -> str:
    """A file of so many general-domain records."""
    path = folder / "general.jsonl"
    rows = [{"prompt": f"What is {i} + {i}?", "completion": f"{2 * i}"} for i in range(count)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def mixed_in(model: Path, data: str, *, fraction: float, seed: int = 0) -> list[str]:
    """Ids of the general-domain records among the training items."""
    train = {"mix": {"data": data, "fraction": fraction}, "seed": seed}
    _, (training, validation) = prepared(model, train=train)
    own = [record["example_id"] for record in RECORDS]
    ids = [item.example_id for item in training]
    assert [name for name in ids if name in own] == own
    assert {item.example_id for item in validation} <= set(own)
    assert len(set(ids)) == len(ids)
    return [name for name in ids if name not in own]


@pytest.mark.parametrize(("fraction", "count"), [(0.2, 2), (0.5, 8), (0.6, 12)])
def test_general_domain_records_make_up_the_share_asked_for(
    tiny_model: Path, tmp_path: Path, fraction: float, count: int
) -> None:
    mixed = mixed_in(tiny_model, general(tmp_path, 40), fraction=fraction)
    assert len(mixed) == count
    assert len(mixed) / (len(mixed) + len(RECORDS)) == pytest.approx(fraction)


def test_the_seed_decides_which_general_domain_records(tiny_model: Path, tmp_path: Path) -> None:
    data = general(tmp_path, 40)
    first, again, other = (
        mixed_in(tiny_model, data, fraction=0.5, seed=seed) for seed in (1, 1, 2)
    )
    assert first == again
    assert set(first) != set(other)


def test_too_few_general_domain_records_are_counted(tiny_model: Path, tmp_path: Path) -> None:
    data = general(tmp_path, 7)
    with pytest.raises(DataError, match=r"a share of 0.5 takes 8 records, .*general.jsonl has 7"):
        mixed_in(tiny_model, data, fraction=0.5)
    assert len(mixed_in(tiny_model, general(tmp_path, 8), fraction=0.5)) == 8


def test_preference_pairs_are_no_general_domain_records(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}) + "\n")
    with pytest.raises(DataError, match="holds preference pairs; give prompts with one answer"):
        mixed_in(tiny_model, str(path), fraction=0.5)
