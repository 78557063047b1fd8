"""`distillery submit`: the pipeline as a Ray job, through Ray's own job client."""

from __future__ import annotations

import asyncio
import ipaddress
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import urlsplit

from cluster.errors import ConfigError, PrerequisiteError
from jobs.config import RunConfig, load_run_config

# What a job does not need; the rest of the folder travels with it.
EXCLUDED = [".venv", ".git", ".cache", "runs", "registry", "build", "tests", "docs", "**/*.parquet"]


def submit_run(
    files: Sequence[str], *, overrides: Sequence[str], address: str, until: str, detach: bool
) -> int:
    """Submit, follow the log, return the job's exit code (0, 1, 2 configuration, 3 gate)."""
    config = load_run_config(files, overrides=overrides)
    paths = _paths(config, loopback=is_loopback(address))
    for file in files:
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise ConfigError(f"{file}: give a path below this folder; the folder travels along.")
    from ray.job_submission import JobStatus, JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
    except (ConnectionError, RuntimeError) as error:
        raise PrerequisiteError(
            f"--address {address}: no Ray dashboard answers there ({error}). It is port 8265 of "
            "the head node; `ray start --head` prints it."
        ) from error
    command = ["python", "-m", "jobs.cli", "run", *files, "--until", until]
    command += ["--cluster.address", "auto", *overrides, *paths]
    job = client.submit_job(
        entrypoint=shlex.join(command),
        runtime_env={"working_dir": ".", "excludes": EXCLUDED},
        metadata={"distillery_run": config.run.name},
    )
    print(f"submitted {job} to {address}", flush=True)
    if detach:
        return 0
    try:
        asyncio.run(_follow(client, job))
    except KeyboardInterrupt:
        print(f"the job goes on; `ray job logs {job} --address {address} --follow` rejoins it")
        return 130
    info = client.get_job_info(job)
    if info.status == JobStatus.SUCCEEDED:
        return 0
    print(f"{job} {info.status}: {info.message}", file=sys.stderr)
    return info.driver_exit_code or 1


async def _follow(client: object, job: str) -> None:
    async for lines in client.tail_job_logs(job):  # type: ignore[attr-defined]
        print(lines, end="", flush=True)


def is_loopback(address: str) -> bool:
    """Whether the cluster is this machine, whose files the job can see."""
    host = urlsplit(address).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _paths(config: RunConfig, *, loopback: bool) -> list[str]:
    """Overrides that make relative paths mean the same in the job as here."""
    fields = {
        "run.root": config.run.root,
        "registry.uri": config.registry.uri,
        "student.model": config.student.model,
    }
    overrides: list[str] = []
    for name, value in fields.items():
        local = "://" not in value and not Path(value).is_absolute()
        if name == "student.model" and not Path(value).exists():
            continue
        if local and not loopback:
            raise ConfigError(
                f"{name} {value!r} is relative: on a cluster it would lie in the job's temporary "
                "folder and be lost. Give a path on shared storage"
                + (" or an s3:// or gs:// URI." if name == "registry.uri" else ".")
            )
        if local:
            overrides += [f"--{name}", str(Path(value).absolute())]
    return overrides
