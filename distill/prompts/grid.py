"""Combinatorial prompts: stratified samples of a grid, every combination at most once.

The grid is never written out: a sample of a few thousand from billions of combinations costs a few
thousand steps. What makes that possible is a walk along the diagonals (`diagonal`), which visits
every cell once and uses every entry of every axis equally often on the way.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import gcd, lcm, prod
from typing import Any

from cluster.errors import ConfigError, DataError
from cluster.storage import canonical_json
from distill.prompts.axes import Axis, Entry, read_axes, value_at
from distill.tasks.spec import GridSpec
from distill.tasks.task import Task

# Test first: it must not depend on how much there is to train on.
SPLITS = ("test", "validation", "train")
Item = dict[str, Entry]
"""Entries of some axes, by axis."""
Label = tuple[str, ...]
"""Values of the strata fields of an item."""


def grid_size(task: Task) -> int:
    """Number of combinations of the task's grid."""
    return prod(len(axis.entries) for axis in read_axes(task))


def grid_prompts(task: Task, *, sizes: Mapping[str, int], seed: int) -> list[dict[str, Any]]:
    """Sample `sizes` (split -> count) combinations, the same by seed, none in two splits.

    Each prompt has `id` (the entries' ids, joined by `/`), `split`, and the entry of every axis.
    Within a split the counts of two strata differ by at most one, unless a stratum is used up.
    Entries that share a combination of `disjoint` stand in one split; which one follows from the
    seed and the task, not from `sizes`, and so do the test prompts.

    Raises ConfigError if more is asked for than the grid holds, and DataError for broken files.
    """
    source = task.spec.prompts
    grid = source.grid
    assert grid is not None
    axes = read_axes(task)
    size = prod(len(axis.entries) for axis in axes)
    held = f"{size:,} combinations ({' × '.join(f'{a.name} {len(a.entries)}' for a in axes)})"
    asked = sum(sizes.values())
    if asked > size:
        shown = ", ".join(f"prompts.{name} {count:,}" for name, count in sizes.items())
        raise ConfigError(
            f"{asked:,} prompts are asked for ({shown}), but the grid of {task.folder} holds "
            f"{held}; ask for fewer, or add entries to an axis."
        )
    blocks = [
        _share_out(block, keys, grid=grid, rng=random.Random(f"{seed} {'/'.join(block[0])}"))
        for block, keys in _blocks(axes, source.disjoint)
    ]
    samplers: dict[str, Sampler] = {}
    prompts = []
    for split in (name for name in SPLITS if sizes.get(name)):
        if split not in samplers:
            rng = random.Random(f"{seed} {split if source.disjoint else ''}")
            sampler = Sampler([block[split] for block in blocks], grid.strata, rng=rng)
            # Without `disjoint` all splits draw from the same cells.
            samplers |= {name: sampler for name in ([split] if source.disjoint else SPLITS)}
        sampler = samplers[split]
        if sizes[split] > sampler.left:
            raise ConfigError(
                f"prompts.{split} {sizes[split]:,}: the grid of {task.folder} holds {held}, but "
                f"{sampler.left:,} for {split}, because the splits share no "
                f"{_named(source.disjoint)}; ask for fewer, add entries, or change test_share and "
                "validation_share of [prompts.grid] in task.toml."
            )
        for item in sampler.draw(sizes[split], rng=random.Random(f"{seed} draw {split}")):
            entries = {axis.name: item[axis.name] for axis in axes}
            identity = "/".join(entry["id"] for entry in entries.values())
            prompts.append({"id": identity, "split": split, **entries})
    return prompts


def diagonal(position: int, sizes: Sequence[int]) -> tuple[int, ...]:
    """Return the cell (an index per axis) that a walk along the grid's diagonals visits there.

    The walk visits each of the prod(sizes) cells once. Among its first n cells each index of an
    axis of size s occurs ⌊n/s⌋ or ⌈n/s⌉ times: all axes step on together, and after lcm(sizes)
    steps, when the diagonal closes, the walk goes over to the next parallel one. (The diagonals are
    the cosets of the subgroup of Z_a × Z_b × … that (1, 1, …) generates.)
    """
    turn, step = divmod(position, lcm(*sizes))
    period = 1
    cell = []
    for size in sizes:
        turn, shift = divmod(turn, gcd(period, size))
        period = lcm(period, size)
        cell.append((step + shift) % size)
    return tuple(cell)


