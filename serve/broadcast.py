"""One call to every replica of a deployment: the only place that touches Ray's private helper."""

from __future__ import annotations

import asyncio
from typing import Any


async def call_every_replica(
    handle: Any, method: str, *args: Any, timeout_s: float = 300.0
) -> list[Any]:
    """Call `method(*args)` on every running replica behind `handle`; one result each.

    A load balancer's handle reaches one replica; a swap needs all of them to confirm. Raises what
    the first failing replica raised, and TimeoutError when no replica runs.
    """
    from ray.llm._internal.serve.utils.broadcast import broadcast

    # It waits with time.sleep and ray.get: not in an event loop that answers requests.
    call = asyncio.to_thread(broadcast, handle, method, args=args)
    return await asyncio.wait_for(call, timeout=timeout_s)
