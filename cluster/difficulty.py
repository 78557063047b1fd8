"""How likely a student is wrong about a prompt: `routing.json`, as it is read and as it scores.

`distillery route` learns it, the gateway asks it before every answer; both call `Scorer`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from pydantic import Field, ValidationError

from cluster.config import StrictModel
from cluster.errors import DataError
from cluster.example import Message
from cluster.prompt_features import BUCKETS, COUNTS, features_of, prompt_of, settings
from cluster.storage import folder_and_name

FORMAT = "distillery-routing"
VERSION = 1
TEACHER = "teacher"
"""The destination that is no adapter."""
REMAKE = "make it anew with `distillery route FILE`"


SCALE = 2.0**36
"""Of a term as an integer: a sum of terms is off by less than 1e-7."""
MOST = 1e6
"""Largest coefficient: weights of a text are at most 64 together, so no sum leaves 64 bits."""

Finite = Annotated[float, Field(ge=-MOST, le=MOST, allow_inf_nan=False)]


class Calibration(StrictModel):
    """Platt's (1999): the probability is the logistic function of `slope` · score + `offset`."""

    slope: Finite
    """Of the score."""
    offset: Finite
    """Added to it."""


class Model(StrictModel):
    """A logistic regression over `cluster.prompt_features`."""

    features: dict[str, Any]
    """`prompt_features.settings()` of whoever learned it."""
    intercept: Finite
    """Score of a text without features."""
    counts: list[Finite] = Field(min_length=len(COUNTS), max_length=len(COUNTS))
    """Coefficients of the counts."""
    calibration: Calibration
    """From score to probability."""
    buckets: list[Finite] = Field(min_length=BUCKETS, max_length=BUCKETS)
    """Coefficients of the hash buckets."""


class Scorer:
    """A model that is ready to be asked."""

    def __init__(self, model: Model):
        self._model = model
        self._buckets = np.array(model.buckets)

    def score(self, text: str) -> float:
        """Return the logit before it is calibrated.

        Terms are added as integers: a processor that adds floats in another order finds the same.
        """
        found = features_of(text)
        terms = np.rint(self._buckets[found.buckets] * found.weights * SCALE).astype(np.int64)
        of_counts = [by * n for by, n in zip(self._model.counts, found.counts, strict=True)]
        return math.fsum([self._model.intercept, int(terms.sum()) / SCALE, *of_counts])

    def probability(self, text: str) -> float:
        """Return the calibrated probability of a wrong answer."""
        return calibrated(self.score(text), self._model.calibration)


@dataclass(frozen=True)
class Predictor:
    """What a routing file says to a server."""

    scorer: Scorer
    threshold: float | None
    """From this probability on a prompt is better answered elsewhere; `None`: never."""
    task: str
    task_digest: str
    adapter: str
    """Name that the student is published under."""
    base_model: str
    reason: str
    """Why there is no threshold, or how it was picked."""

    def probability(self, messages: Sequence[Message]) -> float:
        """Return the probability that the student answers these messages wrongly."""
        return self.scorer.probability(prompt_of(messages))


def calibrated(raw: float, by: Calibration) -> float:
    """Return the probability of a raw score."""
    logit = by.slope * raw + by.offset
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    odds = math.exp(logit)
    return odds / (1.0 + odds)


def read_predictor(uri: str, *, field: str) -> Predictor:
    """Read a routing file at a path or URI; DataError names `field`, what is wrong and the fix."""
    try:
        store, name = folder_and_name(uri)
        found = json.loads(store.read_bytes(name))
    except OSError as error:
        why = "is not there" if isinstance(error, FileNotFoundError) else f"cannot be read: {error}"
        raise DataError(f"{field} {uri!r} {why}; {REMAKE}, or leave the section out.") from None
    except ValueError:
        found = None
    if not isinstance(found, dict) or found.get("format") != FORMAT:
        raise DataError(
            f'{field} {uri!r} is no routing file (JSON with "format": "{FORMAT}"); give the '
            "routing.json of a run's folder."
        )
    version = found.get("version")
    if version != VERSION:
        newer = isinstance(version, int) and version > VERSION
        fix = "update Distillery on the server, or " if newer else ""
        raise DataError(
            f"{field} {uri!r} has version {version!r}, this program reads {VERSION}; {fix}{REMAKE}."
        )
    try:
        model = Model.model_validate(found["model"])
        predictor = Predictor(
            scorer=Scorer(model),
            threshold=None if found["threshold"] is None else float(found["threshold"]),
            **{name: str(found[name]) for name in NAMED},
        )
    except (ValidationError, KeyError, TypeError, ValueError) as error:
        what = _first_problem(error)
        raise DataError(f"{field} {uri!r} is broken ({what}); {REMAKE}.") from None
    if model.features != settings():
        raise DataError(
            f"{field} {uri!r} was made with other features ({model.features.get('kind')!r}) than "
            f"this program has; {REMAKE}."
        )
    return predictor


NAMED = ("task", "task_digest", "adapter", "base_model", "reason")


def _first_problem(error: Exception) -> str:
    if isinstance(error, ValidationError):
        problem = error.errors(include_url=False)[0]
        return f"model.{'.'.join(map(str, problem['loc']))}: {problem['msg']}"
    return f"{type(error).__name__}: {error}"
