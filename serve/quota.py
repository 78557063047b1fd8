"""What each account (an API key, a model's teacher) used on each UTC day, across restarts.

Every gateway process writes a file of its own, `<day>/<process>.json`, and reads the others', so
two gateways never overwrite each other and a new one goes on from what was used. Counters belong
to a date and are never reset: a clock set forward opens the next day's quota, and when that day
really comes the same counter is used further.
"""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass

from cluster.storage import Store

log = logging.getLogger("ray.serve")

DAY_S = 86_400
DAYS_KEPT = 8
"""In memory; the store keeps all of them."""


@dataclass(slots=True)
class Spent:
    """Requests, tokens (prompt and completion) and US dollars."""

    requests: int = 0
    tokens: int = 0
    usd: float = 0.0

    def add(self, other: Spent) -> None:
        """Add another's."""
        self.requests += other.requests
        self.tokens += other.tokens
        self.usd += other.usd


Day = dict[str, Spent]
"""Key id → what it used."""


class DailyUsage:
    """Counts in memory; `sync` writes and reads the store, off the request path."""

    def __init__(self, store: Store, *, now: Callable[[], float] = time.time):
        self._store = store
        self._now = now
        self._writer = uuid.uuid4().hex[:12]
        self._own: dict[str, Day] = {}
        self._others: dict[str, Day] = {}
        self._unwritten: set[str] = set()
        self._problem: str | None = None

    @property
    def today(self) -> str:
        """The UTC date, `2026-11-22`."""
        return time.strftime("%Y-%m-%d", time.gmtime(self._now()))

    def seconds_left(self) -> float:
        """Until the next UTC day."""
        return DAY_S - self._now() % DAY_S

    def spent(self, key_id: str) -> Spent:
        """What a key used today, by all gateways."""
        total = Spent()
        for days in (self._own, self._others):
            if used := days.get(self.today, {}).get(key_id):
                total.add(used)
        return total

    def add(self, key_id: str, spent: Spent) -> None:
        """Count for today."""
        day = self.today
        self._own.setdefault(day, {}).setdefault(key_id, Spent()).add(spent)
        self._unwritten.add(day)

    def _forget_old_days(self) -> None:
        for days in (self._own, self._others):
            for day in sorted(days.keys() - self._unwritten)[:-DAYS_KEPT]:
                del days[day]

    async def sync(self) -> None:
        """Write what changed and read what other gateways wrote; trouble is logged, not raised."""
        today = self.today
        changed = {day: self._as_json(day) for day in self._unwritten}
        self._unwritten.clear()
        try:
            self._others[today] = await asyncio.to_thread(self._exchange, today, changed)
        except Exception as error:
            self._unwritten.update(changed)
            problem = f"{type(error).__name__}: {error}"
            if problem != self._problem:
                log.error("daily usage is counted in memory only: %s", problem)
            self._problem = problem
            return
        if self._problem:
            log.info("daily usage is kept again")
        self._problem = None
        self._forget_old_days()

    def _as_json(self, day: str) -> dict[str, dict[str, float]]:
        return {key_id: asdict(spent) for key_id, spent in self._own[day].items()}

    def _exchange(self, today: str, changed: dict[str, dict[str, dict[str, float]]]) -> Day:
        own = f"{self._writer}.json"
        for day, rows in changed.items():
            self._store.write_json(f"{day}/{own}", rows)
        total: Day = {}
        for name in self._store.names(today):
            if name.endswith(".json") and name != own:
                for key_id, fields in self._store.read_json(f"{today}/{name}").items():
                    total.setdefault(key_id, Spent()).add(Spent(**fields))
        return total
