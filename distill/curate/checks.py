"""The checks, each a function of one record that returns what is wrong or nothing."""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from distill.config import CurateConfig
from distill.curate import structure
from distill.curate.refusals import refusal
from distill.curate.tokens import LengthCounter, length_counter
from distill.tasks.task import Task

Record = dict[str, Any]
Check = Callable[[Record], str | None]


def checks(config: CurateConfig, task: Task) -> list[tuple[str, Check]]:
    """Return (reason, check) in the order they run: what costs least comes first.

    A check that is not configured is left out. ConfigError for a tokenizer that is not there.
    """
    return [*_basic(config), *_structure(config, task)]


def _basic(config: CurateConfig) -> Iterator[tuple[str, Check]]:
    yield "too_short", lambda r: _too_short(r["completion"], config.min_completion_chars)
    yield "too_long", lambda r: _too_long(r["completion"], config.max_completion_chars)
    yield "encoding", lambda r: _encoding(r["completion"], config.min_printable_fraction)
    yield "language", lambda r: _language(r["completion"], config.language)
    yield "repetition", lambda r: _repetition(r["completion"], config.max_repetition)
    if config.refusals:
        yield "refusal", lambda r: _refusal(r["completion"], config.refusal_patterns)
    least, most = config.min_completion_tokens, config.max_completion_tokens
    if least is not None or most is not None:
        counter = length_counter(config.tokenizer)
        yield "length", lambda r: _length(counter, r["completion"], least=least, most=most)


def _structure(config: CurateConfig, task: Task) -> Iterator[tuple[str, Check]]:
    wanted = config.structure
    if wanted.closed_fences:
        yield "unclosed_fence", lambda r: structure.unclosed_fence(r["completion"])
    yield "schema", lambda r: task.parse(r["completion"]).problem or None
    if wanted.sections:
        yield "missing_section", lambda r: structure.missing_section(r["completion"], wanted)
    if wanted.example_parts or wanted.min_examples:
        yield "incomplete_example", lambda r: structure.incomplete_example(r["completion"], wanted)
    if wanted.consistent:
        yield (
            "inconsistent_format",
            lambda r: structure.inconsistent_format(r["completion"], wanted),
        )


def _too_short(text: str, least: int) -> str | None:
    size = len(text.strip())
    return f"{size} characters, at least {least}" if size < least else None


def _too_long(text: str, most: int) -> str | None:
    return f"{len(text)} characters, at most {most}" if len(text) > most else None


def _encoding(text: str, least: float) -> str | None:
    if "\ufffd" in text:
        return "holds the replacement character U+FFFD: decoded with the wrong encoding"
    printable = sum(c in "\n\t\r" or unicodedata.category(c)[0] != "C" for c in text)
    share = printable / max(1, len(text))
    return f"{share:.1%} printable, at least {least:.0%}" if share < least else None


def _language(text: str, language: str | None) -> str | None:
    """Tell scripts apart, not languages: enough to see an answer in the wrong alphabet."""
    if language is None:
        return None
    letters = [c for c in text if c.isalpha()]
    latin = sum(unicodedata.name(c, "").startswith("LATIN") for c in letters)
    if letters and latin / len(letters) < 0.9:
        return f"{latin / len(letters):.0%} of the letters are {language}, at least 90%"
    return None


def _repetition(text: str, most: float) -> str | None:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    if len(lines) < 4:
        return None
    line, count = Counter(lines).most_common(1)[0]
    if count / len(lines) > most:
        return f"one line is {count} of {len(lines)}: {line[:60]!r}"
    return None


def _refusal(text: str, more: Sequence[str]) -> str | None:
    found = refusal(text, more=more)
    return f"refuses: {found!r}" if found else None


def _length(
    counter: LengthCounter, text: str, *, least: int | None, most: int | None
) -> str | None:
    size = counter.count(text)
    if least is not None and size < least:
        return f"{size} {counter.unit}, at least {least}"
    if most is not None and size > most:
        return f"{size} {counter.unit}, at most {most}"
    return None
