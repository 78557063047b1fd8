"""Replicas as processor-sharing queues behind one waiting line, event by event, compiled by numba.

A replica works on up to `limit` requests at once and gives each the same speed, which depends on
how many there are: egalitarian processor sharing with a state-dependent rate (F. P. Kelly,
"Reversibility and Stochastic Networks", 1979, section 3.3), which is what continuous batching does.
Its requests end in the order of their *virtual* finishing times (A. Parekh, R. Gallager,
"A Generalized Processor Sharing Approach", IEEE/ACM Trans. Networking 1(3), 1993), so each replica
keeps one heap, and an event costs the logarithm of the requests and of the replicas.

A request goes to the less busy of two replicas drawn at random, as Ray Serve's router does (power
of two choices), to any other that has room, or waits first come, first served.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit

INF = np.inf
OFF, ACCEPTING, DRAINING = 0, 1, 2

# Places in `counts` and `sums`: numba wants arrays for what changes.
ARRIVED, HEAD, TAIL, DONE, RUNNING, PLANNED, INSIDE, REJECTED, FREE, ALIVE, BUSY = range(11)
NOW, SUM_INSIDE, SUM_ALIVE, SUM_BUSY = range(4)


class Pool(NamedTuple):
    """All state. Shapes: N requests, R replicas, K requests a replica works on at once."""

    arrival_s: np.ndarray
    """(N,) sorted."""
    work_s: np.ndarray
    """(N,) seconds that each takes alone on a replica."""
    speed: np.ndarray
    """(K + 1,) speed of each of k requests at a replica, as a share of the speed alone."""
    start_s: np.ndarray
    """(N,) when a replica took it; NaN before that, and for ever if it was rejected."""
    finish_s: np.ndarray
    """(N,)."""
    done: np.ndarray
    """(N,) requests in the order in which they finished."""
    waiting: np.ndarray
    """(N,) the waiting line, between HEAD and TAIL."""
    status: np.ndarray
    """(R,)."""
    num: np.ndarray
    """(R,) requests at each replica."""
    virtual: np.ndarray
    """(R,) work that each of its requests would have had since the start, seconds."""
    seen_s: np.ndarray
    """(R,) when `virtual` was right."""
    ends: np.ndarray
    """(R, K) heap of virtual finishing times."""
    who: np.ndarray
    """(R, K) the requests of `ends`."""
    next_s: np.ndarray
    """(R,) when the next request finishes."""
    plan: np.ndarray
    """(R,) heap of replicas by `next_s`."""
    place: np.ndarray
    """(R,) where each is in `plan`; -1 if not."""
    accepting: np.ndarray
    """(R,) the replicas that take requests, the first RUNNING of them."""
    counts: np.ndarray
    sums: np.ndarray


def new_pool(
    arrival_s: np.ndarray, work_s: np.ndarray, *, speed: np.ndarray, max_replicas: int, seed: int
) -> Pool:
    """Return a pool before its first event, without replicas."""
    n, r, k = len(arrival_s), max_replicas, len(speed) - 1
    counts, sums = np.zeros(11, np.int64), np.zeros(4)
    never, whole = np.full(n, np.nan), np.zeros(r, np.int32)
    _seed(seed)
    return Pool(
        np.ascontiguousarray(arrival_s, np.float64),
        np.ascontiguousarray(work_s, np.float64),
        np.ascontiguousarray(speed, np.float64),
        never,
        never.copy(),
        np.zeros(n, np.int32),
        np.zeros(n, np.int32),
        np.zeros(r, np.int8),
        whole,
        np.zeros(r),
        np.zeros(r),
        np.zeros((r, k)),
        np.zeros((r, k), np.int32),
        np.full(r, INF),
        whole.copy(),
        np.full(r, -1, np.int32),
        whole.copy(),
        counts,
        sums,
    )


@njit(cache=True)
def _seed(seed: int) -> None:
    np.random.seed(seed)


@njit(cache=True)
def _plan_sift(p: Any, at: int) -> None:
    """Move the replica at a place of the plan up or down to where its next event belongs."""
    plan, place, next_s = p.plan, p.place, p.next_s
    replica = plan[at]
    key = next_s[replica]
    while at > 0:
        parent = (at - 1) >> 1
        if next_s[plan[parent]] <= key:
            break
        plan[at] = plan[parent]
        place[plan[at]] = at
        at = parent
    size = p.counts[PLANNED]
    while True:
        child = 2 * at + 1
        if child >= size:
            break
        if child + 1 < size and next_s[plan[child + 1]] < next_s[plan[child]]:
            child += 1
        if next_s[plan[child]] >= key:
            break
        plan[at] = plan[child]
        place[plan[at]] = at
        at = child
    plan[at] = replica
    place[replica] = at


@njit(cache=True)
def _schedule(p: Any, r: int) -> None:
    """Put the replica's next departure into the plan."""
    k = p.num[r]
    p.next_s[r] = p.seen_s[r] + (p.ends[r, 0] - p.virtual[r]) / p.speed[k] if k else INF
    if p.place[r] < 0:
        size = p.counts[PLANNED]
        p.plan[size] = r
        p.place[r] = size
        p.counts[PLANNED] = size + 1
    _plan_sift(p, p.place[r])


@njit(cache=True)
def _catch_up(p: Any, r: int, now_s: float) -> None:
    k = p.num[r]
    if k:
        p.virtual[r] += (now_s - p.seen_s[r]) * p.speed[k]
    p.seen_s[r] = now_s


