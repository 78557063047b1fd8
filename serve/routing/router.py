"""Decides from a prompt alone whether the student is asked or somebody else."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cluster.difficulty import Predictor
from serve.errors import ApiError
from serve.requests import prompt_messages
from serve.routes import Routed, RouteTable
from serve.routing.config import RoutingConfig
from serve.routing.metrics import RoutingMetrics

log = logging.getLogger("ray.serve")

STUDENT = "student"
NOT_THERE = "not_there"
"""Why a hard prompt stays where no replica serves its destination."""
ROUTED_HEADER = "x-distillery-routed"
BY = "difficulty"
"""What the header says."""


@dataclass(frozen=True)
class RoutingParts:
    """What `jobs` brings for one model name: it has read the file and checked that it fits."""

    config: RoutingConfig
    predictor: Predictor

    @property
    def threshold(self) -> float:
        """The configuration's, or the file's."""
        given = self.config.threshold
        found = self.predictor.threshold if given is None else given
        assert found is not None
        return found


@dataclass(slots=True)
class Difficulty:
    """What was found of one prompt, and what became of it."""

    adapter: str
    """Name that was asked for."""
    probability: float
    """That the student's answer would be wrong."""
    to: str | None
    """Where a hard prompt should go; `None` of an easy one."""
    routed_to: str | None = None
    """Who answers in the student's place, once that is so: `teacher` or an adapter's version."""

    @property
    def is_hard(self) -> bool:
        """Whether somebody else should answer."""
        return self.to is not None

    @property
    def headers(self) -> dict[str, str]:
        """Of the response."""
        return {ROUTED_HEADER: BY} if self.routed_to else {}


class Router:
    """Made once a gateway process."""

    def __init__(self, parts: Mapping[str, RoutingParts], *, table: RouteTable):
        self._parts = dict(parts)
        self._table = table
        self._metrics = RoutingMetrics() if parts else None

    def look(self, routed: Routed, route: str, payload: dict[str, Any]) -> Difficulty | None:
        """Return how hard a prompt is, or `None` where nobody asked for it to be looked at.

        A client that names a version gets that version. Blocks for a fraction of a millisecond.
        """
        parts = self._parts.get(routed.target.adapter)
        if parts is None or routed.alias is None or not _has_text(route, payload):
            return None
        adapter = routed.target.adapter
        try:
            probability = parts.predictor.probability(prompt_messages(payload))
        except Exception:
            # What the engine will refuse anyway, or a fault of ours: neither costs an answer.
            log.exception("a prompt's difficulty could not be read; the student answers")
            return None
        hard = probability >= parts.threshold
        return Difficulty(adapter, probability, parts.config.to if hard else None)

    def way(self, to: str) -> Routed | None:
        """Return the way to another adapter, or `None` when nobody serves that.

        It has no alias, so that a canary behind either name is not disturbed.
        """
        try:
            return Routed(self._table.resolve(to))
        except ApiError as error:
            log.info("%s cannot take a hard prompt: %s", to, error)
            return None

    def count(self, found: Difficulty, *, reason: str) -> None:
        """Count by who answers; `reason` is why a hard prompt stays, if it does."""
        assert self._metrics is not None
        if found.routed_to is not None and found.to is not None:
            self._metrics.routed(found.adapter, destination=found.to, reason="hard")
        else:
            reason = reason if found.is_hard else "easy"
            self._metrics.routed(found.adapter, destination=STUDENT, reason=reason)


def _has_text(route: str, payload: dict[str, Any]) -> bool:
    if route == "chat":
        return isinstance(payload.get("messages"), list)
    return isinstance(payload.get("prompt"), str)
