"""The prompts of a run: read, or written by a model; rendered, split, proved apart, written.

Texts pass through in batches and only what deciding about a prompt needs stays in memory, so that
a million prompts take little more of it than a thousand.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from itertools import chain, islice
from typing import Any

import numpy as np
import pyarrow as pa

from cluster.errors import ConfigError, StageError
from cluster.storage import Store, digest_of, rows_table
from distill.batches import Progress
from distill.config import PromptsConfig
from distill.prompts.config import EvolInstruct, FromDataset, SelfInstruct
from distill.prompts.evol_instruct import evol_instruct
from distill.prompts.logs import LogsConfig, read_log
from distill.prompts.pool import Pool
from distill.prompts.self_instruct import Ask, made, self_instruct
from distill.prompts.source import read_prompts
from distill.prompts.split import SPLITS, Assignment, Index, assign, contamination, render
from distill.records import PROMPT
from distill.tasks.task import Task

MADE_FILE = "prompts/made.json"
CONTAMINATION_FILE = "prompts/contamination.json"
DATASET_PROMPTS = "prompts.parquet"
"""Of a dataset version."""
BATCH_ROWS = 2048
CHECKED_ROWS = 10_000
"""Prompts that are filled in before a run starts: a second or two, where a million take minutes."""
ALL = "all.parquet"

Row = dict[str, Any]


@dataclass
class Prompts:
    """The prompts of a run, on disk, and what was left out on the way."""

    store: Store
    sizes: dict[str, int]
    """Prompts of each split."""
    duplicates: int = 0
    conflicts: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Prompts of all splits."""
        return sum(self.sizes.values())

    @property
    def files(self) -> list[str]:
        """Their Parquet files, in the order of `SPLITS`."""
        return [prompts_file(split) for split in SPLITS if self.sizes.get(split)]

    def rows(self, split: str) -> list[Row]:
        """Read a split's rows (`distill.records.PROMPT`) into memory."""
        return self.store.read_rows(prompts_file(split))

    def all_rows(self) -> list[Row]:
        """Read every split's rows, in the order of `SPLITS`."""
        return [row for file in self.files for row in self.store.read_rows(file)]


def prompts_file(split: str) -> str:
    """Where a split's prompts lie in a run."""
    return f"prompts/{split}.parquet"


def make_prompts(
    task: Task,
    config: PromptsConfig,
    *,
    store: Store,
    ask: Ask | None = None,
    on_progress: Progress | None = None,
) -> Prompts:
    """Write `prompts/<split>.parquet` and `prompts/contamination.json`.

    `ask` reaches the model that writes prompts where `prompts.make` wants one; what it made and
    refused is in `prompts/made.json`. Raises StageError if two splits share a prompt or a
    combination that the task keeps apart.
    """
    make = config.make
    if isinstance(make, LogsConfig):
        return _from_log(make, config, store=store)
    if isinstance(make, FromDataset):
        return _from_dataset(task, make, config, store=store)
    sizes = {"train": config.train, "validation": config.validation, "test": config.test}
    prompts = read_prompts(task, sizes=sizes, seed=config.seed, skip_bad=config.skip_bad)
    disjoint = task.spec.prompts.disjoint
    own = _write(
        render(task, prompts),
        disjoint,
        sizes=sizes,
        seed=config.seed,
        store=store,
        on_progress=on_progress,
    )
    if not isinstance(make, (SelfInstruct, EvolInstruct)):
        return own
    if ask is None:
        raise ConfigError(
            f"prompts.make.kind {make.kind!r} needs a model that writes: set "
            "[prompts.make.writer], or let [teacher] be a model."
        )
    return _grow(task, own, make, target=config.train, store=store, ask=ask, report=on_progress)


def check_prompts(task: Task, config: PromptsConfig) -> None:
    """Fail now on what would fail later: prompts that cannot be read, filled in or split.

    A file is read through, and the first `CHECKED_ROWS` are filled in. Of a generator it is checked
    that it can be loaded: making its prompts twice could take long. A log is read once as well.
    """
    make = config.make
    if isinstance(make, LogsConfig):
        return
    if isinstance(make, FromDataset):
        _dataset(make)
        return
    if task.spec.prompts.generator:
        task.function(task.spec.prompts.generator)
        return
    sizes = {"train": config.train, "validation": config.validation, "test": config.test}
    prompts = read_prompts(task, sizes=sizes, seed=config.seed, skip_bad=config.skip_bad)
    first = islice(prompts, CHECKED_ROWS)
    index = Index.of(render(task, first), task.spec.prompts.disjoint)
    whole = not sum(1 for _ in prompts)
    if whole:
        assign(index, sizes=sizes, seed=config.seed)


def _dataset(make: FromDataset) -> Store:
    store = Store(make.folder)
    if not store.exists(DATASET_PROMPTS):
        raise ConfigError(
            f"prompts.make.folder {make.folder!r}: there is no {DATASET_PROMPTS}; give a version "
            "that `distillery relabel` wrote, such as runs/datasets/reconcile/v2."
        )
    return store