class Sampler:
    """Draws cells of a product of blocks, strata as even as possible, and none twice."""

    def __init__(
        self, blocks: Sequence[Sequence[Item]], strata: Sequence[str], *, rng: random.Random
    ):
        """`blocks`: lists of items, one of which each stands in every cell; none is empty."""
        self.left = prod(len(block) for block in blocks)
        self._members: list[dict[Label, list[Item]]] = []
        self._labels: list[list[Label]] = []
        for block in blocks:
            fields = [field for field in strata if field.partition(".")[0] in block[0]]
            members: dict[Label, list[Item]] = defaultdict(list)
            for item in rng.sample(list(block), len(block)):
                members[_label(item, fields)].append(item)
            self._members.append(members)
            self._labels.append(_evenly_ordered(members, rng=rng))
        # Each stratum walks its own cells from a start of its own: (start, cells drawn).
        self._walks: dict[tuple[int, ...], tuple[tuple[int, ...], int]] = {}
        # How often the items of a label were drawn, by block and label.
        self._drawn: dict[tuple[int, int], int] = defaultdict(int)

    def draw(self, count: int, *, rng: random.Random) -> list[Item]:
        """Return `count` cells, at most `left`, in random order."""
        assert count <= self.left
        self.left -= count
        found = []
        for stratum, number in self._shares(count, rng=rng).items():
            members = self._cells(stratum)
            sizes = [len(items) for items in members]
            # A new walk starts each label's items where the last stratum with that label stopped,
            # so that each item is used equally often, whatever strata it is used in.
            here = tuple(self._drawn[place] for place in enumerate(stratum))
            start, drawn = self._walks.get(stratum, (here, 0))
            self._walks[stratum] = start, drawn + number
            for place in enumerate(stratum):
                self._drawn[place] += number
            for position in range(drawn, drawn + number):
                steps = zip(start, diagonal(position, sizes), sizes, strict=True)
                cell = [(first + step) % size for first, step, size in steps]
                chosen = [items[i] for items, i in zip(members, cell, strict=True)]
                found.append({name: entry for item in chosen for name, entry in item.items()})
        rng.shuffle(found)
        return found

    def _shares(self, count: int, *, rng: random.Random) -> dict[tuple[int, ...], int]:
        """Cells by stratum: one each, round by round; a stratum that is used up drops out."""
        sizes = [len(labels) for labels in self._labels]
        turned = [rng.randrange(size) for size in sizes]
        shares: dict[tuple[int, ...], int] = defaultdict(int)
        in_round: Iterable[tuple[int, ...]] = (
            tuple((i + t) % size for i, t, size in zip(cell, turned, sizes, strict=True))
            for cell in (diagonal(position, sizes) for position in range(prod(sizes)))
        )
        while count:
            going_on = []
            for stratum in in_round:
                drawn = self._walks.get(stratum, ((), 0))[1] + shares.get(stratum, 0)
                if drawn < prod(len(items) for items in self._cells(stratum)):
                    shares[stratum] += 1
                    going_on.append(stratum)
                    count -= 1
                    if not count:
                        break
            in_round = going_on
        return shares

    def _cells(self, stratum: tuple[int, ...]) -> list[list[Item]]:
        return [
            members[labels[i]]
            for members, labels, i in zip(self._members, self._labels, stratum, strict=True)
        ]