@njit(cache=True)
def _take(p: Any, i: int, r: int, now_s: float) -> None:
    """Start request `i` on replica `r`."""
    _catch_up(p, r, now_s)
    ends, who, k = p.ends[r], p.who[r], p.num[r]
    end = p.virtual[r] + p.work_s[i]
    at = k
    while at > 0:
        parent = (at - 1) >> 1
        if ends[parent] <= end:
            break
        ends[at], who[at] = ends[parent], who[parent]
        at = parent
    ends[at], who[at] = end, i
    p.num[r] = k + 1
    p.start_s[i] = now_s
    p.counts[FREE] -= 1
    if k == 0:
        p.counts[BUSY] += 1
    _schedule(p, r)


@njit(cache=True)
def _finish(p: Any, r: int, now_s: float) -> None:
    """End the replica's next request, and give it the first that waits."""
    _catch_up(p, r, now_s)
    ends, who, counts = p.ends[r], p.who[r], p.counts
    i = who[0]
    k = p.num[r] - 1
    end, last = ends[k], who[k]
    at = 0
    while True:
        child = 2 * at + 1
        if child >= k:
            break
        if child + 1 < k and ends[child + 1] < ends[child]:
            child += 1
        if ends[child] >= end:
            break
        ends[at], who[at] = ends[child], who[child]
        at = child
    ends[at], who[at] = end, last
    p.num[r] = k
    p.finish_s[i] = now_s
    p.done[counts[DONE]] = i
    counts[DONE] += 1
    counts[INSIDE] -= 1
    if k == 0:
        counts[BUSY] -= 1
    if p.status[r] == ACCEPTING:
        counts[FREE] += 1
        if counts[HEAD] < counts[TAIL]:
            counts[HEAD] += 1
            _take(p, p.waiting[counts[HEAD] - 1], r, now_s)
            return
    elif k == 0:
        p.status[r] = OFF
        counts[ALIVE] -= 1
    _schedule(p, r)


@njit(cache=True)
def _choose(p: Any) -> int:
    """Return a replica with room: the less busy of two, or whichever has some. -1 without room."""
    running, limit = p.counts[RUNNING], len(p.speed) - 1
    if p.counts[FREE] <= 0 or running == 0:
        return -1
    first = np.random.randint(0, running)
    second = first
    if running > 1:
        second = np.random.randint(0, running - 1)
        if second >= first:
            second += 1
    a, b = p.accepting[first], p.accepting[second]
    if p.num[b] < p.num[a]:
        a = b
    if p.num[a] < limit:
        return a
    for step in range(running):
        r = p.accepting[(first + step) % running]
        if p.num[r] < limit:
            return r
    return -1


@njit(cache=True)
def _arrive(p: Any, i: int, now_s: float, max_queued: int) -> None:
    counts = p.counts
    # Whoever waits goes first.
    r = -1 if counts[HEAD] < counts[TAIL] else _choose(p)
    if r < 0 and counts[TAIL] - counts[HEAD] >= max_queued:
        counts[REJECTED] += 1
        return
    counts[INSIDE] += 1
    if r >= 0:
        _take(p, i, r, now_s)
    else:
        p.waiting[counts[TAIL]] = i
        counts[TAIL] += 1


@njit(cache=True)
def _pass_time(p: Any, now_s: float) -> None:
    counts, sums = p.counts, p.sums
    dt = now_s - sums[NOW]
    sums[SUM_INSIDE] += dt * counts[INSIDE]
    sums[SUM_ALIVE] += dt * counts[ALIVE]
    sums[SUM_BUSY] += dt * counts[BUSY]
    sums[NOW] = now_s


@njit(cache=True)
def advance(p: Any, until_s: float, max_queued: int) -> None:
    """Let everything happen up to and with `until_s`."""
    counts = p.counts
    while True:
        i = counts[ARRIVED]
        arrival_s = p.arrival_s[i] if i < len(p.arrival_s) else INF
        finish_s = p.next_s[p.plan[0]] if counts[PLANNED] else INF
        now_s = min(arrival_s, finish_s)
        if now_s > until_s:
            break
        _pass_time(p, now_s)
        if finish_s <= arrival_s:
            _finish(p, p.plan[0], now_s)
        else:
            counts[ARRIVED] = i + 1
            _arrive(p, i, now_s, max_queued)
    _pass_time(p, until_s)


@njit(cache=True)
def start_replica(p: Any) -> None:
    """Let one more replica take requests, at once those that wait."""
    counts, now_s, size = p.counts, p.sums[NOW], len(p.status)
    r = 0
    while r < size and p.status[r] != OFF:
        r += 1
    if r < size:
        p.virtual[r] = 0.0
        p.seen_s[r] = now_s
        counts[ALIVE] += 1
    else:
        # Every place is taken by one that runs or drains: one that drains goes on.
        r = 0
        while p.status[r] != DRAINING:
            r += 1
    p.status[r] = ACCEPTING
    p.accepting[counts[RUNNING]] = r
    counts[RUNNING] += 1
    counts[FREE] += len(p.speed) - 1 - p.num[r]
    while counts[HEAD] < counts[TAIL] and p.num[r] < len(p.speed) - 1:
        counts[HEAD] += 1
        _take(p, p.waiting[counts[HEAD] - 1], r, now_s)


@njit(cache=True)
def stop_replica(p: Any) -> None:
    """Take the newest replica out; it is off once its last request ended."""
    counts = p.counts
    counts[RUNNING] -= 1
    r = p.accepting[counts[RUNNING]]
    counts[FREE] -= len(p.speed) - 1 - p.num[r]
    if p.num[r]:
        p.status[r] = DRAINING
    else:
        p.status[r] = OFF
        counts[ALIVE] -= 1
