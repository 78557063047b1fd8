"""`distillery doctor`: what is here for a run, what is not, and what each missing thing costs."""

from __future__ import annotations

import argparse
import errno
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from urllib.parse import urlsplit

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.errors import DistilleryError
from cluster.session import bound_socket
from jobs.config import RunConfig, load_run_config
from jobs.machine import (
    GIB,
    Check,
    driver_gpus,
    machine,
    memory_gb,
    torch_gpus,
    torch_is_cpu_build,
)

DEMO = Path(__file__).parent / "runs" / "demo.toml"


def doctor(config_path: str | Path | None = None) -> list[Check]:
    """Look at this machine with a run's configuration (the demo's if `None`) in mind.

    A configuration that cannot be read is a finding too, not an exception.
    """
    checks = machine()
    path = Path(config_path) if config_path else DEMO
    try:
        config = load_run_config([path])
    except DistilleryError as error:
        problem = Check(
            name="configuration",
            found=f"{path} cannot be used",
            cost="no run can start",
            fix=str(error),
            required=True,
        )
        return [*checks, problem]
    checks.append(Check(name="configuration", found=str(path)))
    return [*checks, *_memory(config), *_accelerators(config), *_ray(config), *_run(config)]


def render(checks: Sequence[Check], console: Console) -> None:
    """Print the table of findings, then what each missing thing costs and its fix."""
    table = Table(box=None, pad_edge=False)
    for heading in ("", "", "found"):
        table.add_column(heading, overflow="fold")
    for check in checks:
        mark = "[green]ok[/]" if check.ok else "[red]no[/]" if check.required else "[yellow]--[/]"
        table.add_row(mark, check.name, escape(check.found))
    console.print(table)
    missing = sorted((check for check in checks if not check.ok), key=lambda c: not c.required)
    for check in missing:
        colour = "red" if check.required else "yellow"
        console.print(f"\n[{colour}]{check.name}[/]: {escape(check.found)}")
        console.print(f"  without it: {escape(check.cost)}\n  fix: {escape(check.fix)}")
    stops = sum(check.required for check in missing)
    console.print(
        f"\n{stops} of these must be mended before the run can work."
        if stops
        else "\nThe run can work here."
    )


def _memory(config: RunConfig) -> Iterator[Check]:
    total, free = memory_gb()
    found = f"{free:.1f} of {total:.1f} GiB free"
    least = config.cluster.min_free_memory_gb
    if free >= least:
        yield Check(name="memory", found=found)
    else:
        yield Check(
            name="memory",
            found=found,
            cost=f"a stage that loads a model refuses to start below {least} GiB",
            fix="end other programs, or lower `--cluster.min_free_memory_gb`",
            required=True,
        )
    if config.cluster.address != "local":
        return
    shm_mb = shutil.disk_usage("/dev/shm").total / 2**20
    if shm_mb >= config.cluster.object_store_mb:
        yield Check(name="shared memory", found=f"{shm_mb:.0f} MiB")
    else:
        yield Check(
            name="shared memory",
            found=f"{shm_mb:.0f} MiB",
            cost=f"Ray keeps its {config.cluster.object_store_mb} MiB object store on disk, slowly",
            fix="start the container with a larger --shm-size, or lower --cluster.object_store_mb",
        )


def _accelerators(config: RunConfig) -> Iterator[Check]:
    wanted, local = config.cluster.accelerator, config.cluster.address == "local"
    try:
        devices = [] if torch_is_cpu_build() else torch_gpus()
    except subprocess.SubprocessError as error:
        last = str(getattr(error, "stderr", None) or error).strip().splitlines()[-1]
        yield Check(
            name="accelerators",
            found=f"torch does not answer: {last}",
            cost="a training or serving process would fail as well",
            fix="look at the driver (`nvidia-smi`, `dmesg`), then `make setup` in a new .venv",
            required=True,
        )
        return
    driver = driver_gpus()
    if devices:
        yield Check(name="accelerators", found=", ".join(devices))
    elif driver:
        yield Check(
            name="accelerators",
            found=f"{', '.join(driver)}, which this torch cannot use",
            cost="everything runs on the CPU",
            fix="install the extra `gpu` and a CUDA build of torch",
            required=wanted is not None and local,
        )
    elif wanted and local:
        yield Check(
            name="accelerators",
            found="none",
            cost=f"the run asks for {wanted} and would wait for it for ever",
            fix="set `--cluster.address` to a cluster that has it, or remove cluster.accelerator",
            required=True,
        )
    else:
        yield Check(name="accelerators", found=f"none here; the run asks for {wanted or 'none'}")


