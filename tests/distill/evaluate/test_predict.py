"""Predictions by a real vLLM engine on a real Ray, against transformers' own greedy decoding."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from local_ray import local_ray

from cluster.errors import DataError, StageError
from distill.config import EvaluateConfig
from distill.evaluate.predict import predict
from distill.records import example_id

MAX_TOKENS = 12
# In a process of its own, so that torch and PEFT never enter the test process.
REFERENCE = """
import json, sys, torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer
folder, adapter, max_tokens = sys.argv[1], sys.argv[2], int(sys.argv[3])
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
torch.manual_seed(1)
tuned = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules="all-linear",
                                         init_lora_weights=False))
tuned.save_pretrained(adapter)
answers = {"base": [], "student": []}
for messages in json.load(sys.stdin):
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True,
                                        return_tensors="pt")
    length = ids["input_ids"].shape[1]
    def answer():
        out = tuned.generate(**ids, max_new_tokens=max_tokens, do_sample=False)[0, length:]
        return [tokenizer.decode(out, skip_special_tokens=True), len(out), length]
    with tuned.disable_adapter():
        answers["base"].append(answer())
    answers["student"].append(answer())
print(json.dumps(answers))
"""


def prompt(text: str) -> dict[str, object]:
    messages = [
        {"role": "system", "content": "Answer in JSON."},
        {"role": "user", "content": text},
    ]
    return {"example_id": example_id(messages), "messages": messages}


PROMPTS = [prompt(f"Bank: 2025-03-{day} ACME USD {day * 7}.50; ERP: none") for day in range(10, 15)]


def test_an_adapter_of_another_rank_is_refused_before_an_engine_starts(tmp_path: Path) -> None:
    arguments = {
        "model": "unused",
        "adapter": tmp_path,
        "rank": 8,
        "prompts": PROMPTS,
        "config": EvaluateConfig(),
        "accelerator": None,
        "max_model_len": 256,
    }
    with pytest.raises(DataError, match=r"no adapter_config\.json"):
        predict(**arguments)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 16}))
    with pytest.raises(DataError, match=r"rank 16, the run's student\.rank is 8"):
        predict(**arguments)
    with pytest.raises(DataError, match="no held-out prompts"):
        predict(**(arguments | {"prompts": []}))


@pytest.fixture(scope="module")
def ray_runtime() -> Iterator[None]:
    with local_ray(num_cpus=2, object_store_mib=100):
        yield


@pytest.mark.ray
@pytest.mark.model
def test_greedy_answers_equal_transformers(
    tiny_model: Path, tmp_path: Path, ray_runtime: None
) -> None:
    adapter = tmp_path / "adapter"
    done = subprocess.run(
        [sys.executable, "-c", REFERENCE, str(tiny_model), str(adapter), str(MAX_TOKENS)],
        input=json.dumps([p["messages"] for p in PROMPTS]),
        capture_output=True,
        text=True,
        check=True,
    )
    expected = json.loads(done.stdout)
    too_long = prompt("x" * 2000)
    seen: list[tuple[str, int, int]] = []

    answers = predict(
        model=str(tiny_model),
        adapter=adapter,
        rank=4,
        prompts=[*PROMPTS, too_long],
        # float32 and one request at a time: no rounding that depends on who shares the batch.
        config=EvaluateConfig(
            max_tokens=MAX_TOKENS, concurrency=1, engine={"dtype": "float32"}, kv_cache_gb=1
        ),
        accelerator=None,
        max_model_len=256,
        on_progress=lambda *step: seen.append(step),
    )

    for name in ("base", "student"):
        *rows, refused = answers[name]
        assert [r["example_id"] for r in rows] == [p["example_id"] for p in PROMPTS]
        assert [
            [r["completion"], r["completion_tokens"], r["prompt_tokens"]] for r in rows
        ] == expected[name]
        assert all(r["latency_s"] > 0 and r["error"] == "" for r in rows)
        assert refused["completion"] == ""
        assert "256" in refused["error"]
    assert expected["base"] != expected["student"]
    assert seen[0] == ("engine", 0, 12)
    assert ("base", 6, 12) in seen
    assert seen[-1] == ("student", 12, 12)


@pytest.mark.ray
@pytest.mark.model
def test_an_engine_that_cannot_start_says_why(tmp_path: Path, ray_runtime: None) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(StageError, match="vLLM could not start with") as error:
        predict(
            model=str(tmp_path),
            adapter=None,
            rank=0,
            prompts=PROMPTS,
            config=EvaluateConfig(),
            accelerator=None,
            max_model_len=256,
        )
    assert "Traceback" not in str(error.value)
    assert "model_type" in str(error.value)
