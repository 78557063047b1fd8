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
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from cluster.registry import Registry, Split
from serve.routes import DEFAULT_ALIAS, REFUSED_S, Alias, NotLoaded, RouteTable

log = logging.getLogger("ray.serve")

LoadEverywhere = Callable[[str], Awaitable[Sequence[NotLoaded | None]]]
"""Load a model id on every replica: for each `None` (loaded and warm) or why it was refused."""

OnEveryReplica = Callable[[str], Awaitable[Any]]

RETRY_S = REFUSED_S / 2
"""Between two tries of a version: what stays refused is never forgotten in between."""
FRESH_S = 0.05


@dataclass
class _Found:
    """What the registry said."""

    known: dict[str, dict[int, int]] = field(default_factory=dict)
    wanted: dict[Alias, int] = field(default_factory=dict)
    splits: dict[Alias, Split] = field(default_factory=dict)
    pins: list[str] = field(default_factory=list)


class RegistryWatcher:
    """Keeps a RouteTable as the registry says, as far as the replicas can follow."""

    def __init__(
        self,
        registry: Registry,
        *,
        table: RouteTable,
        load: LoadEverywhere,
        unload: OnEveryReplica | None = None,
        pin: Callable[[list[str]], Awaitable[Any]] | None = None,
        on_load: Callable[[str, float, bool], None] = lambda model_id, seconds, ok: None,
        on_swap: Callable[[str, float], None] = lambda name, seconds: None,
    ):
        """`on_swap` gets the seconds from a move being seen in the registry to its going live."""
        self.registry = registry
        self.table = table
        self.problem: str | None = None
        """Why the registry could not be read the last time; `None` when it could."""
        self.synced = False
        """Whether every alias was tried at least once."""
        self._load = load
        self._unload = unload
        self._pin = pin
        self._on_load = on_load
        self._on_swap = on_swap
        self._seen_at: dict[Alias, tuple[int, float]] = {}
        # What went live: a canary that is rolled back leaves the routes before the registry.
        self._split: dict[Alias, Split] = {}
        self._pins_told: list[str] | None = None
        self._pins: list[str] = []
        self._draining: set[asyncio.Task[None]] = set()
        self._retry_at: dict[str, float] = {}
        self._read_at = float("-inf")
        self._reading = asyncio.Lock()

    async def run(self, *, poll_s: float) -> None:
        """Follow the registry until cancelled."""
        while True:
            try:
                await self.refresh(max_age_s=0.0)
                await self.swap()
                await self.swap_splits()
                await self.tell_pins()
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
                found = await asyncio.to_thread(self._read, dict(self.table.known))
            except Exception as error:
                if self.problem is None:
                    log.warning("cannot read the registry %s: %s", self.registry.store.uri, error)
                self.problem = f"the registry cannot be read: {type(error).__name__}"
                return
            finally:
                self._read_at = time.monotonic()
            self.problem = None
            # Versions are immutable and never deleted, so what is known stays known.
            for name, versions in found.known.items():
                self.table.known[name] = self.table.known.get(name, {}) | versions
            self.table.wanted.update(found.wanted)
            for alias, version in found.wanted.items():
                if self._seen_at.get(alias, (None,))[0] != version:
                    self._seen_at[alias] = (version, time.monotonic())
            self.table.want_splits(found.splits)
            self._pins = found.pins

    def _read(self, known: dict[str, dict[int, int]]) -> _Found:
        found = _Found()
        for name in self.registry.names():
            seen = known.get(name, {})
            found.known[name] = {
                version: seen[version] if version in seen else self._created(name, version)
                for version in self.registry.versions(name)
            }
            for alias, version in self.registry.aliases(name).items():
                if version is not None:
                    found.wanted[Alias(name, alias)] = version
            for alias, split in self.registry.splits(name).items():
                found.splits[Alias(name, alias)] = split
            found.pins += [f"{name}@v{version}" for version in self.registry.pins(name)]
        return found

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
        wanted = {f"{alias.name}@v{self.table.wanted[alias]}" for alias in moved}
        self.table.unconfirmed &= wanted
        for alias in sorted(moved, key=lambda a: (a.alias != DEFAULT_ALIAS, a.shown)):
            version = self.table.wanted[alias]
            model_id = f"{alias.name}@v{version}"
            if time.monotonic() < self._retry_at.get(model_id, 0.0):
                continue
            before = self.table.live.get(alias)
            confirmed = await self.load(model_id)
            if confirmed is None:
                # Nor would another alias find a replica.
                self.table.unconfirmed = wanted
                return
            if confirmed:
                self.table.live[alias] = version
                if before is not None:
                    self._on_swap(alias.name, time.monotonic() - self._seen_at[alias][1])
                log.info("%s: v%s -> v%d on every replica", alias.shown, before or "-", version)
                self._retire(alias.name, before)
            else:
                log.error(
                    "%s stays at %s: %s",
                    alias.shown,
                    f"v{before}" if before else "no version",
                    self.table.refusals()[model_id],
                )

    async def swap_splits(self) -> None:
        """Bring canaries, A/B tests and shadows to where the registry wants them."""
        table = self.table
        over = [a for a, split in self._split.items() if table.wanted_splits.get(a) != split]
        for alias in over:
            ended = self._split.pop(alias)
            if table.splits.get(alias) == ended:
                del table.splits[alias]
            log.info("%s: the %s of v%d ended", alias.shown, ended.mode, ended.version)
            self._retire(alias.name, ended.version)
        for alias, split in list(table.wanted_splits.items()):
            model_id = f"{alias.name}@v{split.version}"
            if alias in table.splits or alias not in table.live:
                continue
            if time.monotonic() < self._retry_at.get(model_id, 0.0):
                continue
            confirmed = await self.load(model_id)
            if confirmed is None:
                return
            if confirmed:
                table.splits[alias] = self._split[alias] = split
                log.info(
                    "%s: %s of v%d at %g", alias.shown, split.mode, split.version, split.weight
                )
            else:
                log.error("%s: no %s: %s", alias.shown, split.mode, table.refusals()[model_id])

    def _retire(self, name: str, version: int | None) -> None:
        """Have every replica unload a version that nothing points at, once it has drained."""
        model_id = f"{name}@v{version}"
        if version is None or self._unload is None or model_id in self._in_use():
            return
        drain = asyncio.create_task(self._drain(model_id, self._unload))
        self._draining.add(drain)
        drain.add_done_callback(self._draining.discard)

    async def _drain(self, model_id: str, unload: OnEveryReplica) -> None:
        try:
            await unload(model_id)
        except Exception:
            # It costs memory until another adapter needs its slot, and no request.
            log.exception("%s could not be unloaded", model_id)

    def _in_use(self) -> set[str]:
        """Versions that an alias, a split or a pin points at, or is about to."""
        table = self.table
        pointed = [*table.live.items(), *table.wanted.items()]
        of_splits = [*table.splits.items(), *table.wanted_splits.items()]
        return (
            {f"{alias.name}@v{version}" for alias, version in pointed}
            | {f"{alias.name}@v{split.version}" for alias, split in of_splits}
            | set(self._pins)
        )

    async def tell_pins(self) -> None:
        """Load what is pinned, and tell the replicas to keep it."""
        if self._pin is None or self._pins == self._pins_told:
            return
        pins = list(self._pins)
        if await self._pin(pins):
            self._pins_told = pins
            for model_id in pins:
                await self.load(model_id)

    async def load(self, model_id: str) -> bool | None:
        """Load `model_id` on every replica; False, with the reason kept, if one cannot.

        `None` if no replica runs: nothing is known of it then.
        """
        started = time.monotonic()
        try:
            answers = await self._load(model_id)
            if not answers:
                return None
            why = next((why for why in answers if why is not None), None)
        except Exception as error:
            log.exception("loading %s failed", model_id)
            reason = f"a replica failed while loading it ({type(error).__name__})"
            why = NotLoaded(reason, passes=True)
        self.table.unconfirmed.discard(model_id)
        self._on_load(model_id, time.monotonic() - started, why is None)
        if why is None:
            self.table.accept(model_id)
            self._retry_at.pop(model_id, None)
            return True
        self.table.refuse(model_id, why)
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
            "splits": {a.shown: s.model_dump() for a, s in table.splits.items()},
            "pinned": list(self._pins),
            "refused": table.refusals(),
            "registry": self.problem or "ok",
        }