def _ray(config: RunConfig) -> Iterator[Check]:
    address = config.cluster.address
    if address == "local":
        yield Check(name="ray address", found="local: a Ray of the run's own")
        return
    # What Ray itself looks at for "auto": the variable, then the file that `ray start` leaves.
    current = Path(os.environ.get("RAY_TMPDIR", tempfile.gettempdir()), "ray/ray_current_cluster")
    if address == "auto":
        address = os.environ.get("RAY_ADDRESS") or (
            current.read_text().strip() if current.is_file() else ""
        )
    if address and reachable(address):
        yield Check(name="ray address", found=f"{address} answers")
        return
    yield Check(
        name="ray address",
        found=f"{address} does not answer" if address else "auto, and no Ray runs on this machine",
        cost="the run has no cluster to run on from here",
        fix="run it there (`distillery submit FILE --address http://HEAD:8265`), set RAY_ADDRESS, "
        "or use `--cluster.address local`",
        required=True,
    )


def reachable(address: str) -> bool:
    """Whether something listens at a Ray address: `host:port`, `ray://host:port`, `http://…`."""
    parts = urlsplit(address if "://" in address else f"//{address}")
    try:
        with socket.create_connection((parts.hostname or "", parts.port or 10001), timeout=2):
            return True
    except (OSError, ValueError):
        return False


def _run(config: RunConfig) -> Iterator[Check]:
    yield from _student(config.student.model)
    if config.cluster.address != "local":
        return
    for name, port, field in (
        ("serve port", config.serve.port, "serve.port"),
        ("metrics port", config.cluster.metrics_port, "cluster.metrics_port"),
    ):
        try:
            bound_socket(config.serve.host, port).close()
            yield Check(name=name, found=f"{port} is free")
        except OSError as error:
            taken = error.errno == errno.EADDRINUSE
            yield Check(
                name=name,
                found=f"{port} is in use" if taken else f"{config.serve.host}: {error.strerror}",
                cost="nothing can listen there",
                fix=f"end the program that holds it, or choose another with `--{field}`"
                if taken
                else f"give this machine's address as `--serve.host`, or choose `--{field}`",
            )


def _student(model: str) -> Iterator[Check]:
    folder = Path(model).expanduser()
    # A hub name has at most one slash and starts with no dot.
    if not folder.is_dir() and not model.startswith((".", "/", "~")) and model.count("/") <= 1:
        yield Check(name="student", found=f"{model}, a hub name: read when it is first needed")
        return
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    if not (folder / "config.json").is_file() or not weights:
        demo = folder.name == "SmolLM2-135M-Instruct"
        yield Check(
            name="student",
            found=f"{model} holds no model",
            cost="nothing can be trained or served",
            fix="run `make model`" if demo else "put the model there, or set `--student.model`",
            required=True,
        )
        return
    size_gb = sum(file.stat().st_size for file in weights) / GIB
    yield Check(name="student", found=f"{model} ({size_gb:.1f} GiB)")
    yield _chat_template(folder)


def _chat_template(folder: Path) -> Check:
    if (folder / "chat_template.jinja").is_file():
        return Check(name="chat template", found="chat_template.jinja")
    settings = folder / "tokenizer_config.json"
    if settings.is_file() and json.loads(settings.read_text()).get("chat_template"):
        return Check(name="chat template", found="tokenizer_config.json")
    return Check(
        name="chat template",
        found="none",
        cost="prompts cannot be turned into tokens the way the model learned",
        fix="choose an instruct model, or add chat_template.jinja to its folder",
        required=True,
    )


def run_doctor(config_path: str | Path | None = None) -> int:
    """Print the report; 0 when the run can work here, 1 otherwise."""
    checks = doctor(config_path)
    render(checks, Console())
    return int(any(check.required and not check.ok for check in checks))


def main(argv: Sequence[str] | None = None) -> int:
    """`python -m jobs.doctor [CONFIG]`."""
    parser = argparse.ArgumentParser(prog="python -m jobs.doctor", description=run_doctor.__doc__)
    parser.add_argument("config", nargs="?", help="TOML file of a run; the demo's if left out")
    return run_doctor(parser.parse_args(argv).config)


if __name__ == "__main__":
    sys.exit(main())
