"""How many requests one model may be sent, by all workers of a cluster together. Pure.

`SharedLimit` is the one place that decides; workers report what happened since they last asked and
get a share until they ask again, so its cost does not grow with the number of requests. `Gate`
is a worker's side of it: requests wait there for a slot.

Concurrency backs off in proportion to what was refused and grows back by steps (additive increase,
multiplicative decrease: Chiu and Jain 1989). A single 429 among many answers is no reason to slow
down, most of them is; rates a minute are token buckets.
"""

from __future__ import annotations

import asyncio
import time
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from math import inf

WINDOW_S = 1.0
"""Refusals are judged by their share over at least so long."""
LEAST_STARTED, LONGEST_WINDOW_S = 30, 5.0
"""Fewer requests say little about a share: the window stays open for them, but not for ever."""
SHRINK_ABOVE = 0.10
"""Share of refused requests above which concurrency shrinks."""
GROW_BELOW = 0.02
"""Share of refused requests below which it grows back."""
GROWTH = 0.10
"""Step of the growth, as a share of the configured concurrency."""
BURST_S = 2.0
"""A rate a minute may be used up ahead by so many seconds, not by a whole minute."""
FORGET_S = 5.0
"""A worker that has not asked for so long is gone; its share goes to the others."""
EXPECT_S = 30.0
"""How long the shares of workers that are still starting are kept for them."""
SYNC_S = 0.25
"""How often a worker asks."""
PACE = 1.25
"""Requests of a worker begin at most so many times as fast as they end with every slot taken, which
is concurrency / mean time (Little's law). Those that begin together would end together, and one
event loop needs seconds for some hundred answers: between two waves the provider is idle."""
FORGET_TIMES = 20
"""Requests after which a worker's mean time is mostly that of later ones."""


@dataclass(frozen=True)
class Limits:
    """What the configuration allows; `None` is no limit."""

    concurrency: int
    requests_per_minute: int | None = None
    tokens_per_minute: int | None = None


@dataclass(frozen=True)
class Report:
    """What one worker saw since its last report."""

    started: int = 0
    """Requests that were sent. Refusals are compared with these, and with those in flight, and not
    with the answers, which come seconds later than the refusals of the same moment."""
    throttled: int = 0
    """Requests that the provider refused with 429."""
    tokens: int = 0
    """Tokens used beyond what was counted when the requests began; can be negative."""
    demand: int = 0
    """Rows that are waiting or in flight."""
    in_flight: int = 0
    """Rows that are in flight."""
    retry_after_s: float = 0.0
    """Longest Retry-After among the refusals."""
    requests_left: float = 0.0
    """Of the last share, requests that were not begun: they go back."""
    tokens_left: float = 0.0
    """Likewise tokens."""


@dataclass(frozen=True)
class Share:
    """What a worker may do until it asks again."""

    concurrency: int
    requests: float = inf
    """Requests it may begin."""
    tokens: float = inf
    """Tokens it may begin to use."""
    pause_s: float = 0.0
    """Nothing begins for so long."""


