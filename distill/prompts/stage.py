"""The prompts of a run: read, or written by a model; rendered, split, proved apart, written."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from cluster.errors import ConfigError, StageError
from cluster.storage import Store, digest_of, rows_table
from distill.config import PromptsConfig
from distill.prompts.config import EvolInstruct, SelfInstruct
from distill.prompts.evol_instruct import evol_instruct
from distill.prompts.logs import LogsConfig, read_log
from distill.prompts.pool import Pool
from distill.prompts.self_instruct import Ask, OnProgress, made, self_instruct
from distill.prompts.source import read_prompts
from distill.prompts.split import Split, build_rows, contamination, split_rows
from distill.records import PROMPT
from distill.tasks.task import Task

MADE_FILE = "prompts/made.json"


def make_prompts(
    task: Task,
    config: PromptsConfig,
    *,
    store: Store,
    ask: Ask | None = None,
    on_progress: OnProgress | None = None,
) -> Split:
    """Write `prompts/<split>.parquet` and `prompts/contamination.json`; return the rows by split.

    `ask` reaches the model that writes prompts where `prompts.make` wants one; what it made and
    refused is in `prompts/made.json`. Raises StageError if two splits share a prompt or a
    combination that the task keeps apart.
    """
    split = _split(task, config, store=store, ask=ask, on_progress=on_progress)
    report = contamination(split.rows, disjoint=task.spec.prompts.disjoint)
    store.write_json("prompts/contamination.json", report)
    if not report["clean"]:
        raise StageError(
            f"splits share prompts: {report['shared']}; see prompts/contamination.json"
        )
    for name, members in split.rows.items():
        store.write_table(f"prompts/{name}.parquet", rows_table(members, PROMPT))
    return split


def split_prompts(task: Task, config: PromptsConfig) -> Split:
    """Return the task's own prompts by split; nothing is asked or written."""
    sizes = sizes_of(config)
    prompts = read_prompts(task, sizes=sizes, seed=config.seed, skip_bad=config.skip_bad)
    rows = build_rows(task, prompts)
    disjoint = task.spec.prompts.disjoint
    split = split_rows(rows, sizes=sizes, disjoint=disjoint, seed=config.seed)
    split.duplicates = len(prompts) - len(rows)
    return split


def sizes_of(config: PromptsConfig) -> dict[str, int]:
    """Prompts wanted of each split."""
    return {"train": config.train, "validation": config.validation, "test": config.test}


def _split(
    task: Task,
    config: PromptsConfig,
    *,
    store: Store,
    ask: Ask | None,
    on_progress: OnProgress | None,
) -> Split:
    make = config.make
    if isinstance(make, LogsConfig):
        log = read_log(make)
        store.write_json(MADE_FILE, {"kind": make.kind, **log.report()})
        split = split_rows(log.rows, sizes=sizes_of(config), disjoint=[], seed=config.seed)
        left_out = sum(log.left_out.values())
        split.notes.append(
            f"log: {len(log.rows)} prompts of {log.num_read} requests, {left_out} left out, "
            f"{log.num_masked_rows} with personal data masked; see {MADE_FILE}"
        )
        return split
    split = split_prompts(task, config)
    if isinstance(make, (SelfInstruct, EvolInstruct)):
        if ask is None:
            raise ConfigError(
                f"prompts.make.kind {make.kind!r} needs a model that writes: set "
                "[prompts.make.writer], or let [teacher] be a model."
            )
        _grow(task, split, make, target=config.train, store=store, ask=ask, on_progress=on_progress)
    return split


def _grow(
    task: Task,
    split: Split,
    make: SelfInstruct | EvolInstruct,
    *,
    target: int,
    store: Store,
    ask: Ask,
    on_progress: OnProgress | None,
) -> None:
    """Add prompts that a model wrote to the training split; the writer never sees the others.

    What is left of a training set that was cut to the task's few prompts is the pool's seed.
    """
    train = split.rows["train"]
    held_out = [row for name in ("validation", "test") for row in split.rows[name]]
    pool = Pool(task, make, seeds=_variables(train), held_out=_variables(held_out))
    wanted = target - len(train)
    if isinstance(make, SelfInstruct):
        steps: list[dict[str, Any]] = list(
            self_instruct(pool, make, target=wanted, ask=ask, on_progress=on_progress)
        )
    else:
        steps = evol_instruct(pool, make, target=wanted, ask=ask, on_progress=on_progress)
    store.write_json(MADE_FILE, made(pool, steps, kind=make.kind))
    origin = make.kind.replace("_", "-")
    grown = build_rows(
        task,
        [
            {"id": f"{origin}-{digest_of(prompt)[:12]}", "split": "train", **prompt}
            for prompt in pool.grown
        ],
    )
    # The same message from other variables, or a combination that is held out.
    both = split_rows(
        [*held_out, *train, *grown],
        sizes={name: len(rows) for name, rows in split.rows.items()}
        | {"train": len(train) + len(grown)},
        disjoint=task.spec.prompts.disjoint,
        seed=make.seed,
    )
    split.rows, split.conflicts = both.rows, split.conflicts + both.conflicts
    # "fewer than asked for" was said of the seeds.
    split.notes = [
        f"{origin}: {len(split.rows['train']) - len(train)} of {max(0, wanted)} prompts written, "
        f"from {len(train)} of the task's own; {sum(pool.refused.values())} refused, "
        f"see {MADE_FILE}"
    ]


def _variables(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [json.loads(row["variables"]) for row in rows]
