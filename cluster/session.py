"""The Ray a run works on: one of its own, started and stopped here, or a cluster it joins."""

from __future__ import annotations

import errno
import os
import shutil
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cluster.config import ClusterConfig
from cluster.errors import PrerequisiteError

GIB = 2**30
# Nothing of a run reports home, and a local model folder is never looked up at a hub.
QUIET_ENV = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}
# Ray Serve's HTTP proxies call it when they start. A name only: `serve` is not imported here.
PROXY_ENV = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "serve.front:middlewares"}
OWN_RAY = {"num_workers_soft_limit": 0, "idle_worker_killing_time_threshold_ms": 10_000}
"""Ray's configuration where it is the run's own: a process without a task goes after 10 s.

Ray keeps one a CPU by default. Each wakes a hundred times a second, in turn interrupting whoever
trains on all cores; one that is needed again starts within a second or two.
"""
_started_here = ""
"""Address of the Ray that this process started last."""
LOGS_KEPT = ("worker-", "serve", "train", "gcs_server", "raylet")


@contextmanager
def ray_session(config: ClusterConfig, *, log_folder: Path | None = None) -> Iterator[str]:
    """Connect to Ray for the length of the block and yield its address.

    A local Ray gets a temporary folder of its own and is stopped at the end; what its workers
    logged is copied to `log_folder` first. A cluster that was joined is left as it is.
    """
    import ray

    if ray.is_initialized():
        yield ray.get_runtime_context().gcs_address
        return
    os.environ.update({name: os.environ.get(name, value) for name, value in QUIET_ENV.items()})
    # Torch and DeepSpeed call `ninja`, which lies beside an interpreter that nobody activated.
    beside = str(Path(sys.executable).parent)
    if beside not in os.environ.get("PATH", "").split(os.pathsep):
        os.environ["PATH"] = os.pathsep.join([beside, os.environ.get("PATH", "")])
    # Inside a submitted job Ray itself says which cluster this process belongs to.
    address = os.environ.get("RAY_ADDRESS") or config.address
    if address != "local":
        try:
            ray.init(address=address, log_to_driver=False)
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise PrerequisiteError(
                f"cluster.address {address!r}: no Ray answers there ({error}). Start one with "
                '`ray start --head`, or use address = "local".'
            ) from error
        try:
            yield ray.get_runtime_context().gcs_address
        finally:
            ray.shutdown()
        return
    require_port(config.metrics_port, field="cluster.metrics_port")
    # Unix socket paths end at 107 bytes, so the folder is short and not inside the run.
    folder = tempfile.mkdtemp(prefix="dst-", dir="/tmp" if Path("/tmp").is_dir() else None)
    try:
        yield start_local_ray(
            folder,
            num_cpus=config.logical_cpus,
            object_store_memory=config.object_store_mb * 2**20,
            _metrics_export_port=config.metrics_port,
        )
    finally:
        ray.shutdown()
        if log_folder is not None:
            _keep_logs(Path(folder), log_folder)
        shutil.rmtree(folder, ignore_errors=True)


def start_local_ray(folder: str, **options: Any) -> str:
    """Start a Ray in `folder`, without dashboard, and return its address.

    `options` go to `ray.init`. Ray 2.60 gives its own processes 30 s to find each other
    (`Node.__init__`), which a machine that is busy with something else may not manage: it is then
    stopped and started once more.
    """
    import ray

    os.environ.update({name: os.environ.get(name, value) for name, value in PROXY_ENV.items()})
    for last in (False, True):
        try:
            context = ray.init(
                address="local",
                include_dashboard=False,
                log_to_driver=False,
                _temp_dir=folder,
                # A new one each time: Ray adds to it.
                **{**options, "_system_config": {**OWN_RAY, **options.get("_system_config", {})}},
            )
            break
        except Exception as error:
            if last or "timed out during startup" not in str(error):
                raise
            ray.shutdown()
            _end_processes_of(folder)
    _end_what_nobody_asks()
    global _started_here
    _started_here = str(context.address_info["gcs_address"])
    return _started_here


def _end_what_nobody_asks() -> None:
    """End what a Ray of the run's own starts for others, and what takes 5% of a core all the time.

    No log goes to the driver, so none need be followed; no node is added, so there is nothing to
    scale; of the dashboard only the part that reports usage is left. `ray.init` has no option for
    any of them.
    """
    from ray._private import worker

    node = worker._global_node
    node.kill_log_monitor(check_alive=False)
    node.kill_monitor(check_alive=False)
    node.kill_dashboard(check_alive=False)


def ends_with_this_process() -> bool:
    """Whether the connected Ray was started here by `start_local_ray` and ends with it."""
    import ray

    return ray.is_initialized() and ray.get_runtime_context().gcs_address == _started_here


def _end_processes_of(folder: str) -> None:
    """Kill what a start that failed left below this process; all of it names its folder."""
    import psutil

    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if any(folder in argument for argument in process.cmdline()):
                process.kill()


def bound_socket(host: str, port: int, *, shared: bool = False) -> socket.socket:
    """Return a socket bound to an address or name of this machine, IPv4 or IPv6, for TCP.

    `shared` lets another process bind to the same. OSError if it cannot be bound.
    """
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    # Of a name with both kinds, such as localhost, the one that every client tries.
    family, *_, address = min(found, key=lambda one: one[0] != socket.AF_INET)
    bound = socket.socket(family, socket.SOCK_STREAM)
    try:
        # As servers do: a port in TIME_WAIT is free, one that somebody listens on is not.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        bound.bind(address)
    except BaseException:
        bound.close()
        raise
    return bound


def require_port(port: int, *, field: str, host: str = "127.0.0.1") -> None:
    """Raise PrerequisiteError if something already listens on the port, or nothing ever can."""
    try:
        bound_socket(host, port).close()
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            raise PrerequisiteError(
                f"{field} {port} is taken on {host} ({error.strerror}): stop what listens there, "
                f"or choose another with --{field} PORT."
            ) from error
        raise PrerequisiteError(
            f"{field} {port} cannot be opened on {host} ({error.strerror}): give an address of "
            "this machine, such as 127.0.0.1 or ::1, and a port that you may open."
        ) from error


def available_memory_gib() -> float | None:
    """Memory this process could still get, GiB: the machine's, or its cgroup's if that is less."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    kib = next((int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)
    free = kib * 1024 / GIB if kib is not None else None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        used = int(Path("/sys/fs/cgroup/memory.current").read_text())
    except OSError:
        return free
    if limit == "max":
        return free
    left = (int(limit) - used) / GIB
    return left if free is None else min(free, left)


def require_memory(least_gib: float, *, purpose: str) -> None:
    """Raise PrerequisiteError, before anything is loaded, if too little memory is free."""
    free = available_memory_gib()
    if free is not None and free < least_gib:
        raise PrerequisiteError(
            f"{purpose} needs {least_gib:.1f} GiB of free memory and {free:.1f} GiB are free: stop "
            "other programs, take a smaller model, or lower cluster.min_free_memory_gb if you know "
            "that less will do."
        )


def _keep_logs(folder: Path, log_folder: Path) -> None:
    """Copy the newest session's logs; they are what an error message points at."""
    for source in folder.glob("session_2*/logs"):
        for path in source.rglob("*"):
            relative = path.relative_to(source)
            wanted = relative.parts[0].startswith(LOGS_KEPT)
            if wanted and path.is_file() and path.stat().st_size:
                target = log_folder / relative
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(path, target)
