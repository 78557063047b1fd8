"""Split prompts into train, validation and test so that nothing held out was ever trained on.

What deciding about a prompt needs is a few dozen bytes (`Index`), so that a million prompts are
split with their texts on disk.
"""

from __future__ import annotations

import json
import random
from array import array
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.errors import DataError
from cluster.storage import canonical_json, digest_of
from distill.prompts.source import place_of
from distill.records import example_id
from distill.tasks.task import Task

RESERVED = ("id", "split", "reference")
SPLITS = ("test", "validation", "train")
"""In the order in which prompts are assigned; a split's number is its place here."""
NONE = -1
"""Instead of a split's number: no split."""
TRAIN = SPLITS.index("train")

Row = dict[str, Any]


def render(task: Task, prompts: Iterable[Row]) -> Iterator[Row]:
    """Render each prompt and give it its `example_id`; raises DataError that names the prompt."""
    known_ids: set[int] = set()
    for number, prompt in enumerate(prompts, start=1):
        place = place_of(prompt, number)
        # In Parquet what is missing is null.
        prompt_id = "" if prompt.get("id") is None else str(prompt["id"])
        # Of the id its 64-bit hash: a million of them are 60 MB less.
        if prompt_id and hash(prompt_id) in known_ids:
            raise DataError(f"{place}: id {prompt_id!r} stands twice; ids must be unique.")
        if prompt_id:
            known_ids.add(hash(prompt_id))
        variables = {k: v for k, v in prompt.items() if k not in RESERVED}
        try:
            messages = task.messages(variables)
        except DataError as error:
            raise DataError(f"{place}: {error}") from None
        reference = prompt.get("reference")
        if reference is not None and not isinstance(reference, dict):
            reference = {task.headline or "text": reference}
        split = "" if prompt.get("split") is None else str(prompt["split"])
        if split and split not in SPLITS:
            raise DataError(f"{place}: split {split!r} must be one of {', '.join(SPLITS)}.")
        stratum = _at(variables, task.spec.prompts.stratum) if task.spec.prompts.stratum else ""
        yield {
            "example_id": example_id(messages),
            "split": split,
            "prompt_id": prompt_id,
            "messages": messages,
            "variables": _json_text(variables, place),
            "reference": _json_text(reference, place) if reference is not None else "",
            "stratum": str(stratum or ""),
        }


def _json_text(values: Row, place: str) -> str:
    """Return a prompt's values as JSON; DataError names the one that cannot become it."""
    try:
        return canonical_json(values)
    except TypeError:
        for name, value in values.items():
            try:
                canonical_json(value)
            except TypeError as error:
                raise DataError(
                    f"{place}: {name} {value!r:.80} cannot become JSON: {error}. Make it "
                    "text or a number; dates and times are text."
                ) from None
        raise


def build_rows(task: Task, prompts: Iterable[Row]) -> list[Row]:
    """Render prompts; a repeated one keeps its first place."""
    rows: dict[str, Row] = {}
    for row in render(task, prompts):
        rows.setdefault(row["example_id"], row)
    return list(rows.values())


