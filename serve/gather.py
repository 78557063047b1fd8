"""Fewer, larger messages between processes for a stream of many small events."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator


async def gathered(events: AsyncIterator[str], *, interval_s: float) -> AsyncGenerator[str, None]:
    """Yield the first event at once, later ones joined over at least `interval_s`.

    The first token's latency is a user's, the cost of each message between processes is everyone's.
    """
    pending: list[str] = []
    news = asyncio.Event()

    async def read() -> None:
        async for event in events:
            pending.append(event)
            news.set()

    reader = asyncio.create_task(read())
    reader.add_done_callback(lambda _: news.set())
    try:
        while True:
            await news.wait()
            news.clear()
            finished = reader.done()
            if pending:
                joined = "".join(pending)
                pending.clear()
                yield joined
            if finished:
                await reader
                return
            await asyncio.sleep(interval_s)
    finally:
        if not reader.done():
            reader.cancel()
            await asyncio.gather(reader, return_exceptions=True)
