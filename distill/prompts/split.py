"""Split prompts into train, validation and test so that nothing held out was ever trained on."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import DataError
from cluster.storage import canonical_json, digest_of
from distill.records import example_id
from distill.tasks.task import Task

RESERVED = ("id", "split", "reference")
SPLITS = ("test", "validation", "train")


@dataclass
class Split:
    """Prompt rows by split, and what was left out on the way."""

    rows: dict[str, list[dict[str, Any]]]
    duplicates: int = 0
    conflicts: int = 0
    notes: list[str] = field(default_factory=list)


def build_rows(task: Task, prompts: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Render each prompt and give it its `example_id`; a repeated prompt keeps its first place."""
    rows: dict[str, dict[str, Any]] = {}
    known_ids: set[str] = set()
    for number, prompt in enumerate(prompts, start=1):
        prompt_id = str(prompt.get("id", ""))
        if prompt_id and prompt_id in known_ids:
            raise DataError(f"prompt {number}: id {prompt_id!r} stands twice; ids must be unique.")
        known_ids.add(prompt_id)
        variables = {k: v for k, v in prompt.items() if k not in RESERVED}
        messages = task.messages(variables)
        reference = prompt.get("reference")
        if reference is not None and not isinstance(reference, dict):
            reference = {task.headline or "text": reference}
        split = str(prompt.get("split", ""))
        if split and split not in SPLITS:
            raise DataError(f"prompt {number}: split {split!r} must be one of {', '.join(SPLITS)}.")
        stratum = _at(variables, task.spec.prompts.stratum) if task.spec.prompts.stratum else ""
        identity = example_id(messages)
        row = {
            "example_id": identity,
            "split": split,
            "prompt_id": prompt_id,
            "messages": messages,
            "variables": canonical_json(variables),
            "reference": canonical_json(reference) if reference is not None else "",
            "stratum": str(stratum or ""),
        }
        rows.setdefault(identity, row)
    return list(rows.values())


def split_rows(
    rows: Sequence[dict[str, Any]], *, sizes: dict[str, int], disjoint: list[list[str]], seed: int
) -> Split:
    """Assign rows to splits: test first, then validation, then train, each stratified.

    A row that shares a disjoint combination with an earlier split is left out (`conflicts`). A
    row that names its split keeps it. With too few rows test and validation shrink to a fifth
    and a tenth of what there is.
    """
    result = Split({name: [] for name in SPLITS})
    wanted = dict(sizes)
    total = len(rows)
    if total < sum(sizes.values()):
        wanted = {
            "test": min(sizes["test"], max(1, total // 5)),
            "validation": min(sizes["validation"], max(1, total // 10)),
        }
        wanted["train"] = min(sizes["train"], total - wanted["test"] - wanted["validation"])
        shown = ", ".join(f"{name} {wanted[name]}" for name in reversed(SPLITS))
        result.notes.append(f"{total} prompts are fewer than asked for: {shown}")
    taken: dict[str, str] = {}
    free = _interleaved([row for row in rows if not row["split"]], seed=seed)
    for name in SPLITS:
        own = [row for row in rows if row["split"] == name]
        later: list[dict[str, Any]] = []
        for row in own + free:
            if len(result.rows[name]) >= wanted[name]:
                later.append(row)
            elif not _take(result, {**row, "split": name}, name, taken=taken, disjoint=disjoint):
                result.conflicts += 1
        free = [row for row in later if not row["split"]]
    for name in SPLITS:
        if not result.rows[name]:
            raise DataError(
                f"no prompt is left for the {name} split: {total} prompts, "
                f"{result.conflicts} left out because they share {disjoint} with another split."
            )
    return result


def contamination(
    splits: dict[str, list[dict[str, Any]]], *, disjoint: list[list[str]]
) -> dict[str, Any]:
    """Count what two splits share: ids, and each disjoint combination. All must be zero."""
    keys = {
        name: {key for row in rows for key in _keys(row, disjoint)} for name, rows in splits.items()
    }
    pairs = [(a, b) for i, a in enumerate(SPLITS) for b in SPLITS[i + 1 :]]
    shared = {f"{a}/{b}": len(keys[a] & keys[b]) for a, b in pairs}
    return {
        "combinations": ["the whole prompt", *(" + ".join(c) for c in disjoint)],
        "keys_per_split": {name: len(found) for name, found in keys.items()},
        "shared": shared,
        "clean": not any(shared.values()),
    }


def _take(
    result: Split,
    row: dict[str, Any],
    split: str,
    *,
    taken: dict[str, str],
    disjoint: list[list[str]],
) -> bool:
    keys = list(_keys(row, disjoint))
    if any(taken.get(key, split) != split for key in keys):
        return False
    taken.update(dict.fromkeys(keys, split))
    result.rows[split].append(row)
    return True


def _keys(row: dict[str, Any], disjoint: list[list[str]]) -> Iterator[str]:
    yield row["example_id"]
    variables = json.loads(row["variables"])
    for combination in disjoint:
        values = [_at(variables, path) for path in combination]
        # The same vendor, amount and date on the other side of a pair is the same combination,
        # so the key holds the values and not the names they stand under.
        if all(value is not None for value in values):
            yield digest_of(values)


def _at(variables: Any, path: str) -> Any:
    for part in path.split("."):
        if not isinstance(variables, dict):
            return None
        variables = variables.get(part)
    return variables


def _interleaved(rows: Sequence[dict[str, Any]], *, seed: int) -> list[dict[str, Any]]:
    """Shuffle, then spread each stratum evenly, so that any prefix has the whole's proportions."""
    strata: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for row in sorted(rows, key=lambda r: r["example_id"]):
        strata[row["stratum"]].append(row)
    rng = random.Random(seed)
    placed: list[tuple[float, str, dict[str, Any]]] = []
    for name in sorted(strata):
        members = strata[name]
        rng.shuffle(members)
        offset = rng.random()
        placed += [((i + offset) / len(members), name, row) for i, row in enumerate(members)]
    return [row for *_, row in sorted(placed, key=lambda entry: entry[:2])]