class Index:
    """What deciding about rows needs, in the order in which they were added."""

    def __init__(self, disjoint: Sequence[Sequence[str]]):
        """`disjoint`: combinations of variables that no two splits may share."""
        self.disjoint = [list(combination) for combination in disjoint]
        self._ids = array("Q")
        self._splits = array("b")
        self._strata = array("i")
        self._names: dict[str, int] = {}
        self._keys = [array("Q") for _ in disjoint]

    @classmethod
    def of(cls, rows: Iterable[Row], disjoint: Sequence[Sequence[str]]) -> Index:
        """Index all rows."""
        index = cls(disjoint)
        for row in rows:
            index.add(row)
        return index

    def add(self, row: Row) -> None:
        """Add one row as `render` makes it."""
        self._ids.append(int(row["example_id"], 16))
        self._splits.append(SPLITS.index(row["split"]) if row["split"] else NONE)
        self._strata.append(self._names.setdefault(row["stratum"], len(self._names)))
        variables = json.loads(row["variables"]) if self.disjoint else {}
        for keys, combination in zip(self._keys, self.disjoint, strict=True):
            values = [_at(variables, path) for path in combination]
            # The same vendor, amount and date on the other side of a pair is the same combination,
            # so the key holds the values and not the names they stand under. 0: it has none.
            # Read back from a log they are texts: 123 there is "123".
            whole = all(value is not None for value in values)
            texts = [str(value).strip().casefold() for value in values]
            keys.append(int(digest_of(texts)[:16], 16) if whole else 0)

    def __len__(self) -> int:
        return len(self._ids)

    @property
    def ids(self) -> np.ndarray:
        """`example_id` of each row, uint64 [N]: it has 16 hex digits."""
        return np.frombuffer(self._ids, np.uint64)

    @property
    def given(self) -> np.ndarray:
        """Number of the split that a row names, or NONE, int8 [N]."""
        return np.frombuffer(self._splits, np.int8)

    @property
    def strata(self) -> np.ndarray:
        """Number of the stratum, int32 [N]; `names` has them in order."""
        return np.frombuffer(self._strata, np.int32)

    @property
    def names(self) -> list[str]:
        """Names of the strata."""
        return list(self._names)

    @property
    def keys(self) -> np.ndarray:
        """What no two splits may share, uint64 [N, 1 + combinations]: the id, and each key or 0."""
        columns = [self.ids, *(np.frombuffer(keys, np.uint64) for keys in self._keys)]
        return np.stack(columns, axis=1)


@dataclass
class Assignment:
    """Which row goes where, and what was left out on the way."""

    splits: np.ndarray
    """Number of the row's split, or NONE, int8 [N]."""
    duplicates: int = 0
    conflicts: int = 0
    notes: list[str] = field(default_factory=list)


def assign(index: Index, *, sizes: dict[str, int], seed: int) -> Assignment:
    """Assign rows to splits: test first, then validation, then train, each stratified.

    A repeated row counts once. A row that shares a disjoint combination with an earlier split is
    left out (`conflicts`). A row that names its split keeps it. With too few rows test and
    validation shrink to a fifth and a tenth of what there is. DataError when a split ends empty.
    """
    splits = np.full(len(index), NONE, np.int8)
    first = np.zeros(len(index), bool)
    first[np.unique(index.ids, return_index=True)[1]] = True
    total = int(first.sum())
    result = Assignment(splits, duplicates=len(index) - total)
    wanted = dict(sizes)
    if total < sum(sizes.values()):
        wanted = _shrunk(sizes, total)
        shown = ", ".join(f"{name} {wanted[name]}" for name in reversed(SPLITS))
        result.notes.append(f"{total} prompts are fewer than asked for: {shown}")
    keys = index.keys
    free = _interleaved(index, np.flatnonzero(first & (index.given == NONE)), seed=seed)
    held_out: set[int] = set()
    for number, name in enumerate(SPLITS):
        own = np.flatnonzero(first & (index.given == number))
        offered = np.concatenate([own, free])
        if number == TRAIN:
            taken, passed = _take_all(offered, keys, held_out, wanted[name])
        else:
            taken, passed = _take(offered, keys, held_out, wanted[name])
            held_out.update(int(key) for key in keys[taken].ravel() if key)
        splits[taken] = number
        result.conflicts += passed - len(taken)
        # What was offered from among the free ones is gone, taken or not.
        free = free[max(0, passed - len(own)) :]
    for number, name in enumerate(SPLITS):
        if not (splits == number).any():
            raise DataError(
                f"no prompt is left for the {name} split: {total} prompts, {result.conflicts} left "
                f"out because they share {index.disjoint} with another split."
            )
    return result


