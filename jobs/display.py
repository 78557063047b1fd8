"""What a person sees: our own progress and results. Everything else goes to a log file.

The engines write to the process's standard output and error, some of them from C++. So the two
file descriptors are pointed at the log, and this module keeps a copy of the real ones.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

LINE_EVERY_S = 10.0


class Display:
    """Progress bars on a terminal, a line now and then elsewhere (a job's log, CI)."""

    def __init__(self, console: Console | None = None):
        """Write to `console`, by default the process's standard output."""
        self.console = console or Console(highlight=False)

    def say(self, text: str) -> None:
        """Print one line."""
        self.console.print(escape(text), soft_wrap=True)

    @contextmanager
    def step(self, title: str) -> Iterator[StepProgress]:
        """Show a step from its start to its end, with what it is doing and how far it is."""
        if self.console.is_terminal:
            columns = (
                SpinnerColumn(),
                TextColumn("{task.description}"),
                BarColumn(bar_width=24),
                TextColumn("{task.fields[note]}"),
                TimeRemainingColumn(compact=True),
            )
            with Progress(*columns, console=self.console, transient=True) as progress:
                yield _Bar(progress, title)
        else:
            yield _Lines(self.console, title)

    def table(self, title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
        """Print a table; every column after the first is aligned right."""
        table = Table(title=title, title_justify="left", title_style="bold")
        for index, column in enumerate(columns):
            table.add_column(column, justify="left" if index == 0 else "right")
        for row in rows:
            table.add_row(*(escape(str(cell)) for cell in row))
        self.console.print(table)


class StepProgress:
    """How far a step is."""

    def update(
        self, done: float, total: float, note: str = "", left_s: float | None = None
    ) -> None:
        """Report `done` of `total`, with a word on what is happening.

        `left_s`: seconds left, where the step knows better than its reports' pace tells.
        """


class _Bar(StepProgress):
    def __init__(self, progress: Progress, title: str):
        self._progress = progress
        self._task = progress.add_task(title, total=None, note="")

    def update(
        self, done: float, total: float, note: str = "", left_s: float | None = None
    ) -> None:
        # The bar has a column of its own for the time left.
        self._progress.update(self._task, completed=done, total=total, note=escape(note))


class _Lines(StepProgress):
    def __init__(self, console: Console, title: str):
        self._console = console
        self._title = title
        self._last = time.monotonic()
        self._pace = _Pace()

    def update(
        self, done: float, total: float, note: str = "", left_s: float | None = None
    ) -> None:
        now = time.monotonic()
        paced = self._pace.left_s(now, done, total)
        if now - self._last < LINE_EVERY_S:
            return
        self._last = now
        share = f"{done / total:4.0%}" if total else ""
        left = paced if left_s is None else left_s
        words = [note] * bool(note) + ([time_left(left)] if left else [])
        self._console.print(f"  {self._title} {share} {escape(', '.join(words))}", soft_wrap=True)


class _Pace:
    """Time left by the pace since a phase's first report: what was done before it took no time."""

    def __init__(self) -> None:
        self._first: tuple[float, float] | None = None
        self._newest = (0.0, 0.0)

    def left_s(self, now: float, done: float, total: float) -> float | None:
        """Return the seconds left once `done` of `total` are done; None where nothing tells."""
        before, whole = self._newest
        self._newest = (done, total)
        if self._first is None or total != whole or done < before:
            self._first = (now, done)
        since, start = self._first
        if done <= start or done >= total:
            return None
        return (total - done) * (now - since) / (done - start)


def time_left(seconds: float) -> str:
    """Say how much time is left, in the unit that fits."""
    if seconds < 90:
        return f"{seconds:.0f} s left"
    return f"{seconds / 60:.0f} min left" if seconds < 3600 else f"{seconds / 3600:.1f} h left"


@contextmanager
def engine_output_to(log: Path) -> Iterator[Display]:
    """Send file descriptors 1 and 2 to `log` for the block; yield a display on the real output."""
    log.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    real_out, real_err = os.dup(1), os.dup(2)
    # A display made outside, as in tests, may not be on a file descriptor of its own.
    stream = os.fdopen(os.dup(real_out), "w", encoding="utf-8", buffering=1)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(file, 1)
    os.dup2(file, 2)
    os.close(file)
    try:
        yield Display(Console(file=stream, highlight=False, width=_width(stream.fileno())))
    finally:
        with suppress(OSError):  # a full disk: what it could not take is lost
            sys.stdout.flush()
            sys.stderr.flush()
        os.dup2(real_out, 1)
        os.dup2(real_err, 2)
        os.close(real_out)
        os.close(real_err)
        stream.close()


def _width(descriptor: int) -> int | None:
    """Terminal width; 100 columns where the output is a file, so that tables stay whole."""
    return None if os.isatty(descriptor) else 100
