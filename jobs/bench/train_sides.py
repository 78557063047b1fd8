"""What the cases of the training benchmark share: both sides, their settings, and their turns."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from distill.train.config import StudentConfig, TrainConfig
from jobs.bench.lora import in_turn
from jobs.bench.side import SideProcess
from jobs.bench.train_data import Corpus, load_corpus, mixed_records
from jobs.bench.train_ours import Trained, run_ours

Rows = Sequence[dict[str, Any]]
Turns = dict[str, Callable[[], Trained]]


@dataclass(frozen=True)
class Bench:
    """What all cases share."""

    model: Path
    folder: Path
    rounds: int
    steps: int
    seeds: int
    quality_steps: int
    demo_steps: int
    demo_run: Path

    @cached_property
    def student(self) -> StudentConfig:
        """The same adapter on both sides; 1,024 tokens are also the length of TRL's packed rows."""
        return StudentConfig(model=str(self.model), max_length=1024, rank=16, alpha=32)

    @cached_property
    def corpus(self) -> Corpus:
        """The text that records are cut from."""
        return load_corpus(self.model)

    @cached_property
    def few_held_out(self) -> list[dict[str, Any]]:
        """Two short records: a run of ours wants some, and the speed cases do not look at them."""
        return mixed_records(self.corpus, 2, seed=-1, longest=150)

    @contextmanager
    def peer(self) -> Iterator[Peer]:
        """TRL in a process that waits for its turns."""
        peer = Peer(self.student, log=self.folder / "trl.log")
        try:
            yield peer
        finally:
            peer.close()


class Peer:
    """TRL's side."""

    def __init__(self, student: StudentConfig, *, log: Path) -> None:
        """Start it and let it import everything."""
        setup = {"model": student.model, "rank": student.rank, "alpha": student.alpha}
        began = time.perf_counter()
        self._side = SideProcess(
            "jobs.bench.train_side",
            setup=setup,
            env={"OMP_NUM_THREADS": "2", "DS_ACCELERATOR": "cpu"},
            log=log,
        )
        self.start_s = time.perf_counter() - began

    def train(
        self,
        kind: str,
        settings: TrainConfig,
        *,
        records: Rows,
        validation: Rows = (),
        max_length: int = 1024,
    ) -> Trained:
        """Train on `records` in their order; `kind` is `sft`, `packed` or `dpo`."""
        told = {
            "kind": kind,
            "train": settings.model_dump(),
            "records": list(records),
            "validation": list(validation),
            "max_length": max_length,
        }
        found = self._side.ask(told)
        losses = {len(found["seconds"]): found["validation_loss"]} if validation else {}
        return Trained(
            found["seconds"], found["tokens"], found["wall_s"] + self.start_s, losses=losses
        )

    def close(self) -> None:
        """End the process."""
        self._side.close()


def settings_for(**changes: Any) -> TrainConfig:
    """Two workers of one thread, 8 records a step, micro-batches of 4; no look before the end."""
    base: dict[str, Any] = {
        "workers": 2,
        "threads_per_worker": 1,
        "zero_stage": 2,
        "batch_size": 8,
        "micro_batch_size": 4,
        "learning_rate": 4e-4,
        "eval_every": 1_000_000,
        "patience": 1_000_000,
    }
    return TrainConfig(**{**base, **changes}).for_hardware(None)


def take_turns(
    turns: Turns, *, rounds: int, once: Collection[str] = ()
) -> dict[str, list[Trained]]:
    """Run every side `rounds` times, every other round backwards; those of `once` in the first."""
    runs: dict[str, list[Trained]] = {name: [] for name in turns}
    for number in range(rounds):
        for name, turn in in_turn(list(turns.items()), number):
            if number > 0 and name in once:
                continue
            run = turn()
            runs[name].append(run)
            rate = run.tokens_per_s if run.tokens else run.steps_per_s
            say(name, {"rate": rate, "in_steps_s": sum(run.seconds), "whole_s": run.wall_s})
    return runs


def our_turn(bench: Bench, settings: TrainConfig, records: Rows, validation: Rows = ()) -> Trained:
    """Train our side."""
    held_out = validation or bench.few_held_out
    return run_ours(bench.student, settings, records=records, validation=held_out)


def say(name: str, figures: dict[str, float]) -> None:
    """Tell a person who waits."""
    told = ", ".join(f"{key} {value:.4g}" for key, value in figures.items())
    print(f"{name}: {told}", file=sys.stderr, flush=True)
