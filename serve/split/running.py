"""The splits of a running gateway: what is seen of each version, and how a canary is ended."""

from __future__ import annotations

import asyncio
import logging
from datetime import UTC, datetime
from typing import Any

from cluster.errors import RegistryError
from cluster.registry import Registry, Split
from serve.quality.gate import Checked
from serve.routes import Alias, Routed, RouteTable
from serve.split.canary import Arm, Decision, decide
from serve.split.metrics import SplitMetrics

log = logging.getLogger("ray.serve")

BY = "gateway"
FAULTS = frozenset({"internal", "timeout", "refused_adapter"})
"""Kinds of errors that a version can be blamed for: not a full queue, and not a client."""
LEFT = "client_closed"


class _Watched:
    """Both versions behind an alias, since the split went live here."""

    def __init__(self, split: Split):
        self.split = split
        self.second = Arm()
        self.first = Arm()
        self.decision = Decision("wait", "just begun")
        self.problem = ""
        """Why its end could not be written, the last time."""

    @property
    def hours(self) -> float:
        """Since it was started, by the registry's clock."""
        begun = datetime.fromisoformat(self.split.since)
        return (datetime.now(UTC) - begun).total_seconds() / 3600

    def status(self) -> dict[str, Any]:
        return {
            **self.split.model_dump(exclude={"bounds"}),
            "hours": self.hours,
            "decision": self.decision.action,
            **self.decision.figures(self.second, self.first),
        }


class Splits:
    """Made once a gateway process. What it has seen is lost with it: a canary then starts anew."""

    def __init__(self, registry: Registry, table: RouteTable):
        self._registry = registry
        self._table = table
        self._metrics = SplitMetrics()
        self._watched: dict[Alias, _Watched] = {}
        # Rolled back in the routes, not yet in the registry.
        self._unwritten: dict[Alias, _Watched] = {}

    def observe(
        self,
        routed: Routed | None,
        *,
        latency_s: float,
        error_kind: str = "",
        checked: Checked | None = None,
    ) -> None:
        """Count a request that was asked by an alias with a split; `latency_s` until it ended."""
        if routed is None or routed.alias is None or routed.split is None:
            return
        self.observe_version(
            routed.alias,
            routed.split,
            second=routed.is_second,
            latency_s=latency_s,
            error_kind=error_kind,
            checked=checked,
        )

    def observe_version(
        self,
        alias: Alias,
        split: Split,
        *,
        second: bool,
        latency_s: float,
        error_kind: str = "",
        checked: Checked | None = None,
    ) -> None:
        """Count an answer of one of the two versions, a shadow's too."""
        if error_kind and error_kind not in {*FAULTS, LEFT, "refused_answer"}:
            return
        watched = self._watched.get(alias)
        if watched is None or watched.split != split:
            watched = self._watched[alias] = _Watched(split)
        arm = watched.second if second else watched.first
        if error_kind == LEFT:
            arm.leave(latency_s)
            return
        quality = checked.quality if checked else None
        refused = error_kind == "refused_answer" or quality not in (None, "passed")
        arm.add(
            latency_s=None if error_kind else latency_s,
            error=error_kind in FAULTS,
            refused=refused,
            fallback=error_kind == "refused_answer"
            or (checked is not None and checked.answered_by != "student"),
        )

    async def follow(self, *, poll_s: float) -> None:
        """End canaries as soon as it is decided, until cancelled."""
        while True:
            await asyncio.sleep(poll_s)
            try:
                await self.look()
            except Exception:
                log.exception("looking at the canaries failed")

    async def look(self) -> None:
        """Decide on every live canary once, and write what could not be written before."""
        for alias, ended in list(self._unwritten.items()):
            await self._write_end(alias, ended)
        for alias in self._watched.keys() - self._table.splits.keys():
            self._metrics.ended(alias)
            del self._watched[alias]
        for alias, split in list(self._table.splits.items()):
            watched = self._watched.get(alias)
            if watched is None or watched.split != split:
                watched = self._watched[alias] = _Watched(split)
            watched.decision = decide(
                watched.second, watched.first, split.bounds, hours=watched.hours
            )
            self._metrics.running(alias, split, requests=watched.second.requests)
            if split.mode == "canary" and watched.decision.action != "wait":
                await self._end(alias, watched)

    async def _end(self, alias: Alias, watched: _Watched) -> None:
        if watched.decision.action == "roll_back":
            # At once: the registry may be slow, or not to be written at all.
            self._table.end_split(alias, watched.split)
            self._unwritten[alias] = watched
            log.warning("%s: canary v%d leaves the routes", alias.shown, watched.split.version)
        await self._write_end(alias, watched)

    async def _write_end(self, alias: Alias, watched: _Watched) -> None:
        """Write an end to the registry; one that fails is tried again at the next look."""
        promote = watched.decision.action == "promote"
        try:
            await asyncio.to_thread(
                self._registry.end_split,
                alias.name,
                alias=alias.alias,
                promote=promote,
                expected=watched.split,
                by=BY,
                figures=watched.decision.figures(watched.second, watched.first),
            )
        except RegistryError as error:
            # Somebody has acted in the meantime: there is nothing left to end.
            log.warning("%s: %s", alias.shown, error)
        except Exception as error:
            if str(error) != watched.problem:
                log.warning("%s: a canary's end is not written yet: %s", alias.shown, error)
                watched.problem = str(error)
            return
        self._unwritten.pop(alias, None)
        self._metrics.decided(alias, watched.decision.action)
        log.warning(
            "%s: canary v%d %s: %s",
            alias.shown,
            watched.split.version,
            "promoted" if promote else "rolled back",
            watched.decision.reason,
        )

    def status(self) -> dict[str, dict[str, Any]]:
        """Figures of the splits that run, by the name clients ask for."""
        return {alias.shown: watched.status() for alias, watched in self._watched.items()}
