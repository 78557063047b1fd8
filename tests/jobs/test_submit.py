"""`distillery submit` on a real Ray head: the log is followed, the exit code comes back."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import httpx
import pytest
from loopback import free_port

from cluster.errors import ConfigError
from jobs.config import load_run_config
from jobs.submit import _paths, is_loopback

ROOT = Path(__file__).parents[2]


def test_relative_paths_are_refused_for_a_cluster_elsewhere():
    config = load_run_config(["jobs/runs/smoke.toml"])
    assert is_loopback("http://127.0.0.1:8265")
    assert not is_loopback("http://ray-head.example:8265")
    with pytest.raises(ConfigError, match="would lie in the job's temporary folder"):
        _paths(config, loopback=False)
    assert str(Path("runs").absolute()) in _paths(config, loopback=True)
    kd = ["--train.method", "kd", "--train.kd.teacher", "org/teacher", "--train.kd.source", "cache"]
    paths = _paths(load_run_config(["jobs/runs/smoke.toml"], overrides=kd), loopback=True)
    assert str(Path("runs/logprobs").absolute()) in paths
    assert "--train.kd.teacher" not in paths  # a hub name means the same everywhere


class Head:
    """A Ray head in its own folder and on its own ports, stopped by its process ids."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="dsh-", dir="/tmp")
        dashboard = free_port()
        self.url = f"http://127.0.0.1:{dashboard}"
        self.log = Path(self.folder) / "start.log"
        self.process = subprocess.Popen(
            [str(Path(sys.executable).with_name("ray")), "start", "--head", "--block",
             f"--port={free_port()}", "--num-cpus=4", f"--dashboard-port={dashboard}",
             "--include-dashboard=true", f"--temp-dir={self.folder}/r", "--disable-usage-stats",
             "--object-store-memory=200000000", f"--dashboard-agent-listen-port={free_port()}"],
            stdout=self.log.open("w"), stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip

    def answers(self) -> bool:
        """Wait for the dashboard; False if the head ended, as when a port was taken meanwhile."""
        deadline = time.monotonic() + 240
        while time.monotonic() < deadline and self.process.poll() is None:
            with contextlib.suppress(httpx.HTTPError):
                # 401 where Ray asks for a token, which its own client then sends.
                if httpx.get(f"{self.url}/api/version", timeout=2).status_code in (200, 401):
                    return True
            time.sleep(1)
        return False

    def stop(self) -> None:
        self.process.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(3)  # it lets its processes take half a minute; nobody needs them
        session = str(self.process.pid)  # it was started as the leader of one
        left = subprocess.run(["pgrep", "-s", session], capture_output=True, text=True)
        for child in left.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), signal.SIGKILL)
        shutil.rmtree(self.folder, ignore_errors=True)


@pytest.fixture
def head():
    said = ""
    for _ in range(3):  # a free port can be taken before Ray gets to it
        started = Head()
        if started.answers():
            yield started.url
            started.stop()
            return
        said = started.log.read_text()[-2000:]
        started.stop()
    pytest.fail(f"ray start --head does not come up: {said}")


@pytest.mark.ray
@pytest.mark.timeout(600)
def test_a_submitted_run_writes_where_it_was_told_and_returns_its_exit_code(head, tmp_path):
    flags = ["--run.root", str(tmp_path / "runs"), "--registry.uri", str(tmp_path / "registry")]
    base = [sys.executable, "-m", "jobs.cli", "submit", "jobs/runs/smoke.toml", "--address", head]
    good = subprocess.run(
        [*base, "--until", "curate", *flags], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert good.returncode == 0, good.stdout + good.stderr
    assert "✓ generate" in good.stdout
    assert "✓ curate" in good.stdout
    assert (tmp_path / "runs/latest/curated/train.parquet").is_file()
    bad = subprocess.run(
        [*base, "--until", "train", *flags, "--student.model", "./no-such-model"],
        cwd=ROOT, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert bad.returncode == 2, bad.stdout + bad.stderr
    assert "there is no no-such-model/config.json" in bad.stdout + bad.stderr
