"""The service curve: how long one replica takes for a request, by how many it works on at once."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator

from cluster.config import StrictModel, validate
from cluster.errors import ConfigError
from cluster.storage import folder_and_name


class Point(StrictModel):
    """One concurrency; `seconds_per_request`, or `tokens_per_s` and the curve's tokens."""

    concurrency: int = Field(ge=1)
    """Requests that the replica worked on at once."""
    seconds_per_request: float | None = Field(default=None, gt=0)
    """Mean seconds from start to end of a request."""
    tokens_per_s: float | None = Field(default=None, gt=0)
    """Completion tokens a second of the replica."""
    p50_s: float | None = None
    """Median seconds of a request."""
    p90_s: float | None = None
    """P90 of a request, seconds."""
    ttft_s: float | None = Field(default=None, ge=0)
    """Mean seconds to the first token."""
    requests: int | None = None
    """Requests the figures are of."""


class ServiceCurve(StrictModel):
    """What was measured of one replica, as `distillery capacity --measure` writes it."""

    model: str = ""
    """The model that was asked."""
    measured_at: str = ""
    """When, ISO 8601."""
    startup_s: float = Field(default=60.0, ge=0)
    """Seconds from the decision to start a replica until it answers."""
    prompt_tokens: float | None = Field(default=None, gt=0)
    """Mean prompt tokens of the requests measured."""
    completion_tokens: float | None = Field(default=None, gt=0)
    """Mean completion tokens of the requests measured."""
    points: list[Point] = Field(min_length=1)
    """The measured concurrencies."""

    @model_validator(mode="after")
    def _every_point_has_seconds(self) -> ServiceCurve:
        for point in self.points:
            if point.seconds_per_request is None and None in (
                point.tokens_per_s,
                self.completion_tokens,
            ):
                raise ValueError(
                    f"points: concurrency {point.concurrency} has no seconds_per_request; give it, "
                    "or tokens_per_s there and completion_tokens beside points"
                )
        seen = [point.concurrency for point in self.points]
        if len(set(seen)) != len(seen):
            raise ValueError(f"points: a concurrency stands twice in {seen}; keep one of them")
        return self

    def seconds(self, concurrency: np.ndarray) -> np.ndarray:
        """Seconds of a request at each concurrency.

        Straight lines between the points; beyond the last the throughput stays what it was there,
        so a request takes longer in proportion.
        """
        points = sorted(self.points, key=lambda point: point.concurrency)
        at = np.array([point.concurrency for point in points], float)
        seconds = np.array([self._seconds_of(point) for point in points])
        found = np.interp(concurrency, at, seconds)
        return np.where(concurrency > at[-1], seconds[-1] * concurrency / at[-1], found)

    def _seconds_of(self, point: Point) -> float:
        if point.seconds_per_request is not None:
            return point.seconds_per_request
        assert point.tokens_per_s is not None
        assert self.completion_tokens is not None
        return point.concurrency * self.completion_tokens / point.tokens_per_s

    @property
    def alone_s(self) -> float:
        """Seconds of a request that a replica has for itself."""
        return float(self.seconds(np.array([1.0]))[0])

    def speed(self, limit: int) -> np.ndarray:
        """Speed of each of 0…`limit` requests as a share of the speed alone; shape (limit + 1,)."""
        concurrency = np.arange(1, limit + 1, dtype=float)
        return np.concatenate(([1.0], self.alone_s / self.seconds(concurrency)))

    def work_s(
        self, prompt_tokens: np.ndarray | None, completion_tokens: np.ndarray | None, *, count: int
    ) -> np.ndarray:
        """Seconds that each of `count` requests takes alone, by its tokens where they are known.

        The time to the first token goes with the prompt's length, the rest with the completion's.
        """
        alone_s = self.alone_s
        first = min(self.points, key=lambda point: point.concurrency)
        prefill_s = min(first.ttft_s or 0.0, alone_s)
        seconds = np.full(count, alone_s)
        if completion_tokens is not None and self.completion_tokens:
            share = completion_tokens / self.completion_tokens
            seconds += (alone_s - prefill_s) * (share - 1)
        if prompt_tokens is not None and self.prompt_tokens:
            seconds += prefill_s * (prompt_tokens / self.prompt_tokens - 1)
        # Even an empty request is a request.
        return np.maximum(seconds, alone_s * 1e-3)

    def requests_per_s(self, limit: int) -> float:
        """Most requests a second that one replica finishes with up to `limit` at once."""
        concurrency = np.arange(1, limit + 1, dtype=float)
        return float(np.max(concurrency / self.seconds(concurrency)))

    def concurrency_within(self, seconds: float, *, limit: int) -> int:
        """Largest concurrency at which a request takes no longer than `seconds`; 0 if none."""
        within = np.flatnonzero(self.seconds(np.arange(1, limit + 1, dtype=float)) <= seconds)
        return int(within[-1]) + 1 if len(within) else 0


def read_curve(uri: str | Path) -> ServiceCurve:
    """Read a curve's JSON; ConfigError lists what is wrong with it, DataError what is no JSON."""
    store, name = folder_and_name(uri)
    if not store.is_file(name):
        raise ConfigError(
            f"{uri}: no such file; give the JSON that `distillery capacity --measure URL --model "
            "NAME` wrote."
        )
    return validate(ServiceCurve, store.read_json(name), source=str(uri))


def round_up(value: float) -> int:
    """Return the whole number above, unmoved by the last digit's rounding."""
    return math.ceil(value - 1e-9)
