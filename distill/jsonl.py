"""JSONL files that people write: every line that cannot be read is named, all at once."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

from cluster.errors import DataError
from distill.surrogates import HALF, holds_half


def read_jsonl(path: Path, *, skip_bad: bool = False) -> list[dict[str, Any]]:
    """Read a JSONL file of objects; blank lines do not count."""
    return list(iter_jsonl(path, skip_bad=skip_bad))


def iter_jsonl(path: Path, *, skip_bad: bool = False) -> Iterator[dict[str, Any]]:
    """Yield the objects of a JSONL file; at its end DataError for all lines that are none."""
    return (row for _, row in numbered_jsonl(path, skip_bad=skip_bad))


def numbered_jsonl(
    path: Path, *, skip_bad: bool = False, advice: str = "Mend or remove them."
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Like `iter_jsonl`, each object with the number of its line; `advice` ends the error."""
    found = 0
    problems: list[str] = []
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if not raw.strip():
                continue
            # Notepad and Excel put a byte order mark before the first line.
            line = raw.removeprefix(codecs.BOM_UTF8) if number == 1 else raw
            try:
                row = parse_object(line)
            except ValueError as error:
                text = raw[:120].decode("utf-8", "replace").rstrip()
                problems.append(f"line {number}: {error}: {text}")
                continue
            found += 1
            yield number, row
    if problems and not skip_bad:
        shown = "\n  ".join(problems[:20])
        raise DataError(f"{path}: {len(problems)} line(s) cannot be read:\n  {shown}\n{advice}")
    if not found:
        raise DataError(f"{path} holds nothing; put one JSON object on each line.")


def parse_object(text: bytes) -> dict[str, Any]:
    """Return the JSON object that a line holds; ValueError says what is wrong with it."""
    try:
        decoded = text.decode("utf-8")
        row = json.loads(decoded, parse_constant=_no_constant)
    except json.JSONDecodeError as error:
        raise ValueError(f"{error.msg} at character {error.pos + 1}") from None
    except UnicodeDecodeError as error:
        raise ValueError(
            f"byte {error.start + 1} (0x{text[error.start]:02x}) is not UTF-8; if the file has "
            "another encoding convert it: iconv -f WINDOWS-1252 -t UTF-8"
        ) from None
    except RecursionError:
        raise ValueError("is nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"a {type(row).__name__}, not an object")
    if holds_half(row, source=decoded):
        raise ValueError(HALF)
    return row


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")
