"""How likely a student is wrong about a prompt: `routing.json`, as it is read and as it scores.

`distillery route` learns it, the gateway asks it before every answer; both call `probability`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BeforeValidator, Field, ValidationError

from cluster.config import StrictModel
from cluster.errors import DataError
from cluster.example import Message
from cluster.prompt_features import BUCKETS, COUNTS, features_of, prompt_of, settings
from cluster.storage import Store

FORMAT = "distillery-routing"
VERSION = 1
TEACHER = "teacher"
"""The destination that is no adapter."""
REMAKE = "make it anew with `distillery route FILE`"


def _no_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("a finite number is needed")
    return value


Finite = Annotated[float, BeforeValidator(_no_nan)]


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


@dataclass(frozen=True)
class Predictor:
    """What a routing file says to a server."""

    model: Model
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
        return probability(self.model, prompt_of(messages))


def score(model: Model, text: str) -> float:
    """Return the logit before it is calibrated; exactly rounded, in whatever order it is summed."""
    features = features_of(text)
    terms = [
        model.buckets[bucket] * weight
        for bucket, weight in zip(features.buckets.tolist(), features.weights.tolist(), strict=True)
    ]
    terms += map(float.__mul__, model.counts, features.counts)
    return math.fsum([model.intercept, *terms])


def probability(model: Model, text: str) -> float:
    """Return the calibrated probability of a wrong answer."""
    return calibrated(score(model, text), model.calibration)


def calibrated(raw: float, by: Calibration) -> float:
    """Return the probability of a raw score."""
    logit = by.slope * raw + by.offset
    if logit >= 0:
        return 1.0 / (1.0 + math.exp(-logit))
    odds = math.exp(logit)
    return odds / (1.0 + odds)


def read_predictor(uri: str, *, field: str) -> Predictor:
    """Read a routing file at a path or URI; DataError names `field`, what is wrong and the fix."""
    folder, _, name = uri.rpartition("/")
    try:
        found = json.loads(Store(folder or ".").read_bytes(name))
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
            model=model,
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