def _from_log(make: LogsConfig, config: PromptsConfig, *, store: Store) -> Prompts:
    log = read_log(make)
    store.write_json(MADE_FILE, {"kind": make.kind, **log.report()})
    sizes = {"train": config.train, "validation": config.validation, "test": config.test}
    found = _write(log.rows, [], sizes=sizes, seed=config.seed, store=store)
    left_out = sum(log.left_out.values())
    found.notes.append(
        f"log: {len(log.rows)} prompts of {log.num_read} requests, {left_out} left out, "
        f"{log.num_masked_rows} with personal data masked; see {MADE_FILE}"
    )
    return found


def _from_dataset(task: Task, make: FromDataset, config: PromptsConfig, *, store: Store) -> Prompts:
    """Take a version's prompts; what the task keeps apart stays apart, its new rows included."""
    rows = _dataset(make).read_rows(DATASET_PROMPTS)
    sizes = {"train": config.train, "validation": config.validation, "test": config.test}
    disjoint = task.spec.prompts.disjoint
    return _write(rows, disjoint, sizes=sizes, seed=config.seed, store=store)


def _grow(
    task: Task,
    own: Prompts,
    make: SelfInstruct | EvolInstruct,
    *,
    target: int,
    store: Store,
    ask: Ask,
    report: Progress | None,
) -> Prompts:
    """Add prompts that a model wrote to the training split; the writer never sees the others.

    What is left of a training set that was cut to the task's few prompts is the pool's seed.
    """
    train = own.rows("train")
    held_out = [*own.rows("test"), *own.rows("validation")]
    pool = Pool(task, make, seeds=_variables(train), held_out=_variables(held_out))
    wanted = max(0, target - len(train))
    if isinstance(make, SelfInstruct):
        steps: list[dict[str, Any]] = list(
            self_instruct(pool, make, target=wanted, ask=ask, on_progress=report)
        )
    else:
        steps = evol_instruct(pool, make, target=wanted, ask=ask, on_progress=report)
    store.write_json(MADE_FILE, made(pool, steps, kind=make.kind))
    origin = make.kind.replace("_", "-")
    grown = render(
        task,
        (
            {"id": f"{origin}-{digest_of(prompt)[:12]}", "split": "train", **prompt}
            for prompt in pool.grown
        ),
    )
    # Once more together: a new prompt may render to a known message, or share a combination that
    # is held out.
    both = _write(
        chain(held_out, train, grown),
        task.spec.prompts.disjoint,
        sizes=own.sizes | {"train": len(train) + len(pool.grown)},
        seed=make.seed,
        store=store,
    )
    both.duplicates += own.duplicates
    both.conflicts += own.conflicts
    # In place of what was said of the seeds, that they are fewer than asked for.
    both.notes = [
        f"{origin}: {both.sizes['train'] - len(train)} of {wanted} prompts written, "
        f"from {len(train)} of the task's own; {sum(pool.refused.values())} refused, "
        f"see {MADE_FILE}"
    ]
    return both


def _write(
    rows: Iterable[Row],
    disjoint: list[list[str]],
    *,
    sizes: dict[str, int],
    seed: int,
    store: Store,
    on_progress: Progress | None = None,
) -> Prompts:
    """Split rows and write each split in the order in which they came."""
    index = Index(disjoint)
    with tempfile.TemporaryDirectory(prefix="distillery-prompts-") as folder:
        beside = Store(folder)
        with beside.table_writer(ALL, PROMPT) as writer:
            for batch in _batches(rows):
                for row in batch:
                    index.add(row)
                writer.write_table(rows_table(batch, PROMPT))
                if on_progress is not None and len(index) > BATCH_ROWS:
                    on_progress(len(index), max(len(index), sum(sizes.values())))
        found = assign(index, sizes=sizes, seed=seed)
        report = contamination(index, found.splits)
        store.write_json(CONTAMINATION_FILE, report)
        if not report["clean"]:
            raise StageError(f"splits share prompts: {report['shared']}; see {CONTAMINATION_FILE}")
        _distribute(beside, found, store=store)
    counts = {name: int((found.splits == n).sum()) for n, name in enumerate(SPLITS)}
    return Prompts(store, counts, found.duplicates, found.conflicts, found.notes)


def _distribute(source: Store, found: Assignment, *, store: Store) -> None:
    """Copy the rows into a file for each split."""
    column = PROMPT.get_field_index("split")
    with ExitStack() as stack:
        writers = [
            stack.enter_context(store.table_writer(prompts_file(name), PROMPT)) for name in SPLITS
        ]
        first = 0
        for batch in source.iter_batches(ALL):
            splits = found.splits[first : first + batch.num_rows]
            first += batch.num_rows
            for number, (name, writer) in enumerate(zip(SPLITS, writers, strict=True)):
                mask = splits == number
                if not mask.any():
                    continue
                own = batch.filter(pa.array(mask))
                named = pa.array(np.full(own.num_rows, name))
                writer.write_batch(own.set_column(column, PROMPT.field(column), named))


def _batches(rows: Iterable[Row]) -> Iterator[Sequence[Row]]:
    left = iter(rows)
    while batch := list(islice(left, BATCH_ROWS)):
        yield batch


def _variables(rows: Sequence[Row]) -> list[Row]:
    return [json.loads(row["variables"]) for row in rows]
