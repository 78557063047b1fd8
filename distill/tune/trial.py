"""A trial as Ray Tune sees it: our training stage in an actor of its own, and its looks reported.

Ray Train's V2 runs under Tune by being started within a trainable (docs.ray.io, "Hyperparameter
Tuning with Ray Tune"). The class API is taken because it says when a trial is stopped: with the
function API the driver of the training goes on in a thread that nobody can interrupt.
Only what runs a search imports this module: it needs `ray.tune`.
"""

from __future__ import annotations

import os
import signal
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray
import ray.util
from ray import PlacementGroupID, tune
from ray.tune.result import DONE
from ray.util.placement_group import PlacementGroup
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from cluster.errors import DistilleryError
from distill.train.config import StudentConfig, TrainConfig
from distill.train.follow import CURVES, read_rows
from distill.tune.ledger import looks_of

REPORT_EVERY_S = 1.0
RELEASE_LOOKS = 2
"""Looks, a second apart, in which nobody uses a group before it is taken for left over."""
ABORT_TIMEOUT_S = 6.0
"""Ray Tune itself waits 10 s for the last trial before it kills what is left."""


class Training:
    """The training stage, as an actor: its main thread can be told to stop by SIGINT."""

    def process(self) -> int:
        """Return the process id."""
        return os.getpid()

    def run(self, told: dict[str, Any]) -> str:
        """Train into `told["folder"]`; returns why it failed, or nothing."""
        from distill.train.stage import train

        records, validation = ray.get(told["records"][0])
        try:
            train(
                StudentConfig.model_validate(told["student"]),
                TrainConfig.model_validate(told["train"]),
                records=records,
                validation=validation,
                run_folder=told["folder"],
                accelerator=told["accelerator"],
            )
        except DistilleryError as error:
            return str(error)
        return ""


class TrialTraining(tune.Trainable):
    """One trial; `config["index"]` says which of the `trials` passed to `setup`."""

    def setup(self, config: dict[str, Any], trials: list[dict[str, Any]]) -> None:
        """Start the training; it needs no CPU of its own, its workers ask for theirs."""
        told = trials[config["index"]]
        self._folder = Path(told["folder"])
        self._groups_before = set(ray.util.placement_group_table())
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(num_cpus=0)(Training)
        self._training = actor.options(scheduling_strategy=here).remote()
        self._process = ray.get(self._training.process.remote())
        self._outcome = self._training.run.remote(told)
        self._ended = False
        self._looks_reported = 0

    def step(self) -> dict[str, Any]:
        """Report the next look at the held-out loss, or, when none comes, how far it is.

        The looks are read from `curves.jsonl`, which has every one of them; a call back would
        show the newest row only. The last look comes together with the end: a trial that is
        through is not stopped.
        """
        deadline = time.monotonic() + REPORT_EVERY_S
        while True:
            self._ended = self._ended or bool(ray.wait([self._outcome], timeout=0.1)[0])
            rows = read_rows(self._folder / CURVES)
            looks = [look for look in looks_of(rows) if look[0] > 0][self._looks_reported :]
            is_last = bool(looks) and looks[0][0] >= rows[-1]["total_steps"]
            if self._ended or (looks and not is_last) or time.monotonic() > deadline:
                break
        result = {"step": rows[-1]["step"] if rows else 0, "finished": False, "failure": ""}
        if looks and (self._ended or not is_last):
            self._looks_reported += 1
            result |= {"look": self._looks_reported, "validation_loss": looks[0][1]}
        if self._ended and len(looks) < 2:
            failure = ray.get(self._outcome)
            result |= {"finished": not failure, "failure": failure, DONE: True}
        return result

    def save_checkpoint(self, checkpoint_dir: str) -> dict[str, Any]:
        """Return nothing: the training keeps its own checkpoints, and the ledger its result."""
        return {}

    def cleanup(self) -> None:
        """End the training, its controller and its workers, so that their CPUs are free.

        On SIGINT Ray Train aborts its run and removes the placement group. Killing the actor
        would end the workers too, but leave Ray Train's placement group cleaner behind.
        """
        if not self._ended:
            with suppress(ProcessLookupError):
                os.kill(self._process, signal.SIGINT)
            with suppress(ray.exceptions.RayError):
                ray.get(self._outcome, timeout=ABORT_TIMEOUT_S)
        ray.kill(self._training)
        self._release_groups()

    def _release_groups(self) -> None:
        """Remove the CPUs' reservation that an aborted training may leave.

        Ray Train's own cleaner asks the dashboard whether its controller lives, and a local Ray has
        none. Only groups made since this trial began, of which nobody uses a CPU, are removed.
        """
        made = set(ray.util.placement_group_table()) - self._groups_before
        for _ in range(RELEASE_LOOKS):
            time.sleep(1.0)
            free = ray.available_resources()
            made = {
                name
                for name in made
                if free.get(f"CPU_group_{name}", 0.0)
                and free[f"CPU_group_{name}"] == ray.cluster_resources().get(f"CPU_group_{name}")
            }
        for name in made:
            group = PlacementGroup(PlacementGroupID(bytes.fromhex(name)))
            ray.util.remove_placement_group(group)
