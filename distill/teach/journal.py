"""Answers on disk as they arrive: one line of JSON each, appended in one write, never rewritten.

A line counts when its newline is there. A process that is killed leaves at most one line without
one, which readers skip; every process writes a file of its own, so nobody's half line is in the
middle of another's. The folder is a cache that runs share: an answer is found by the digest of its
request, and a request that is in it is not sent again.
"""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import TracebackType
from typing import Any

from cluster.errors import DataError

FORMAT = 1
"""Of a line; a reader refuses lines of a later one."""
SUFFIX = ".jsonl"


class Journal:
    """One process's file in the folder."""

    def __init__(self, folder: str | Path):
        """Make the folder; the file appears with the first answer."""
        self.folder = Path(folder)
        self.folder.mkdir(parents=True, exist_ok=True)
        self._path = self.folder / f"{os.getpid()}-{uuid.uuid4().hex[:12]}{SUFFIX}"
        self._file: int | None = None

    def add(self, row: dict[str, Any]) -> None:
        """Append an answer (`request_key` and what came back); on disk when this returns.

        It survives the death of any process; `OSError` (a full disk) leaves no half line.
        """
        line = json.dumps({"format": FORMAT, **row}, ensure_ascii=False).encode() + b"\n"
        if self._file is None:
            self._file = os.open(self._path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        before = os.fstat(self._file).st_size
        try:
            written = os.write(self._file, line)
            while written < len(line):
                # A disk that fills up takes a part; the next write says so.
                written += os.write(self._file, line[written:])
        except OSError as error:
            os.ftruncate(self._file, before)
            error.filename = str(self._path)
            raise

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            os.close(self._file)
            self._file = None

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()


def read_journal(folder: str | Path) -> Iterator[dict[str, Any]]:
    """Yield every whole line of the folder's files, in the order of the files' names.

    A line that is whole and no JSON, or of a later format, is a DataError that names it: nothing
    that was paid for is dropped in silence.
    """
    for path in sorted(Path(folder).glob(f"*{SUFFIX}")):
        with path.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.endswith(b"\n"):
                    continue
                try:
                    row = json.loads(line)
                except ValueError:
                    raise DataError(
                        f"{path}, line {number} is no answer: {line[:80]!r}. Remove the line; the "
                        "prompt it stood for will be asked again."
                    ) from None
                if row.get("format") != FORMAT:
                    raise DataError(
                        f"{path}, line {number} has format {row.get('format')!r}, this version "
                        f"reads {FORMAT}: it was written by another version of Distillery. Use "
                        "that version, or set [teacher] cache to another folder."
                    )
                yield row
