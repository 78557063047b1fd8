"""What all workers share through Ray: one limit a model in the whole cluster, one budget a run."""

from __future__ import annotations

import os
import uuid
from collections.abc import Awaitable, Callable
from typing import Any

from distill.teach.limits import Limits, Report, Share, SharedLimit

NAMESPACE = "distillery"


class Budget:
    """Dollars that may be spent: what is asked for is set aside first, so it is never passed."""

    def __init__(self, limit_usd: float, *, spent_usd: float):
        """`spent_usd` is what earlier runs of the same work have spent."""
        self.limit_usd = limit_usd
        self.spent_usd = spent_usd
        self.reserved_usd = 0.0
        self._in_flight: dict[str, tuple[str, float]] = {}
        """Worker and dollars set aside, by request."""

    def reserve(self, request: str, most_usd: float, *, worker: str) -> bool | None:
        """Set aside the most that a worker's request can cost.

        True: it may be sent. False: never, the money is spent. None: ask again when those in
        flight are settled, for they may cost less than was set aside.
        """
        if self.spent_usd + self.reserved_usd + most_usd <= self.limit_usd:
            self.reserved_usd += most_usd
            self._in_flight[request] = worker, most_usd
            return True
        # Not by the dollars set aside: sums of fractions leave a rest that never becomes zero.
        return None if self._in_flight else False

    def settle(self, request: str, cost_usd: float) -> None:
        """Give back what was set aside and book what it cost, once."""
        if request not in self._in_flight:
            return
        _, most_usd = self._in_flight.pop(request)
        self.reserved_usd = max(0.0, self.reserved_usd - most_usd) if self._in_flight else 0.0
        self.spent_usd += cost_usd

    def held_by(self, worker: str) -> list[str]:
        """Requests that a worker has not settled: its successor does, or others wait for ever."""
        return [request for request, (holder, _) in self._in_flight.items() if holder == worker]


class Blocks:
    """Which blocks of rows a worker has begun: one that is begun again lost its worker."""

    def __init__(self) -> None:
        self._begun: set[str] = set()

    def begin(self, block: str) -> bool:
        """Note it down; returns whether it was begun before."""
        again = block in self._begun
        self._begun.add(block)
        return again


def cluster_limit(
    model: str, limits: Limits, *, api_base: str | None, workers: int
) -> Callable[[Report], Awaitable[Share]]:
    """Return this worker's way to the limit of `model`, made by whoever of `workers` asks first.

    The actor belongs to no job, so that jobs that ask one model share its limits; what the last
    one to start has configured holds for all.
    """
    import ray

    from cluster.storage import digest_of

    name = f"limit-{digest_of([model, api_base])[:16]}"
    actor = (
        ray.remote(SharedLimit)
        .options(
            name=name,
            namespace=NAMESPACE,
            get_if_exists=True,
            lifetime="detached",
            num_cpus=0,
            # Lost with its node it begins again, from the full concurrency.
            max_restarts=-1,
            max_task_retries=-1,
        )
        .remote(limits)
    )
    actor.configure.remote(limits, workers=workers)
    worker = f"{os.getpid()}-{uuid.uuid4().hex[:8]}"

    async def sync(report: Report) -> Share:
        share: Share = await actor.sync.remote(worker, report)
        return share

    return sync


def run_blocks() -> Any:
    """Return the handle of a run's `Blocks` actor; it ends with the job."""
    import ray

    return ray.remote(Blocks).options(num_cpus=0).remote()


def run_budget(limit_usd: float, *, spent_usd: float) -> Any:
    """Return the handle of a run's `Budget` actor; it ends with the job."""
    import ray

    return ray.remote(Budget).options(num_cpus=0).remote(limit_usd, spent_usd=spent_usd)
