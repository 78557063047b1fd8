"""Read the axes of a grid: named lists of entries from data files."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.config import read_toml
from cluster.errors import DataError
from cluster.storage import canonical_json
from distill.jsonl import read_jsonl
from distill.tasks.task import Task

Entry = dict[str, Any]


@dataclass(frozen=True)
class Axis:
    """One axis of a grid, at least one entry long."""

    name: str
    entries: list[Entry]
    files: dict[str, Path]
    """File of each entry, by its id."""


def read_axes(task: Task) -> list[Axis]:
    """Read every axis of the task's `[prompts.grid]`.

    Raises DataError, naming the file, for an axis without entries, an entry without an `id`, an
    id that stands twice, and an entry without a field that `strata` or `disjoint` names.
    """
    source = task.spec.prompts
    assert source.grid is not None
    axes = [
        _read_axis(name, task.folder / place, definition=task.folder / "task.toml")
        for name, place in source.grid.axes.items()
    ]
    known = {axis.name: axis for axis in axes}
    for field in [*source.grid.strata, *(path for paths in source.disjoint for path in paths)]:
        name = field.partition(".")[0]
        if name not in known:
            raise DataError(
                f"{task.folder}/task.toml: [prompts] names {field!r}, but {name!r} is no axis of "
                f"the grid; its axes are {', '.join(known)}."
            )
        for entry in known[name].entries:
            if value_at({name: entry}, field) is None:
                raise DataError(
                    f"{known[name].files[entry['id']]}: {entry['id']!r} has no {field}, which "
                    f"[prompts] in {task.folder}/task.toml names; add it to the entry."
                )
    return axes


def value_at(item: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path, `None` where there is none."""
    value: Any = item
    for part in path.split("."):
        value = value.get(part) if isinstance(value, dict) else None
    return value


def _read_axis(name: str, place: Path, *, definition: Path) -> Axis:
    entries: list[Entry] = []
    files: dict[str, Path] = {}
    if not place.exists():
        raise DataError(f"{place}: no such file or folder; {definition} names it as axis {name!r}.")
    for file, entry in _entries(place):
        identity = entry.get("id")
        if not isinstance(identity, str) or not identity:
            raise DataError(
                f"{file}: an entry of axis {name!r} has the id {identity!r}; give each a text "
                "of its own."
            )
        if identity in files:
            other = "" if files[identity] == file else f" and in {files[identity]}"
            raise DataError(
                f"{file}: the id {identity!r} stands twice in axis {name!r}, here{other}; "
                "ids must be unique."
            )
        try:
            canonical_json(entry)
        except TypeError as error:
            raise DataError(
                f"{file}: {identity!r} cannot become JSON: {error}. Put dates and times in quotes."
            ) from None
        files[identity] = file
        entries.append(entry)
    if not entries:
        raise DataError(
            f"{place}: axis {name!r} is empty, so the grid is; put entries there "
            "(a folder holds .toml or .json files)."
        )
    return Axis(name, entries, files)


def _entries(place: Path) -> Iterator[tuple[Path, Entry]]:
    if place.is_dir():
        for file in sorted(place.iterdir()):
            if file.suffix == ".toml":
                yield file, read_toml(file)
            elif file.suffix == ".json":
                yield file, _read_json(file)
    elif place.suffix == ".jsonl":
        for entry in read_jsonl(place):
            yield place, entry
    elif place.suffix == ".toml":
        for entry in _only_table_array(place):
            yield place, entry
    else:
        raise DataError(f"{place}: an axis is a folder, a .jsonl file or a .toml file.")


def _read_json(file: Path) -> Entry:
    try:
        entry = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise DataError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(entry, dict):
        raise DataError(f"{file} holds a {type(entry).__name__}; an entry is an object.")
    return entry


def _only_table_array(file: Path) -> list[Entry]:
    content = read_toml(file)
    (found, *others) = content.values() if content else (None,)
    if others or not isinstance(found, list) or not all(isinstance(e, dict) for e in found):
        raise DataError(
            f"{file} must hold one array of tables and nothing else, such as [[entry]] with its "
            f"fields below; at the top it has: {', '.join(content) or 'nothing'}."
        )
    return found
