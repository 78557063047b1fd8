"""A Ray of a test module's own: a folder and ports that nobody else has, gone at the end."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from cluster.session import start_local_ray


@contextmanager
def local_ray(*, num_cpus: int = 8, object_store_mib: int = 80, **more: Any) -> Iterator[str]:
    """Start Ray for the block and yield its address; `more` goes to `ray.init`."""
    import ray

    # Ray's sockets lie below this folder and a socket's path has at most 107 characters.
    folder = tempfile.mkdtemp(prefix="dst-", dir="/tmp")
    try:
        yield start_local_ray(
            folder, num_cpus=num_cpus, object_store_memory=object_store_mib * 2**20, **more
        )
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)
