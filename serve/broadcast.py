"""One call to every replica of a deployment: the only place that touches Ray's private helper."""

from __future__ import annotations

import asyncio
from typing import Any


async def call_every_replica(
    handle: Any, method: str, *args: Any, timeout_s: float = 300.0
) -> list[Any]:
    """Call `method(*args)` on every running replica behind `handle`; one result each.

    A load balancer's handle reaches one replica; a swap needs all of them to confirm. Raises what
    the first failing replica raised.
    """
    from ray.llm._internal.serve.utils.broadcast import broadcast

    def call() -> list[Any]:
        try:
            return list(broadcast(handle, method, args=args))
        except TimeoutError:
            # Half a minute without a first replica, after which nobody was called.
            if handle.running_replicas_populated():
                raise
            return []

    # It waits with time.sleep and ray.get: not in an event loop that answers requests.
    return await asyncio.wait_for(asyncio.to_thread(call), timeout=timeout_s)