def _blocks(
    axes: Sequence[Axis], disjoint: Sequence[Sequence[str]]
) -> list[tuple[list[Item], list[Sequence[str]]]]:
    """Return the grid as a product of blocks, each with the combinations that lie within it.

    Axes that stand in one combination of `disjoint` are multiplied out into one block.
    """
    together = [{axis.name} for axis in axes]
    for paths in disjoint:
        named = {path.partition(".")[0] for path in paths}
        touched = [names for names in together if names & named]
        together = [names for names in together if not names & named]
        together.append({name for names in touched for name in names})
    blocks = []
    for names in together:
        items: list[Item] = [{}]
        for axis in axes:
            if axis.name in names:
                items = [{**item, axis.name: entry} for item in items for entry in axis.entries]
        blocks.append((items, [paths for paths in disjoint if paths[0].partition(".")[0] in names]))
    keys = [{_key(item, paths) for item in items for paths in within} for items, within in blocks]
    for number, own in enumerate(keys):
        for other in keys[:number]:
            if own & other:
                raise DataError(
                    f"prompts.disjoint: {_named(disjoint)}: different axes have the values "
                    f"{min(own & other)} in common, and values are kept apart whatever axis they "
                    "stand on; name fields whose values differ between the axes."
                )
    return blocks


def _share_out(
    items: Sequence[Item], disjoint: Sequence[Sequence[str]], *, grid: GridSpec, rng: random.Random
) -> dict[str, list[Item]]:
    """Give each split its items of a block; all of them where nothing is kept apart."""
    if not disjoint:
        return {split: list(items) for split in SPLITS}
    groups = _groups(items, disjoint)
    if len(groups) < len(SPLITS):
        raise DataError(
            f"prompts.disjoint: {_named(disjoint)} leaves {len(groups)} group(s) of entries that "
            "have nothing in common, and three splits need three; name a finer combination."
        )
    by_label: dict[Label, list[list[Item]]] = defaultdict(list)
    fields = [field for field in grid.strata if field.partition(".")[0] in items[0]]
    for group in groups:
        labels = {_label(item, fields) for item in group}
        by_label[labels.pop() if len(labels) == 1 else ()].append(group)
    # Spread each label evenly, so that every split gets its part of it.
    placed = []
    for label in sorted(by_label):
        members = rng.sample(by_label[label], len(by_label[label]))
        offset = rng.random()
        placed += [((i + offset) / len(members), label, g) for i, g in enumerate(members)]
    queue = [group for *_, group in sorted(placed, key=lambda place: place[:2], reverse=True)]
    shares: dict[str, list[Item]] = {}
    # Whatever the shares say, each later split keeps a group.
    for split, share, later in (
        ("test", grid.test_share, 2),
        ("validation", grid.validation_share, 1),
    ):
        taken = queue.pop()
        while len(queue) > later and len(taken) + len(queue[-1]) / 2 <= share * len(items):
            taken = taken + queue.pop()
        shares[split] = taken
    return {**shares, "train": [item for group in queue for item in group]}


def _groups(items: Sequence[Item], disjoint: Sequence[Sequence[str]]) -> list[list[Item]]:
    """Put items that share a key, directly or through others, into one group."""
    root: dict[str, str] = {}

    def find(key: str) -> str:
        while root.setdefault(key, key) != key:
            root[key] = root[root[key]]
            key = root[key]
        return key

    for item in items:
        first, *others = (_key(item, paths) for paths in disjoint)
        for other in others:
            root[find(other)] = find(first)
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[find(_key(item, disjoint[0]))].append(item)
    return list(groups.values())


def _evenly_ordered(labels: Mapping[Label, Any], *, rng: random.Random) -> list[Label]:
    """Order labels so that those in front hold each field's values about equally often."""
    values = [sorted(set(column)) for column in zip(*labels, strict=True)]
    for column in values:
        rng.shuffle(column)
    sizes = [len(column) for column in values]
    walk = (diagonal(position, sizes) for position in range(prod(sizes)))
    ordered = (tuple(c[i] for c, i in zip(values, cell, strict=True)) for cell in walk)
    return [label for label in ordered if label in labels]


def _label(item: Item, fields: Sequence[str]) -> Label:
    return tuple(canonical_json(value_at(item, field)) for field in fields)


def _key(item: Item, paths: Sequence[str]) -> str:
    # Values without their names, as distill/prompts/split.py compares them.
    return canonical_json([value_at(item, path) for path in paths])


def _named(disjoint: Sequence[Sequence[str]]) -> str:
    return ", ".join(" + ".join(paths) for paths in disjoint)
