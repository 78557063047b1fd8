"""Which adapters a replica holds: at most so many, the least recently used idle one leaves first.

vLLM would load any number and shift them through its slots by itself, but then nobody knows when
one is really gone, and its CPU kernels answer base requests wrongly once every slot is filled.
"""

from __future__ import annotations

import asyncio
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from cluster.errors import RegistryError

Action = Callable[[str], Awaitable[None]]


class NoFreeSlot(RegistryError):
    """Every slot holds an adapter that has to stay: nothing is wrong with the one asked for."""


@dataclass
class _Resident:
    users: int = 0
    idle: asyncio.Event = field(default_factory=asyncio.Event)


class Residents:
    """At most `limit` adapters, loaded when first held, unloaded only when nobody holds them."""

    def __init__(self, *, limit: int, load: Action, unload: Action):
        self.limit = limit
        self.pinned: frozenset[str] = frozenset()
        """Adapters that make room for no other."""
        self._load = load
        self._unload = unload
        self._residents: OrderedDict[str, _Resident] = OrderedDict()
        self._loading = asyncio.Lock()

    @property
    def ids(self) -> list[str]:
        """Resident adapters, least recently used first."""
        return list(self._residents)

    @asynccontextmanager
    async def hold(self, model_id: str) -> AsyncIterator[None]:
        """Keep `model_id` resident for the block, loading it first if need be.

        What `load` raises is raised here, and nothing that was resident and in use is lost.
        """
        resident = self._residents.get(model_id) or await self._bring_in(model_id)
        # No await between finding a resident and counting its user: it cannot leave in between.
        resident.users += 1
        resident.idle.clear()
        if model_id in self._residents:
            self._residents.move_to_end(model_id)
        try:
            yield
        finally:
            resident.users -= 1
            if not resident.users:
                resident.idle.set()

    async def _bring_in(self, model_id: str) -> _Resident:
        async with self._loading:
            if resident := self._residents.get(model_id):
                return resident
            while len(self._residents) >= self.limit:
                await self._send_away(self._next_to_leave())
            await self._load(model_id)
            resident = self._residents[model_id] = _Resident()
            return resident

    def _next_to_leave(self) -> str:
        """The least recently used of the idle ones, or of all if none is idle."""
        free = [model_id for model_id in self._residents if model_id not in self.pinned]
        if not free:
            raise NoFreeSlot(
                f"all {self.limit} slots hold pinned adapters; unpin one or raise serve.max_loras."
            )
        idle = (model_id for model_id in free if not self._residents[model_id].users)
        return next(idle, free[0])

    async def drop(self, model_id: str) -> bool:
        """Unload an adapter once nobody uses it; whether it was there."""
        resident = self._residents.get(model_id)
        if resident is None:
            return False
        while resident.users:
            await resident.idle.wait()
        async with self._loading:
            if self._residents.get(model_id) is not resident or resident.users:
                return False
            await self._send_away(model_id)
        return True

    async def _send_away(self, model_id: str) -> None:
        # Out of the table first: who asks for it from now on waits for the lock, so a busy
        # adapter drains and cannot hold its slot for ever.
        resident = self._residents.pop(model_id)
        try:
            if resident.users:
                await resident.idle.wait()
        except BaseException:
            self._residents[model_id] = resident
            self._residents.move_to_end(model_id, last=False)
            raise
        await self._unload(model_id)