class SharedLimit:
    """The state of one model over all workers."""

    def __init__(self, limits: Limits, *, clock: Callable[[], float] = time.monotonic):
        """Begin at the full concurrency: a provider says soon enough if that is too much."""
        self.limits = limits
        self.concurrency = float(limits.concurrency)
        self._clock = clock
        now = clock()
        self._window_began = now
        self._paused_until = now
        self._started = self._throttled = self._carried = 0
        self._retry_after_s = 0.0
        self._seen: dict[str, _Worker] = {}
        self._expected, self._expected_until = 0, now
        self._requests = _Bucket(limits.requests_per_minute, now)
        self._tokens = _Bucket(limits.tokens_per_minute, now)

    def configure(self, limits: Limits, *, workers: int = 0) -> None:
        """Take other limits from now on; the concurrency that was found stays if it fits.

        So many `workers` will ask: the first of them does not get what is for all.
        """
        if workers and self._expected_until <= self._clock():
            self._expected, self._expected_until = workers, self._clock() + EXPECT_S
        if limits != self.limits:
            self.limits = limits
            self.concurrency = min(self.concurrency, float(limits.concurrency))
            now = self._clock()
            self._requests = _Bucket(limits.requests_per_minute, now)
            self._tokens = _Bucket(limits.tokens_per_minute, now)

    def sync(self, worker: str, report: Report) -> Share:
        """Take one worker's report and return its share."""
        now = self._clock()
        self._started += report.started
        self._throttled += report.throttled
        self._retry_after_s = max(self._retry_after_s, report.retry_after_s)
        self._requests.put_back(report.requests_left)
        self._tokens.put_back(report.tokens_left - report.tokens)
        self._seen[worker] = _Worker(
            now, report.demand, held=report.in_flight, in_flight=report.in_flight
        )
        self._seen = {k: v for k, v in self._seen.items() if now - v.asked_at < FORGET_S}
        quiet = self._started < LEAST_STARTED and now - self._window_began < LONGEST_WINDOW_S
        if now - self._window_began >= WINDOW_S and not quiet:
            self._judge(now)
        pause_s = max(0.0, self._paused_until - now)
        concurrency = self._share_of(worker)
        if pause_s or not concurrency:
            return Share(concurrency, requests=0, tokens=0, pause_s=pause_s)
        part = concurrency / max(1, int(self.concurrency))
        return Share(
            concurrency,
            requests=self._requests.grant(now, part),
            tokens=self._tokens.grant(now, part),
        )

    def _judge(self, now: float) -> None:
        # A busy client reads refusals late, in a window in which hardly anything began: those in
        # flight when it opened could have been refused in it as well.
        under_way = self._carried + self._started
        if under_way or self._throttled:
            refused = self._throttled / max(under_way, self._throttled)
            if refused > SHRINK_ABOVE:
                self.concurrency = max(1.0, self.concurrency * (1 - refused / 2))
                self._paused_until = now + self._retry_after_s
            elif refused < GROW_BELOW:
                step = max(1.0, GROWTH * self.limits.concurrency)
                self.concurrency = min(self.limits.concurrency, self.concurrency + step)
        self._window_began = now
        self._carried = sum(seen.in_flight for seen in self._seen.values())
        self._started = self._throttled = 0
        self._retry_after_s = 0.0

    def _share_of(self, worker: str) -> int:
        """Shares as equal as demands allow, whole numbers that add up to the concurrency.

        What others may have in flight until they ask again is not handed out a second time.
        """
        limit = left = max(1, int(self.concurrency))
        starting = 0
        if self._clock() < self._expected_until:
            starting = max(0, self._expected - len(self._seen))
        wanting = sorted((seen.demand, name) for name, seen in self._seen.items() if seen.demand)
        share = 0
        for position, (demand, name) in enumerate(wanting):
            fair = min(demand, -(-left // (len(wanting) + starting - position)))
            if name == worker:
                others = sum(seen.held for n, seen in self._seen.items() if n != worker)
                share = max(0, min(fair, limit - others))
                break
            left -= fair
        self._seen[worker].held = max(self._seen[worker].held, share)
        return share


@dataclass
class _Worker:
    """What the limit knows of a worker."""

    asked_at: float
    demand: int
    held: int
    """Requests that it may have in flight: those it had when it asked, or its share."""
    in_flight: int
    """Those it had when it asked."""


class _Bucket:
    """A token bucket (RFC 2697's idea) filled by a rate a minute; `None` never runs out."""

    def __init__(self, per_minute: int | None, now: float):
        self.per_second = None if per_minute is None else per_minute / 60
        self._size = 0.0 if per_minute is None else max(1.0, per_minute / 60 * BURST_S)
        self._level = self._size
        self._filled_at = now

    def put_back(self, amount: float) -> None:
        if self.per_second is not None:
            self._level += amount

    def grant(self, now: float, part: float) -> float:
        """Hand out a worker's part of what is there."""
        if self.per_second is None:
            return inf
        self._level = min(self._size, self._level + (now - self._filled_at) * self.per_second)
        self._filled_at = now
        granted = max(0.0, min(self._level, max(1.0, self._level * part)))
        self._level -= granted
        return granted


Sync = Callable[[Report], Awaitable[Share]]
_Waiting = tuple[int, asyncio.Future[None]]
"""Tokens that a request may use, and its turn."""


class Gate:
    """Where a worker's requests wait for their turn."""

    def __init__(self, sync: Sync, *, interval_s: float = SYNC_S):
        """`sync` reports and returns the share; it is awaited every `interval_s`."""
        self._sync = sync
        self._interval_s = interval_s
        self._share = Share(0)
        self._paused_until = 0.0
        self._in_flight = 0
        self._started = self._throttled = self._tokens = 0
        self._retry_after_s = 0.0
        self._queue: deque[_Waiting] = deque()
        self._again: deque[_Waiting] = deque()
        self._mean_s = 0.0
        self._next_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._task: asyncio.Task[None] | None = None
        self._lost: Exception | None = None

    async def __aenter__(self) -> Gate:
        """Begin to ask for shares."""
        self._task = asyncio.create_task(self._follow())
        return self

    async def __aexit__(self, *_: object) -> None:
        """Stop, with a last report of no demand."""
        if self._task is not None:
            self._task.cancel()
        if self._lost is None:
            await self._sync(self._report())

    @asynccontextmanager
    async def slot(self, tokens: int = 0, *, again: bool = False) -> AsyncIterator[Slot]:
        """Wait for a turn that may use `tokens`; the block's `Slot` takes what came of it.

        Who is here `again` has waited before, and goes before those who have not. Raises what
        `sync` raised: without an answer about its share a worker would wait for ever.
        """
        if self._lost is not None:
            raise self._lost
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._again if again else self._queue).append((tokens, turn))
        self._admit()
        try:
            await turn
        except asyncio.CancelledError:
            if turn.done() and not turn.cancelled() and turn.exception() is None:
                self._in_flight -= 1
                self._admit()
            raise
        slot = Slot(estimated_tokens=tokens)
        began = time.monotonic()
        try:
            yield slot
        finally:
            self._in_flight -= 1
            took_s = time.monotonic() - began
            self._mean_s += (took_s - self._mean_s) / (FORGET_TIMES if self._mean_s else 1)
            self._tokens += (slot.tokens or tokens) - tokens
            if slot.throttled:
                self._throttled += 1
                self._retry_after_s = max(self._retry_after_s, slot.retry_after_s)
            self._admit()

    def _admit(self) -> None:
        """Give those in front their turn, in the order they came, retries before the others.

        A row that others overtake holds its whole block back: with that, blocks ended together
        and a worker ran dry until the next ones were there.
        """
        while queue := self._again or self._queue:
            tokens, turn = queue[0]
            if not turn.done():
                if not self._may_begin(tokens) or self._too_early():
                    return
                self._in_flight += 1
                self._started += 1
                self._share = Share(
                    self._share.concurrency, self._share.requests - 1, self._share.tokens - tokens
                )
                turn.set_result(None)
            queue.popleft()

    def _may_begin(self, tokens: int) -> bool:
        share = self._share
        return (
            self._in_flight < share.concurrency
            and share.requests >= 1
            # A request larger than any share would wait for ever: it begins on a full one.
            and (share.tokens >= tokens or (self._in_flight == 0 and share.tokens > 0))
            and time.monotonic() >= self._paused_until
        )

    def _too_early(self) -> bool:
        """Whether the next request has to wait for its moment; sets a timer for it if so."""
        now = time.monotonic()
        if now < self._next_at:
            if self._timer is None:
                self._timer = asyncio.get_running_loop().call_later(
                    self._next_at - now, self._on_time
                )
            return True
        self._next_at = now + self._mean_s / (PACE * max(1, self._share.concurrency))
        return False

    def _on_time(self) -> None:
        self._timer = None
        self._admit()

    def _report(self) -> Report:
        report = Report(
            started=self._started,
            throttled=self._throttled,
            tokens=self._tokens,
            demand=len(self._again) + len(self._queue) + self._in_flight,
            in_flight=self._in_flight,
            retry_after_s=self._retry_after_s,
            requests_left=self._share.requests,
            tokens_left=self._share.tokens,
        )
        # Nothing begins on what has been given back while the answer is on its way, nor are there
        # ever more in flight than was reported; what has no limit is not given back.
        self._share = Share(
            min(self._share.concurrency, self._in_flight),
            requests=inf if self._share.requests == inf else 0,
            tokens=inf if self._share.tokens == inf else 0,
        )
        self._started = self._throttled = self._tokens = 0
        self._retry_after_s = 0.0
        return report

    async def _follow(self) -> None:
        try:
            await self._ask_for_shares()
        except Exception as error:
            self._lost = error
            for _, turn in (*self._again, *self._queue):
                if not turn.done():
                    turn.set_exception(error)

    async def _ask_for_shares(self) -> None:
        while True:
            share = self._share = await self._sync(self._report())
            self._paused_until = time.monotonic() + share.pause_s
            self._admit()
            await asyncio.sleep(self._interval_s)


@dataclass
class Slot:
    """One request's turn; the block fills in what came of it."""

    estimated_tokens: int
    tokens: int = 0
    """What the provider counted; 0 where it did not say."""
    throttled: bool = False
    """It was refused with 429."""
    retry_after_s: float = 0.0
    """The refusal's Retry-After."""
