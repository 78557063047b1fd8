"""Our side of the training benchmark: whole runs through Ray Train on a local Ray."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from distill.train.config import StudentConfig, TrainConfig
from distill.train.follow import CURVES, read_rows
from jobs.bench.loopback import free_port


@dataclass(frozen=True)
class Trained:
    """A run, ours or TRL's, step by step."""

    seconds: list[float]
    """Of each optimiser step, without evaluation."""
    tokens: list[int]
    """Prompt and completion tokens of each step's records, without padding; [] where unknown."""
    wall_s: float
    """The whole run: start, loading, steps, evaluation, saving."""
    losses: dict[int, float]
    """Held-out loss after so many steps, nats a completion token."""

    @property
    def tokens_per_s(self) -> float:
        """Rate after the first step, which warms kernels and allocator up."""
        return sum(self.tokens[1:]) / sum(self.seconds[1:])

    @property
    def steps_per_s(self) -> float:
        """Rate of optimiser steps after the first."""
        return len(self.seconds[1:]) / sum(self.seconds[1:])

    def seconds_to(self, loss: float) -> float | None:
        """Seconds in steps until the held-out loss was at most `loss`; None: never."""
        for step, found in sorted(self.losses.items()):
            if step and found <= loss:
                return sum(self.seconds[:step])
        return None


def run_ours(
    student: StudentConfig,
    settings: TrainConfig,
    *,
    records: Sequence[dict[str, Any]],
    validation: Sequence[dict[str, Any]],
) -> Trained:
    """Train on a Ray that is started for this run alone, so that it idles beside nobody else."""
    from cluster.config import ClusterConfig
    from cluster.session import ray_session
    from distill.train.stage import train

    os.environ["HF_HUB_OFFLINE"] = "1"
    began = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="distillery-bench-") as name:
        folder = Path(name)
        with ray_session(ClusterConfig(metrics_port=free_port()), log_folder=folder / "logs"):
            train(
                student,
                settings,
                records=list(records),
                validation=list(validation),
                run_folder=folder / "run",
            )
        rows = read_rows(folder / "run" / CURVES)
    return trained(rows, wall_s=time.perf_counter() - began)


def trained(rows: Sequence[dict[str, Any]], *, wall_s: float) -> Trained:
    """Take the rows of `curves.jsonl` apart; the first row is the untrained model's loss."""
    steps = [row for row in rows if row["step"] > 0]
    totals = [0, *(row["tokens"] for row in steps)]
    tokens = [after - before for before, after in pairwise(totals)]
    return Trained(
        seconds=[n / row["tokens_per_s"] for n, row in zip(tokens, steps, strict=True)],
        tokens=tokens,
        wall_s=wall_s,
        losses={row["step"]: row["validation_loss"] for row in rows if "validation_loss" in row},
    )
