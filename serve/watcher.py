"""The fenced swap: an alias moves in the registry, every replica loads and confirms, routes flip.

    registry says prod -> v3      every replica: fetch, check digests, load, warm, confirm
                                  only then: requests for prod go to v3
    one replica refuses           prod stays where it was; the reason is logged and shown

Requests under way carry their immutable version and finish on it.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime
from typing import Any

from cluster.registry import Registry
from serve.routes import DEFAULT_ALIAS, Alias, RouteTable

log = logging.getLogger("ray.serve")

LoadEverywhere = Callable[[str], Awaitable[Sequence[str | None]]]
"""Load a model id on every replica: for each `None` (loaded and warm) or why it was refused."""

RETRY_S = 15.0
FRESH_S = 0.05


class RegistryWatcher:
    """Keeps a RouteTable as the registry says, as far as the replicas can follow."""

    def __init__(
        self,
        registry: Registry,
        *,
        table: RouteTable,
        load: LoadEverywhere,
        on_load: Callable[[str, float, bool], None] = lambda model_id, seconds, ok: None,
    ):
        self.registry = registry
        self.table = table
        self.problem: str | None = None
        """Why the registry could not be read the last time; `None` when it could."""
        self.synced = False
        """Whether every alias was tried at least once."""
        self._load = load
        self._on_load = on_load
        self._retry_at: dict[str, float] = {}
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def run(self, *, poll_s: float) -> None:
        """Follow the registry until cancelled."""
        while True:
            try:
                await self.refresh(max_age_s=0.0)
                await self.swap()
                self.synced = True
            except Exception:
                # Whatever goes wrong, the routes that work stay and the next poll tries again.
                log.exception("following the registry failed")
            await asyncio.sleep(poll_s)

    async def refresh(self, *, max_age_s: float = FRESH_S) -> None:
        """Read names, versions and aliases unless that was done `max_age_s` ago.

        A registry that vanished or cannot be read changes nothing but `problem`.
        """
        async with self._reading:
            if time.monotonic() - self._read_at < max_age_s:
                return
            try:
                known, wanted = await asyncio.to_thread(self._read, dict(self.table.known))
            except Exception as error:
                if self.problem is None:
                    log.warning("cannot read the registry %s: %s", self.registry.store.uri, error)
                self.problem = f"the registry cannot be read: {type(error).__name__}"
                return
            finally:
                self._read_at = time.monotonic()
            self.problem = None
            # Versions are immutable and never deleted, so what is known stays known.
            for name, versions in known.items():
                self.table.known[name] = self.table.known.get(name, {}) | versions
            self.table.wanted.update(wanted)

    def _read(
        self, known: dict[str, dict[int, int]]
    ) -> tuple[dict[str, dict[int, int]], dict[Alias, int]]:
        versions_of: dict[str, dict[int, int]] = {}
        wanted: dict[Alias, int] = {}
        for name in self.registry.names():
            seen = known.get(name, {})
            versions_of[name] = {
                version: seen[version] if version in seen else self._created(name, version)
                for version in self.registry.versions(name)
            }
            for alias, version in self.registry.aliases(name).items():
                wanted[Alias(name, alias)] = version
        return versions_of, wanted

    def _created(self, name: str, version: int) -> int:
        try:
            made = self.registry.manifest(name, version).created_at
            return int(datetime.fromisoformat(made).timestamp())
        except Exception as error:
            # A broken manifest must not hide the other versions; loading it says what is wrong.
            log.warning("manifest of %s@v%d cannot be read: %s", name, version, error)
            return 0

    async def swap(self) -> None:
        """Bring every alias that moved to where the registry points, if all replicas follow."""
        moved = [a for a, version in self.table.wanted.items() if self.table.live.get(a) != version]
        for alias in sorted(moved, key=lambda a: (a.alias != DEFAULT_ALIAS, a.shown)):
            version = self.table.wanted[alias]
            model_id = f"{alias.name}@v{version}"
            if time.monotonic() < self._retry_at.get(model_id, 0.0):
                continue
            before = self.table.live.get(alias)
            if await self.load(model_id):
                self.table.live[alias] = version
                log.info("%s: v%s -> v%d on every replica", alias.shown, before or "-", version)
            else:
                log.error(
                    "%s stays at %s: %s",
                    alias.shown,
                    f"v{before}" if before else "no version",
                    self.table.refused[model_id],
                )

    async def load(self, model_id: str) -> bool:
        """Load `model_id` on every replica; False, with the reason kept, if one cannot."""
        started = time.monotonic()
        try:
            answers = await self._load(model_id)
            reasons = [reason for reason in answers if reason is not None]
            reason = reasons[0] if reasons else None if answers else "no replica runs"
        except Exception as error:
            log.exception("loading %s failed", model_id)
            reason = f"a replica failed while loading it ({type(error).__name__})"
        self._on_load(model_id, time.monotonic() - started, reason is None)
        if reason is None:
            self.table.refused.pop(model_id, None)
            self._retry_at.pop(model_id, None)
            return True
        self.table.refused[model_id] = reason
        self._retry_at[model_id] = time.monotonic() + RETRY_S
        return False

    def status(self) -> dict[str, Any]:
        """What `/ready` shows: routes, aliases that wait, refused versions, registry trouble."""
        table = self.table
        return {
            "routes": {a.shown: f"{a.name}@v{v}" for a, v in table.live.items()},
            "pending": {
                a.shown: f"{a.name}@v{v}" for a, v in table.wanted.items() if table.live.get(a) != v
            },
            "refused": dict(table.refused),
            "registry": self.problem or "ok",
        }
