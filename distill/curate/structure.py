"""Structure of Markdown answers: closed code fences, required sections, complete examples."""

from __future__ import annotations

import re
from collections import defaultdict

from distill.curate.config import StructureConfig

# CommonMark 0.31: 4.5 fenced code blocks, 4.2 ATX headings, 5.2 list items.
FENCE = re.compile(r"^ {0,3}(`{3,}|~{3,})(.*)$")
HEADING = re.compile(r"^ {0,3}(#{1,6})[ \t]+(.+?)[ \t]*#*[ \t]*$")
BOLD_LINE = re.compile(r"^\s*\*\*(.+?)\*\*:?\s*$")
BULLET = re.compile(r"^(\s*)([-*+•])\s+\S")
LABEL_END = r"\s*(?:\*\*|__)?\s*[:：]"


def unclosed_fence(text: str) -> str | None:
    """Say which code fence is never closed, or None."""
    _, opened = _outside_fences(text)
    return f"the code fence of line {opened} is never closed" if opened else None


def missing_section(text: str, config: StructureConfig) -> str | None:
    """Say which required headings are missing or have nothing below them, or None."""
    outside, _ = _outside_fences(text)
    lines = text.splitlines()
    headings = [(n, found) for n in outside if (found := HEADING.match(lines[n]))]
    filled = set()
    for start, heading in headings:
        # A section ends at the next heading of its own level or above.
        later = (n for n, h in headings if n > start and len(h[1]) <= len(heading[1]))
        if any(line.strip() for line in lines[start + 1 : next(later, len(lines))]):
            filled.add(heading[2].strip().casefold())
    missing = [name for name in config.sections if name.casefold() not in filled]
    return f"sections missing or empty: {', '.join(missing)}" if missing else None


def incomplete_example(text: str, config: StructureConfig) -> str | None:
    """Say which example lacks a part, or that there are too few, or None."""
    found = _examples(text, config)
    if len(found) < config.min_examples:
        return f"{len(found)} examples, at least {config.min_examples}"
    for number, example in enumerate(found, start=1):
        parts = _parts(example, config)
        missing = [name for name in config.example_parts if name not in parts]
        empty = [name for name, content in parts.items() if not content]
        if missing or empty:
            return f"example {number} lacks {', '.join([*missing, *empty])}"
    return None


def inconsistent_format(text: str, config: StructureConfig) -> str | None:
    """Say what is formatted in two ways, or None."""
    outside, _ = _outside_fences(text)
    lines = text.splitlines()
    marks: dict[int, set[str]] = defaultdict(set)
    for number in outside:
        bullet = BULLET.match(lines[number])
        if bullet:
            marks[len(bullet[1])].add(bullet[2])
        elif lines[number].strip() and not lines[number].startswith((" ", "\t")):
            # Ordinary text ends a list; the next one may have a mark of its own.
            marks.clear()
        mixed = next((found for found in marks.values() if len(found) > 1), None)
        if mixed:
            return f"one list has the marks {' and '.join(sorted(mixed))}"
    if config.example_parts:
        orders = {tuple(_parts(example, config)) for example in _examples(text, config)}
        if len(orders) > 1:
            shown = " against ".join(", ".join(order) or "nothing" for order in sorted(orders))
            return f"examples name their parts differently: {shown}"
    return None


def _outside_fences(text: str) -> tuple[list[int], int]:
    """Return the lines that are no code, and the 1-based line of a fence left open (0: none)."""
    outside = []
    mark = ""
    opened = 0
    for number, line in enumerate(text.splitlines()):
        fence = FENCE.match(line)
        if not mark and fence and not (fence[1][0] == "`" and "`" in fence[2]):
            mark, opened = fence[1], number + 1
        elif mark and fence and _closes(fence, mark):
            mark, opened = "", 0
        elif not mark:
            outside.append(number)
    return outside, opened


def _closes(fence: re.Match[str], mark: str) -> bool:
    same = fence[1][0] == mark[0] and len(fence[1]) >= len(mark)
    return same and not fence[2].strip()


def _examples(text: str, config: StructureConfig) -> list[str]:
    """Text below each example's heading, up to the next heading of any kind."""
    outside, _ = _outside_fences(text)
    lines = text.splitlines()
    name = re.compile(rf"{re.escape(config.example_heading)}\s*[#№]?\s*\d*\s*(?:$|[:.(–-])", re.I)
    titles = []
    for number in outside:
        heading = HEADING.match(lines[number])
        bold = BOLD_LINE.match(lines[number])
        if heading or bold:
            titles.append((number, (heading[2] if heading else bold[1] if bold else "").strip()))
    ends = [*(number for number, _ in titles), len(lines)][1:]
    return [
        "\n".join(lines[number + 1 : end])
        for (number, title), end in zip(titles, ends, strict=True)
        if name.match(title.strip("*_: "))
    ]


def _parts(example: str, config: StructureConfig) -> dict[str, str]:
    """Return the labelled parts of an example in their order, with what stands behind each."""
    names = "|".join(re.escape(name) for name in config.example_parts)
    label = re.compile(rf"^\s*(?:[-*+•]\s+)?(?:\*\*|__)?\s*({names}){LABEL_END}", re.I | re.M)
    known = {name.casefold(): name for name in config.example_parts}
    found = list(label.finditer(example))
    ends = [*(match.start() for match in found), len(example)][1:]
    return {
        known[match[1].casefold()]: example[match.end() : end].strip(" \t\n*_`")
        for match, end in zip(found, ends, strict=True)
    }
