"""The whole stage on a real Ray: what it leaves, and what it survives."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import loopback
import pytest
from local_ray import local_ray

from cluster import metrics
from cluster.errors import ConfigError, DataError, StageError
from distill.train.config import StudentConfig, TrainConfig
from distill.train.saving import upload_prefix
from distill.train.stage import TrainResult, train

pytestmark = [pytest.mark.ray, pytest.mark.model]

STEPS = 40
METRICS_PORT = loopback.free_port()


def examples(first: int, count: int) -> list[dict[str, Any]]:
    """Records whose answer can be read off the prompt."""
    made = []
    for i in range(first, first + count):
        draw = random.Random(i)
        kind, days = draw.choice(["TIMING", "MISSING"]), draw.randint(1, 9)
        made.append(
            {
                "example_id": f"e{i}",
                "messages": [
                    {"role": "system", "content": "You reconcile bank lines."},
                    {"role": "user", "content": f"Bank: {kind} {'x' * draw.randint(1, 60)} {days}"},
                ],
                "completion": json.dumps({"classification": kind, "days": days}),
            }
        )
    return made


TRAINING, VALIDATION = examples(0, 160), examples(1000, 24)


def settings(**changes: Any) -> TrainConfig:
    base: dict[str, Any] = {
        "precision": "fp32",
        "epochs": 2,
        "batch_size": 8,
        "micro_batch_size": 2,
        "learning_rate": 4e-3,
        "eval_every": 10,
        "patience": 100,
    }
    return TrainConfig(**{**base, **changes})


def run(
    model: Path, folder: Path, train_config: TrainConfig, **more: Any
) -> tuple[TrainResult, list[dict[str, Any]]]:
    result = train(
        StudentConfig(model=str(model), rank=8, alpha=16),
        train_config,
        records=more.get("records", TRAINING),
        validation=more.get("validation", VALIDATION),
        run_folder=folder,
        accelerator=None,
        on_progress=more.get("on_progress"),
        say=more.get("say"),
    )
    return result, curves(folder)


def curves(folder: Path, name: str = "curves.jsonl") -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / name).read_text().splitlines()]


def losses(rows: list[dict[str, Any]]) -> list[float]:
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def ray_address() -> Iterator[str]:
    with local_ray(
        _metrics_export_port=METRICS_PORT, _system_config={"metrics_report_interval_ms": 1000}
    ) as address:
        yield address


@pytest.fixture(scope="module")
def undisturbed(
    ray_address: str, tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainResult, list[dict[str, Any]]]:
    """Here, without ZeRO, in float32: what two workers and disturbed runs must equal."""
    config = settings(workers=1, zero_stage=0, in_process=True)
    return run(tiny_model, tmp_path_factory.mktemp("undisturbed"), config)


def test_two_workers_with_zero_2_of_which_one_is_killed_equal_one_without(
    undisturbed: tuple[TrainResult, list[dict[str, Any]]], tiny_model: Path, tmp_path: Path
) -> None:
    killed: list[int] = []

    def kill_once(row: dict[str, Any]) -> None:
        if row["step"] > 10 and not killed:
            starts = (tmp_path / "checkpoints" / "starts.jsonl").read_text().splitlines()
            killed.append(json.loads(starts[-1])["pid"])
            os.kill(killed[0], signal.SIGKILL)

    result, rows = run(tiny_model, tmp_path, settings(), on_progress=kill_once)
    assert killed
    assert result.restarts == 1
    assert [row["step"] for row in rows] == list(range(STEPS + 1))
    one, of_one = undisturbed
    # Only the order of float32 sums differs; Adam's first steps magnify it a little. It went on
    # with the very next batch: every step's loss is the undisturbed one.
    assert losses(rows) == pytest.approx(losses(of_one), rel=2e-3)
    assert result.base_validation_loss == pytest.approx(one.base_validation_loss, rel=1e-5)
    assert result.final_validation_loss == pytest.approx(one.final_validation_loss, rel=2e-3)
    assert result.tokens == one.tokens
    assert [f["step"] for f in result.findings] == [f["step"] for f in one.findings]


@pytest.mark.parametrize(("stage", "begun_by_one"), [(1, False), (3, True)])
def test_two_workers_with_zero_1_and_3_equal_one_without(
    stage: int, begun_by_one: bool, ray_address: str, tiny_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file
    from torch.testing import assert_close

    few: dict[str, Any] = {"max_steps": 10, "eval_every": 2, "keep_checkpoints": 2}
    alone = settings(workers=1, zero_stage=0, in_process=True, **few)
    one, of_one = run(tiny_model, tmp_path / "one", alone)
    two = tmp_path / "two"

    def kill(row: dict[str, Any]) -> None:
        if row["step"] > 4:
            start = curves(two / "checkpoints", "starts.jsonl")[-1]
            with suppress(ProcessLookupError):
                os.kill(start["pid"], signal.SIGKILL)

    if begun_by_one:  # two go on from its checkpoint
        begun = settings(workers=1, zero_stage=stage, max_failures=0, **few)
        with pytest.raises(StageError, match="training failed"):
            run(tiny_model, two, begun, on_progress=kill)
    result, rows = run(tiny_model, two, settings(zero_stage=stage, **few))
    assert len(curves(two / "checkpoints", "starts.jsonl")) == 1 + begun_by_one
    assert losses(rows) == pytest.approx(losses(of_one), rel=2e-3)
    assert result.final_validation_loss == pytest.approx(one.final_validation_loss, rel=2e-3)
    # ZeRO 3 keeps a part of each adapter matrix on each worker; what is saved is whole.
    adapter = "adapter/adapter_model.safetensors"
    assert_close(
        load_file(two / adapter), load_file(tmp_path / "one" / adapter), rtol=1e-2, atol=1e-3
    )
    looks = sorted(row["validation_loss"] for row in rows[1:] if "validation_loss" in row)
    for folder in (tmp_path / "one", two):  # of five looks, the best two
        positions = (folder / "checkpoints").glob("checkpoint_*/position.json")
        kept = [json.loads(path.read_text())["last_loss"] for path in positions]
        assert sorted(kept) == pytest.approx(looks[:2], rel=2e-3)


DRIVER = """
import json, sys
import ray
from distill.train.config import StudentConfig, TrainConfig
from distill.train.stage import train
told = json.load(open(sys.argv[1]))
ray.init(address=told["address"], log_to_driver=False)
train(StudentConfig(**told["student"]), TrainConfig(**told["train"]), records=told["records"],
      validation=told["validation"], run_folder=told["folder"], accelerator=None)
