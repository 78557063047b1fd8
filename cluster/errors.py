"""Exceptions for people: each message names the field, the value, what is allowed and the fix."""

from __future__ import annotations


class DistilleryError(Exception):
    """Base of everything Distillery raises on purpose; `exit_code` is what the command returns."""

    exit_code = 1


class ConfigError(DistilleryError, ValueError):
    """The configuration cannot be used; the message lists every problem found, not the first."""

    exit_code = 2


class DataError(DistilleryError, ValueError):
    """A prompts file, task folder or recorded answer is broken; the message names file and line."""

    exit_code = 2


class PrerequisiteError(DistilleryError, RuntimeError):
    """The machine lacks something (memory, a port, a key, a package); the message says the fix."""

    exit_code = 2


class GateError(DistilleryError):
    """A gate failed: nothing is published."""

    exit_code = 3


class DriftError(DistilleryError):
    """Production is no longer what the student was evaluated on."""

    exit_code = 4


class StageError(DistilleryError, RuntimeError):
    """A stage could not finish; what it had finished is kept and a rerun continues from there."""


class RegistryError(DistilleryError, ValueError):
    """The adapter registry refused: unknown name or version, wrong digest, wrong base, a race."""

    exit_code = 2


def root_cause(error: BaseException) -> BaseException:
    """Return the innermost error a person can act on.

    Ray wraps what a worker raised (`RayTaskError.cause`), Ray Train wraps it again
    (`worker_failures`), and tenacity and others chain by `__cause__`.
    """
    seen: set[int] = set()
    current = error
    while id(current) not in seen:
        seen.add(id(current))
        # Ray's wrapper is also an instance of what it wraps, with a remote traceback as its text.
        wrapped = isinstance(getattr(current, "cause", None), BaseException)
        if isinstance(current, DistilleryError) and not wrapped:
            return current
        failures = getattr(current, "worker_failures", None)
        inner = (
            next(iter(failures.values()), None)
            if isinstance(failures, dict)
            else getattr(current, "cause", None) or current.__cause__
        )
        if not isinstance(inner, BaseException):
            return current
        current = inner
    return current
