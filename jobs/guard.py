"""The outermost layer of every entry point: errors become a sentence and an exit code."""

from __future__ import annotations

import sys
from collections.abc import Callable

from cluster.errors import ConfigError, DistilleryError

PATHS = (
    FileNotFoundError, FileExistsError, NotADirectoryError, IsADirectoryError, PermissionError,
)  # fmt: skip


def guarded(action: Callable[[], None]) -> int:
    """Run an entry point; print an error's sentence and return its exit code."""
    try:
        action()
    except DistilleryError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.exit_code
    except PATHS as error:
        # A path that somebody gave; where a file of ours is missing the code says more itself.
        print(
            f"error: {error.filename or error}: {error.strerror or 'not usable'}", file=sys.stderr
        )
        return ConfigError.exit_code
    except KeyboardInterrupt:
        print("stopped; the same command goes on from here", file=sys.stderr)
        return 130
    return 0
