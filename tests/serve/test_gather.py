"""Streams between processes: the first event at once, later ones joined, nothing lost."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest

from serve.gather import gathered


async def events(count: int, *, pause_s: float = 0.0) -> AsyncIterator[str]:
    for number in range(count):
        yield f"{number};"
        await asyncio.sleep(pause_s)


def collect(source: AsyncIterator[str], *, interval_s: float) -> list[str]:
    async def run() -> list[str]:
        return [chunk async for chunk in gathered(source, interval_s=interval_s)]

    return asyncio.run(run())


def test_nothing_is_lost_and_the_order_stays() -> None:
    chunks = collect(events(500), interval_s=0.001)
    assert "".join(chunks) == "".join(f"{n};" for n in range(500))
    assert len(chunks) < 100


def test_the_first_event_does_not_wait() -> None:
    chunks = collect(events(20, pause_s=0.002), interval_s=0.02)
    assert chunks[0] == "0;"
    assert 2 <= len(chunks) <= 10


def test_an_error_comes_after_what_was_produced() -> None:
    async def fails() -> AsyncIterator[str]:
        yield "a"
        raise ConnectionError("engine died")

    async def run() -> list[str]:
        stream = gathered(fails(), interval_s=0.001)
        first = await anext(stream)
        with pytest.raises(ConnectionError, match="engine died"):
            await anext(stream)
        return [first]

    assert asyncio.run(run()) == ["a"]


def test_leaving_early_ends_the_source() -> None:
    closed = asyncio.Event()

    async def endless() -> AsyncIterator[str]:
        try:
            while True:
                yield "x"
                await asyncio.sleep(0.001)
        finally:
            closed.set()

    async def run() -> bool:
        stream = gathered(endless(), interval_s=0.001)
        await stream.__anext__()
        await stream.aclose()
        await asyncio.sleep(0.01)
        return closed.is_set()

    assert asyncio.run(run())
