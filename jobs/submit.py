"""`distillery submit`: the pipeline as a Ray job, through Ray's own job client."""

from __future__ import annotations

import asyncio
import ipaddress
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from cluster.errors import ConfigError, PrerequisiteError
from distill.train.config import TrainConfig
from jobs.config import RunConfig, load_run_config

AGENT_S = 240
"""A head on a busy machine has taken more than a minute and a half to get its agent."""

# What a job does not need, as .gitignore patterns; the rest of the folder travels with it.
EXCLUDED = [
    "/.venv", "/.git", "/.cache", "/runs", "/registry", "/build", "/tests", "/docs",
    ".*_cache", "/.hypothesis", "*.parquet",
]  # fmt: skip

MODELS = ("student.model", "train.kd.teacher", "train.on_policy.teacher")


def submit_run(
    files: Sequence[str], *, overrides: Sequence[str], address: str, until: str, detach: bool
) -> int:
    """Submit, follow the log, return the job's exit code (0, 1, 2 configuration, 3 gate)."""
    config = load_run_config(files, overrides=overrides)
    paths = _paths(config, loopback=is_loopback(address))
    for file in files:
        if Path(file).is_absolute() or ".." in Path(file).parts:
            raise ConfigError(f"{file}: give a path below this folder; the folder travels along.")
    _send_token_if_there_is_one()
    from ray.exceptions import AuthenticationError
    from ray.job_submission import JobStatus, JobSubmissionClient

    try:
        client = JobSubmissionClient(address)
    except AuthenticationError as error:
        raise PrerequisiteError(
            f"--address {address}: the cluster asks for its token ({str(error).splitlines()[0]}). "
            "Set RAY_AUTH_TOKEN, or put the token in ~/.ray/auth_token."
        ) from None
    except (ConnectionError, RuntimeError) as error:
        raise PrerequisiteError(
            f"--address {address}: no Ray dashboard answers there ({error}). It is port 8265 of "
            "the head node; `ray start --head` prints it."
        ) from error
    # On this machine the job has this environment; an image has one `python`.
    python = sys.executable if is_loopback(address) else "python"
    command = [python, "-m", "jobs.cli", "run", *files, "--until", until]
    command += ["--cluster.address", "auto", *overrides, *paths]
    job = _once_an_agent_runs(
        client.submit_job,
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


def _send_token_if_there_is_one() -> None:
    """Let Ray's client send its token, as `ray start` and `ray.init` do by themselves."""
    named = os.environ.get("RAY_AUTH_TOKEN") or os.environ.get("RAY_AUTH_TOKEN_PATH")
    if named or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def _once_an_agent_runs(submit: Callable[..., str], **job: Any) -> str:
    """Submit; a head that was just started says for a while that it has no agent for jobs yet."""
    from tenacity import RetryCallState, retry, retry_if_exception_message, stop_after_delay
    from tenacity.wait import wait_fixed

    def tell(state: RetryCallState) -> None:
        if state.attempt_number == 1:
            print(
                f"the cluster has no agent for jobs yet, waiting for up to {AGENT_S} s",
                file=sys.stderr,
            )

    patient = retry(
        retry=retry_if_exception_message(match="(?s).*No available agent"),
        stop=stop_after_delay(AGENT_S),
        wait=wait_fixed(2),
        before_sleep=tell,
        reraise=True,
    )
    return str(patient(submit)(**job))


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


def _training_paths(train: TrainConfig) -> dict[str, str]:
    """Return the paths that the method in use reads."""
    used = {
        "kd": {"train.kd.teacher": train.kd.teacher},
        "on_policy": {"train.on_policy.teacher": train.on_policy.teacher},
        "dpo": {"train.dpo.pairs": train.dpo.pairs} if train.dpo.pairs else {},
    }.get(train.method, {})
    if train.method == "kd" and train.kd.source == "cache":
        used["train.kd.cache"] = train.kd.cache
    if train.mix is not None:
        used["train.mix.data"] = train.mix.data
    return used


def _paths(config: RunConfig, *, loopback: bool) -> list[str]:
    """Overrides that make relative paths mean the same in the job as here."""
    fields = {
        "run.root": config.run.root,
        "registry.uri": config.registry.uri,
        "student.model": config.student.model,
        **_training_paths(config.train),
    }
    overrides: list[str] = []
    for name, value in fields.items():
        local = "://" not in value and not Path(value).is_absolute()
        if name in MODELS and not Path(value).exists():
            continue  # a hub name
        if local and not loopback:
            raise ConfigError(
                f"{name} {value!r} is relative: on a cluster it would lie in the job's temporary "
                "folder and be lost. Give a path on shared storage"
                + (" or an s3:// or gs:// URI." if name == "registry.uri" else ".")
            )
        if local:
            overrides += [f"--{name}", str(Path(value).absolute())]
    return overrides
