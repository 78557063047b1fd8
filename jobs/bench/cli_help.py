"""How long a person waits for `distillery --help`: `python -m jobs.bench.cli_help`."""

from __future__ import annotations

import statistics
import subprocess
import sys
import time
from pathlib import Path

from jobs.bench.report import Case, report

RUNS = 9
TARGET_S = 1.0


def help_seconds() -> list[float]:
    """Seconds of each of several runs of the installed command, first one left out (cold files)."""
    command = [str(Path(sys.executable).with_name("distillery")), "--help"]
    seconds = []
    for _ in range(RUNS + 1):
        start = time.perf_counter()
        subprocess.run(command, check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return seconds[1:]


def main() -> int:
    """Measure and report; 1 when the median misses its target."""
    seconds = help_seconds()
    median = statistics.median(seconds)
    return report(
        "help",
        [
            Case(
                case=f"distillery --help, median of {RUNS}",
                figure=median,
                unit="s",
                target=f"< {TARGET_S:g}",
                ok=median < TARGET_S,
            ),
            Case(case="distillery --help, slowest", figure=max(seconds), unit="s"),
        ],
    )


if __name__ == "__main__":
    sys.exit(main())
