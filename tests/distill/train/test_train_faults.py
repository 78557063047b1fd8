"""A full disk and a lost node: the last good checkpoint stays, and the run goes on from it."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import signal
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from local_ray import local_ray

from cluster.errors import StageError
from distill.train.config import StudentConfig, TrainConfig
from distill.train.stage import TrainResult, train

pytestmark = [pytest.mark.ray, pytest.mark.model]

SETTINGS = TrainConfig(
    precision="fp32", batch_size=8, micro_batch_size=4, learning_rate=4e-3, eval_every=10,
    max_steps=30, patience=100, workers=1,
)  # fmt: skip


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
                    {"role": "user", "content": f"Bank: {kind} {'x' * draw.randint(1, 60)} {days}"}
                ],
                "completion": json.dumps({"classification": kind, "days": days}),
            }
        )
    return made


def run(
    model: Path, folder: Path, on_progress: Any = None, settings: TrainConfig = SETTINGS
) -> TrainResult:
    return train(
        StudentConfig(model=str(model), rank=8, alpha=16),
        settings,
        records=examples(0, 240),
        validation=examples(1000, 24),
        run_folder=folder,
        on_progress=on_progress,
    )


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "curves.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows if "loss" in row]


@pytest.fixture(scope="module")
def undisturbed(
    tiny_model: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[TrainResult, list[float]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    with local_ray(num_cpus=1):
        here = SETTINGS.model_copy(update={"in_process": True})
        return run(tiny_model, folder, settings=here), losses(folder)


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    folder.mkdir()
    told = ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(told, capture_output=True).returncode:
        pytest.skip("needs the right to mount a small tmpfs")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=False)


def fill(disk: Path, *, leave: int) -> None:
    """Write a file until only `leave` bytes are free."""
    with (disk / "filler").open("ab") as file, suppress(OSError):
        while (free := shutil.disk_usage(disk).free) > leave:
            file.write(b"\0" * min(free - leave, 2**20))
            file.flush()


def test_a_full_disk_ends_the_run_in_a_sentence_and_keeps_the_last_good_checkpoint(
    undisturbed: tuple[TrainResult, list[float]], tiny_model: Path, tmp_path: Path
) -> None:
    with small_disk(tmp_path / "disk") as disk, local_ray(num_cpus=2):
        # A checkpoint and what the run asks for beside it fit once (1.9 MiB), not twice.
        fill(disk, leave=2600 * 2**10)
        full = r"the disk of .* is full: .*; the checkpoint of step (10|20) is kept\. Free some"
        with pytest.raises(StageError, match=full) as first:
            run(tiny_model, disk / "run")
        [kept] = re.findall(full, str(first.value))
        before = losses(disk / "run")
        # The step that found the disk full is over, its row may not be written.
        assert int(kept) < len(before) <= int(kept) + 10
        # Without a byte free: the same sentence, and no step is done for nothing.
        fill(disk, leave=0)
        with pytest.raises(StageError, match=f"the checkpoint of step {kept} is kept"):
            run(tiny_model, disk / "run")
        assert losses(disk / "run") == before
        (disk / "filler").unlink()
        result = run(tiny_model, disk / "run")
        assert losses(disk / "run") == pytest.approx(undisturbed[1], rel=2e-3)
    assert result.final_validation_loss == pytest.approx(
        undisturbed[0].final_validation_loss, rel=0.01
    )


@contextmanager
def two_nodes(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, dict[str, Any]]]:
    """A cluster of two nodes with a CPU each, and so a worker each; and what a node is made of."""
    import ray
    from ray.cluster_utils import Cluster

    folder = Path(tempfile.mkdtemp(prefix="dst-", dir="/tmp"))
    # Where Ray notes the newest cluster of a machine; this one is nobody else's.
    monkeypatch.setenv("RAY_TMPDIR", str(folder))
    (folder / "ray").mkdir()
    node = {"num_cpus": 1, "object_store_memory": 80 * 2**20}
    quick = {"health_check_period_ms": 500, "health_check_failure_threshold": 6}
    head = {**node, "temp_dir": str(folder), "_system_config": quick}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    try:
        cluster.add_node(**node)
        ray.init(address=cluster.address, log_to_driver=False)
        yield cluster, node
    finally:
        ray.shutdown()
        cluster.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def test_a_lost_node_costs_time_but_not_the_result(
    undisturbed: tuple[TrainResult, list[float]],
    tiny_model: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    under_way = threading.Event()

    def look(row: dict[str, Any]) -> None:
        if row["step"] > 10:
            under_way.set()

    with two_nodes(monkeypatch) as (cluster, node), ThreadPoolExecutor(1) as pool:
        two = SETTINGS.model_copy(update={"workers": 2})
        trained = pool.submit(run, tiny_model, tmp_path, look, two)
        assert under_way.wait(timeout=240)
        [lost] = cluster.worker_nodes
        [raylet] = lost.all_processes["raylet"]
        os.kill(raylet.process.pid, signal.SIGKILL)
        # As an autoscaler would, and from the main thread: Ray sets signal handlers for a node.
        cluster.add_node(**node)
        result = trained.result(timeout=300)
    assert result.restarts == 1
    assert losses(tmp_path) == pytest.approx(undisturbed[1], rel=2e-3)
    assert result.final_validation_loss == pytest.approx(
        undisturbed[0].final_validation_loss, rel=0.01
    )