"""


def test_a_killed_driver_is_resumed_by_running_again(
    undisturbed: tuple[TrainResult, list[dict[str, Any]]],
    ray_address: str,
    tiny_model: Path,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    told = {
        "address": ray_address,
        "student": StudentConfig(model=str(tiny_model), rank=8, alpha=16).model_dump(),
        "train": settings().model_dump(),
        "records": TRAINING,
        "validation": VALIDATION,
        "folder": str(folder),
    }
    (tmp_path / "told.json").write_text(json.dumps(told))
    (tmp_path / "driver.py").write_text(DRIVER)
    driver = subprocess.Popen(
        [sys.executable, str(tmp_path / "driver.py"), str(tmp_path / "told.json")],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 300
    while not (folder / "curves.jsonl").exists() or len(curves_so_far(folder)) < 13:
        assert driver.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    driver.kill()
    driver.wait()
    assert not (folder / "adapter").exists()
    # As a worker leaves it that is killed while it uploads.
    left = Path(tempfile.mkdtemp(prefix=upload_prefix(folder / "checkpoints")))

    # Half of the cluster is gone: one worker goes on with what two had cut up between them.
    result, rows = run(tiny_model, folder, settings(workers=1))
    assert result.restarts == 1
    assert losses(rows) == pytest.approx(losses(undisturbed[1]), rel=2e-3)
    assert not left.exists()
    again, _ = run(tiny_model, folder, settings())
    assert again == result  # finished: nothing is trained a second time
    with pytest.raises(ConfigError, match="checkpoints of another run: its train differ"):
        run(tiny_model, folder, settings(seed=3))


def curves_so_far(folder: Path) -> list[str]:
    return (folder / "curves.jsonl").read_text().splitlines()


def test_a_bf16_student_learns_and_its_adapter_loads_in_peft(
    ray_address: str, tiny_model: Path, tmp_path: Path
) -> None:
    import torch
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from distill.train.encode import Item, encode_records
    from distill.train.model import PlainTrunk, Training
    from distill.train.objectives import NextToken, shares

    seen: list[dict[str, Any]] = []
    gauges: dict[str, float] = {}

    def look(row: dict[str, Any]) -> None:
        seen.append(row)
        gauges.update(exported(run=tmp_path.name))

    result, rows = run(
        tiny_model,
        tmp_path,
        settings(precision="bf16", learning_rate=1e-2, workers=1, in_process=True),
        on_progress=look,
    )
    assert gauges.keys() == {f"ray_{name}" for name, _ in metrics.TRAIN_GAUGES.values()}
    assert gauges["ray_distillery_train_total_steps"] == STEPS
    loss = gauges["ray_distillery_train_loss"]
    assert min(abs(loss - value) for value in losses(rows)) < 1e-6
    assert 100 < rows[-1]["memory_mib"] < 20_000
    # The random base's head is frozen, so the loss falls by a quarter, not to nothing.
    assert result.best_validation_loss < 0.85 * result.base_validation_loss
    assert seen[-1]["step"] == seen[-1]["total_steps"] == STEPS
    assert {"epoch", "loss", "learning_rate", "grad_norm", "tokens_per_s"} <= rows[-1].keys()
    adapter = Path(result.adapter)
    assert sorted(p.name for p in adapter.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    saved = json.loads((adapter / "adapter_config.json").read_text())
    assert (saved["r"], saved["base_model_name_or_path"]) == (8, str(tiny_model))
    weights = load_file(adapter / "adapter_model.safetensors")
    assert len(weights) == 2 * 7 * 2  # A and B of 7 linear layers in 2 blocks

    base = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    student = PeftModel.from_pretrained(base, adapter)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    held_out = encode_records(tokenizer, VALIDATION, max_length=1024).records
    module = Training(student, PlainTrunk(student, max_length=1024), NextToken())
    items = [Item(record.example_id, (record,)) for record in held_out]
    batch = module.batch(items, pad_token=0, device=torch.device("cpu"))
    with torch.no_grad():
        loss = module(batch, shares(items, TrainConfig()))
    # The adapter on disk is the best checkpoint: it has that loss, up to bfloat16.
    assert float(loss) == pytest.approx(result.best_validation_loss, rel=0.02)


def exported(*, run: str) -> dict[str, float]:
    """What Ray's metrics agent answers Prometheus about a run's training."""
    text = httpx.get(f"http://127.0.0.1:{METRICS_PORT}/metrics").text
    lines = [line for line in text.splitlines() if f'run="{run}"' in line]
    return {line.partition("{")[0]: float(line.rpartition(" ")[2]) for line in lines}


def test_zero_3_trains_saves_and_stops_early(
    ray_address: str, tiny_model: Path, tmp_path: Path
) -> None:
    # A rate of nearly zero never improves, so the third look is one too many.
    config = settings(zero_stage=3, learning_rate=1e-12, eval_every=2, patience=2, epochs=1)
    long = {**TRAINING[0], "example_id": "long", "completion": "word " * 900}
    said: list[str] = []
    result, rows = run(
        tiny_model,
        tmp_path,
        config,
        records=[*TRAINING, long],
        validation=VALIDATION[:4],
        say=said.append,
    )
    assert result.stopped_early
    assert result.steps < 20
    dropped, stopped = result.findings
    assert (dropped["kind"], dropped["step"]) == ("completion_truncated", 0)
    assert "1 dropped of 161" in dropped["message"]
    assert (stopped["kind"], stopped["step"], stopped["stops"]) == ("plateau", result.steps, True)
    assert curves(tmp_path, "findings.jsonl") == result.findings
    assert said[-1].startswith(f"step {result.steps}: plateau: held-out loss")
    (events,) = (tmp_path / "tensorboard").iterdir()
    assert events.stat().st_size > 100
    assert rows[-1]["step"] == result.steps
    assert (tmp_path / "adapter" / "adapter_model.safetensors").is_file()


def test_what_is_kept_is_the_best_look_not_the_last(
    ray_address: str, tiny_model: Path, tmp_path: Path
) -> None:
    """Held-out records that ask for something else get worse the more is learnt."""
    other = [{**record, "completion": "Quite unlike: " + "why? " * 5} for record in VALIDATION]
    here = settings(workers=1, zero_stage=0, in_process=True, eval_every=5, epochs=1)
    result, rows = run(tiny_model, tmp_path, here, validation=other)
    looks = {row["step"]: row["validation_loss"] for row in rows[1:] if "validation_loss" in row}
    best = min(looks, key=lambda step: looks[step])
    assert best < max(looks)
    assert result.best_validation_loss == looks[best] < result.final_validation_loss
    kept = tmp_path / "checkpoints" / f"checkpoint_{best:06d}" / "adapter"
    name = "adapter_model.safetensors"
    assert (tmp_path / "adapter" / name).read_bytes() == (kept / name).read_bytes()


def test_a_loss_that_is_not_a_number_stops_with_the_records(
    ray_address: str, tiny_model: Path, tmp_path: Path
) -> None:
    import torch
    from safetensors.torch import load_file, save_file

    broken = tmp_path / "broken"
    shutil.copytree(tiny_model, broken)
    weights = load_file(broken / "model.safetensors")
    weights["model.norm.weight"][0] = torch.nan
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(StageError, match=r"not a number at step 1; the batch held e\d+"):
        run(broken, tmp_path / "run", settings(workers=1, in_process=True))
    (found,) = curves(tmp_path / "run", "findings.jsonl")
    assert (found["kind"], found["step"], found["stops"]) == ("not_finite", 1, True)


def test_bad_input_is_one_clear_error_before_training(
    ray_address: str, tiny_model: Path, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match="1 training records for 2 workers"):
        run(tiny_model, tmp_path, settings(), records=TRAINING[:1])
    with pytest.raises(ConfigError, match="nowhere' is no folder"):
        run(Path("/nowhere"), tmp_path / "other", settings())
    with pytest.raises(ConfigError, match=r"in_process trains on CPU .* 'H100'"):
        train(
            StudentConfig(model=str(tiny_model)),
            settings(workers=1, in_process=True),
            records=TRAINING,
            validation=VALIDATION,
            run_folder=tmp_path,
            accelerator="H100",
        )
    assert not (tmp_path / "curves.jsonl").exists()
