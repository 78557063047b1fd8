"""How near `distillery plan` comes to what training takes: `python -m jobs.bench.plan`.

Each case trains SmolLM2-135M for a few steps through the real stage, on a Ray of its own, and
compares the worker's peak resident memory (VmHWM) and its tokens a second with the plan's. Other
users of a host only ever slow it down, by more than half here and for minutes: so the fastest step
is compared with the plan for the fastest round of blocks, measured right before and right after.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import tempfile
import threading
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.config import ClusterConfig
from cluster.session import ray_session
from distill.train.config import StudentConfig, TrainConfig
from distill.train.follow import CURVES, read_rows
from distill.train.loop import STARTS
from distill.train.plan.architecture import read_architecture
from distill.train.plan.hardware import Hardware
from distill.train.plan.plan import Plan, make_plan
from distill.train.plan.setting import Setting
from distill.train.plan.workload import known_lengths
from jobs.bench.loopback import free_port
from jobs.bench.report import Case, for_comparison, report
from jobs.cpu_rate import measure as measure_step
from jobs.cpu_rate import with_time
from jobs.machine import memory_gb

MODEL = ".cache/models/SmolLM2-135M-Instruct"
WITHIN = 0.15
STEPS = 12
WARM_UP = 2
"""Steps whose speed is left out: kernels are built in them."""
WORDS = ("bank", "line", "amount", "invoice", "vendor", "ledger", "entry", "paid", "due", "late")
CASES: dict[str, tuple[int, dict[str, Any], dict[str, Any]]] = {
    "fused bf16, 4 × 170 tokens": (140, {}, {"workers": 1, "threads_per_worker": 2}),
    "fused bf16, 2 workers, 4 × 340": (310, {}, {"workers": 2, "zero_stage": 2}),
    "plain fp32, 4 × 170": (140, {}, {"workers": 1, "threads_per_worker": 2, "precision": "fp32"}),
    "plain bf16, q and v, recomputed, 4 × 340": (
        310,
        {"target_modules": ["q_proj", "v_proj"]},
        {"workers": 1, "threads_per_worker": 2, "gradient_checkpointing": True},
    ),
}
"""Words a record, and what differs from the defaults of student and training."""


@dataclass(frozen=True)
class Measured:
    """What one case came to."""

    plan: Plan
    peak_bytes: float
    tokens_per_s: float


def records(count: int, *, words: int, seed: int) -> list[dict[str, Any]]:
    """Make records of about equal length that share no beginning."""
    draw = random.Random(seed)

    def text(number: int) -> str:
        return " ".join(draw.choice(WORDS) for _ in range(number))

    return [
        {
            "example_id": f"{seed}-{i}",
            "messages": [
                {"role": "system", "content": text(8)},
                {"role": "user", "content": text(words * 6 // 10)},
            ],
            "completion": text(words * 4 // 10),
        }
        for i in range(count)
    ]


def measure(model: str, *, words: int, student: dict[str, Any], train: dict[str, Any]) -> Measured:
    """Plan and train one case on the connected Ray."""
    from transformers import AutoTokenizer

    from distill.train.encode import encode_records
    from distill.train.stage import train as train_student

    student_config = StudentConfig(model=model, max_length=2048, **student)
    micro = {"micro_batch_size": 4, "batch_size": 4 * train["workers"]}
    config = TrainConfig(**{**micro, "max_steps": STEPS, "eval_every": 1000, **train})
    training = records(STEPS * config.batch_size, words=words, seed=1)
    encoded = encode_records(AutoTokenizer.from_pretrained(model), training, max_length=2048)
    lengths = [len(record.tokens) for record in encoded.records]
    share = sum(record.num_completion for record in encoded.records) / sum(lengths)
    machine = Hardware(
        name="cpu",
        title="this machine",
        kind="cpu",
        memory_gib=memory_gb()[0],
        tflops=1.0,
        achieved=1.0,
        achieved_source="",
    )
    data = known_lengths(lengths, completion_share=share, source="made here")
    setting = Setting(student_config, config, read_architecture(model), data, machine)
    times = [measure_step(setting)]
    with tempfile.TemporaryDirectory(prefix="distillery-bench-") as folder, _Peak(folder) as peak:
        train_student(
            student_config,
            config,
            records=training,
            validation=records(config.batch_size, words=words, seed=2),
            run_folder=folder,
        )
        rows = read_rows(Path(folder) / CURVES)
    times.append(measure_step(setting))
    best = min(found.best for found in times)
    setting = replace(setting, hardware=with_time(setting, best))
    speeds = [row["tokens_per_s"] for row in rows if row["step"] > WARM_UP]
    return Measured(make_plan(setting), peak.bytes, max(speeds))


class _Peak:
    """Follow rank 0's VmHWM while the block runs: its process is gone when training returns."""

    def __init__(self, folder: str):
        self.bytes = 0.0
        self._starts = Path(folder) / "checkpoints" / STARTS
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> _Peak:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _follow(self) -> None:
        while not self._stop.wait(0.2):
            try:
                pid = json.loads(self._starts.read_text().splitlines()[-1])["pid"]
                status = Path(f"/proc/{pid}/status").read_text()
            except (OSError, IndexError, ValueError):
                continue
            for line in status.splitlines():
                if line.startswith("VmHWM:"):
                    self.bytes = max(self.bytes, int(line.split()[1]) * 1024)


def cases_of(name: str, found: Measured) -> list[Case]:
    """Return memory and speed, predicted beside measured; both must be within 15%."""
    plan, mib = found.plan, 2**20
    pairs = (
        ("peak memory", plan.memory.total / mib, found.peak_bytes / mib, "MiB"),
        ("fastest step", plan.speed.tokens_per_s, found.tokens_per_s, "tokens/s"),
    )
    cases = []
    for what, predicted, seen, unit in pairs:
        ratio = predicted / seen
        cases += [
            for_comparison(f"{name}: {what}, planned", predicted, unit=unit),
            for_comparison(f"{name}: {what}, measured", seen, unit=unit),
            Case(
                case=f"{name}: {what}, planned ÷ measured",
                figure=ratio,
                unit="×",
                target=f"{1 - WITHIN:g} to {1 + WITHIN:g}",
                ok=abs(ratio - 1) <= WITHIN,
            ),
        ]
    return cases


def main() -> int:
    """Measure every case, print the table, return 1 if one is off by more than 15%."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=MODEL, help="folder of a Llama model")
    parser.add_argument("--only", nargs="+", default=list(CASES), help="part of the cases' names")
    options = parser.parse_args()
    cases: list[Case] = []
    failed = 0
    with ray_session(ClusterConfig(metrics_port=free_port())):
        for name, (words, student, train) in CASES.items():
            if any(part in name for part in options.only):
                found = measure(
                    str(Path(options.model).absolute()), words=words, student=student, train=train
                )
                cases += cases_of(name, found)
                failed = report("plan", cases)
    return failed


if __name__ == "__main__":
    sys.exit(main())