def contamination(index: Index, splits: np.ndarray) -> dict[str, Any]:
    """Count what two splits share: ids, and each disjoint combination. All must be zero."""
    whole = index.keys
    keys = {name: _distinct(whole[splits == number]) for number, name in enumerate(SPLITS)}
    pairs = [(a, b) for i, a in enumerate(SPLITS) for b in SPLITS[i + 1 :]]
    shared = {f"{a}/{b}": int(_is_among(keys[a], keys[b]).sum()) for a, b in pairs}
    return {
        "combinations": ["the whole prompt", *(" + ".join(c) for c in index.disjoint)],
        "keys_per_split": {name: len(found) for name, found in keys.items()},
        "shared": shared,
        "clean": not any(shared.values()),
    }


def _shrunk(sizes: dict[str, int], total: int) -> dict[str, int]:
    wanted = {
        "test": min(sizes["test"], max(1, total // 5)),
        "validation": min(sizes["validation"], max(1, total // 10)),
    }
    left = total - wanted["test"] - wanted["validation"]
    wanted["train"] = min(sizes["train"], max(0, left))
    return wanted


def _take(
    offered: np.ndarray, keys: np.ndarray, held_out: set[int], wanted: int
) -> tuple[np.ndarray, int]:
    """Return the first `wanted` offered rows that share nothing, and how many were looked at."""
    taken: list[int] = []
    for passed, row in enumerate(offered):
        if len(taken) >= wanted:
            return np.array(taken, int), passed
        if not any(int(key) in held_out for key in keys[row] if key):
            taken.append(int(row))
    return np.array(taken, int), len(offered)


def _take_all(
    offered: np.ndarray, keys: np.ndarray, held_out: set[int], wanted: int
) -> tuple[np.ndarray, int]:
    """Like `_take`, for many: nothing comes after train, so its own keys are not kept."""
    known = np.sort(np.fromiter(held_out, np.uint64))
    refused = np.zeros(len(offered), bool)
    # Column by column: `np.isin` over all of a million rows' keys takes 150 MB for a moment.
    for column in keys.T:
        refused |= _is_among(column[offered], known)
    good = np.flatnonzero(~refused)
    if len(good) <= wanted:
        return offered[good], len(offered)
    passed = int(good[wanted - 1]) + 1 if wanted else 0
    return offered[good[:wanted]], passed


def _is_among(values: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Return bool [N]: which values stand in `known`, which is sorted."""
    if not len(known):
        return np.zeros(len(values), bool)
    places = np.minimum(np.searchsorted(known, values), len(known) - 1)
    return np.asarray(known[places] == values)


def _distinct(keys: np.ndarray) -> np.ndarray:
    """Return the distinct keys but 0, sorted. Sorts `keys`, which must be a copy."""
    flat = keys.reshape(-1)
    flat.sort()
    is_first = np.ones(len(flat), bool)
    np.not_equal(flat[1:], flat[:-1], out=is_first[1:])
    is_first &= flat != 0
    return flat[is_first]


def _at(variables: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(variables, dict):
            return None
        variables = variables.get(part)
    return variables


def _interleaved(index: Index, rows: np.ndarray, *, seed: int) -> np.ndarray:
    """Shuffle, then spread each stratum evenly, so that any prefix has the whole's proportions."""
    by_id = rows[np.argsort(index.ids[rows], kind="stable")]
    names = index.names
    strata: dict[str, np.ndarray] = defaultdict(lambda: np.empty(0, int))
    codes = index.strata[by_id]
    for code in np.unique(codes):
        strata[names[code]] = by_id[codes == code]
    rng = random.Random(seed)
    order: list[np.ndarray] = []
    places: list[np.ndarray] = []
    for name in sorted(strata):
        # An array and no list: a million Python integers are 40 MB.
        members = array("q", strata[name].astype(np.int64).tobytes())
        rng.shuffle(members)
        offset = rng.random()
        order.append(np.frombuffer(members, np.int64))
        places.append((np.arange(len(members)) + offset) / len(members))
    if not order:
        return rows
    # Stable: of equal places the stratum that is first by name.
    return np.concatenate(order)[np.argsort(np.concatenate(places), kind="stable")]
