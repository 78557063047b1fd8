"""Ask a model, durably: what is answered is in the journal and is never asked for again.

Whoever needs a model's words (the stage that answers prompts, the makers of prompts) asks here.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError, StageError
from cluster.models import model_digest
from cluster.storage import Store, digest_of
from distill.batches import Progress, drain
from distill.tasks.task import Task
from distill.teach.answer import is_final
from distill.teach.config import LiteLLMTeacher, ModelTeacher
from distill.teach.identity import request_key
from distill.teach.journal import read_journal

BLOCK_ROWS = 16
"""A block is done when its slowest row is, after a time-out and its retries: few wait for it."""
BLOCKS_PER_ACTOR = 16
"""Blocks that an actor works on at once: the next rows wait inside it, not on their way to it."""
CONCURRENCY_PER_ACTOR = 64
"""LiteLLM costs about 4.5 ms of CPU a request: one process is full at some 200 a second."""
MOST_BLOCKS = 4096

Row = dict[str, Any]


@dataclass(frozen=True)
class Known:
    """What the journal holds of a run's requests."""

    of_interest: list[Row]
    """Lines that the run asked for or paid."""
    answered: dict[str, Row]
    """Its answers by request."""
    failed: dict[str, Row]
    """A failure of each request that has no answer; one that is final before others."""
    spent_usd: float
    """What it has paid so far."""
    unasked: int = 0
    """Requests that the budget left."""

    @classmethod
    def read(cls, cache: Path, wanted: set[str], *, payer: str, unasked: int = 0) -> Known:
        """Read the journal once."""
        rows = [
            row
            for row in read_journal(cache)
            if row["request_key"] in wanted or row["payer"] == payer
        ]
        mine = [row for row in rows if row["request_key"] in wanted]
        answered = {row["request_key"]: row for row in mine if not row["error"]}
        failed = {
            row["request_key"]: row
            for row in sorted(mine, key=is_final)
            if row["request_key"] not in answered
        }
        spent_usd = sum(row["cost_usd"] for row in rows if row["payer"] == payer)
        return cls(rows, answered, failed, spent_usd, unasked)


def cache_folder(config: ModelTeacher, *, store: Store) -> Path:
    """Where the answers of this model lie, for all runs below the same root."""
    root = Path(config.cache).expanduser() if config.cache else Path(store.root).parent / "answers"
    return root.absolute() / re.sub(r"[^A-Za-z0-9._-]+", "-", config.model)


def request_keys(
    rows: Sequence[Row], config: ModelTeacher, task: Task, *, sample: int = 0
) -> list[str]:
    """Digest of each row's request: the same prompt asked in the same way is the same request."""
    form: list[Any] = [task.spec.output.model_dump(mode="json"), task.schema]
    if not isinstance(config, LiteLLMTeacher):
        # A folder keeps its name when the model in it changes.
        form.append(model_digest(config.model))
    output_digest = digest_of(form)
    return [request_key(row, config, output_digest=output_digest, sample=sample) for row in rows]


def ask(
    rows: Sequence[Row],
    config: ModelTeacher,
    task: Task,
    *,
    store: Store,
    on_progress: Progress | None = None,
) -> Known:
    """Ask what the journal does not answer yet, and return what it then holds.

    `rows` have `request_key`, `example_id`, `messages` and `sample`. The same request is sent
    once, however many rows it stands for. ConfigError when the budget does not pay for one request.
    """
    wanted = {row["request_key"] for row in rows}
    cache, payer = cache_folder(config, store=store), Path(store.root).name
    known = Known.read(cache, wanted, payer=payer)
    done = {key for key, row in (known.failed | known.answered).items() if is_final(row)}
    missing = {row["request_key"]: row for row in rows if row["request_key"] not in done}
    if not missing:
        return known
    # Equal beginnings follow each other: providers charge less for a prefix that they have just
    # seen, and vLLM does not compute it again.
    ordered = sorted(missing.values(), key=lambda row: [m["content"] for m in row["messages"]])
    if isinstance(config, LiteLLMTeacher):
        unasked = _ask_api(ordered, task, config, cache, payer, known.spent_usd, on_progress)
    else:
        from distill.teach.vllm_batch import ask_vllm

        ask_vllm(ordered, task, config, cache=cache, payer=payer, on_progress=on_progress)
        unasked = 0
    return Known.read(cache, wanted, payer=payer, unasked=unasked)


def budget_reached(config: ModelTeacher, known: Known, *, total: int) -> StageError:
    """The error of a budget that ended before the work did."""
    assert isinstance(config, LiteLLMTeacher)
    return StageError(
        f"teacher.budget_usd {config.budget_usd:g} is reached: ${known.spent_usd:.4f} are "
        f"spent and the next request could pass it; {known.unasked} of {total} prompts were not "
        "asked. Raise the budget and run the same command again: what is answered is kept."
    )


def _ask_api(
    rows: list[Row],
    task: Task,
    config: LiteLLMTeacher,
    cache: Path,
    payer: str,
    spent_usd: float,
    on_progress: Progress | None,
) -> int:
    """Ask on Ray Data; returns how many rows the budget left unasked."""
    import ray

    from distill.teach.asking import Asked, AskingWorker
    from distill.teach.shared import run_blocks, run_budget

    budget = None
    if config.budget_usd is not None:
        _check_budget(rows[0], task, config, spent_usd=spent_usd)
        budget = run_budget(config.budget_usd, spent_usd=spent_usd)
    cores = int(ray.cluster_resources().get("CPU", 1))
    actors = max(1, min(cores, -(-config.concurrency // CONCURRENCY_PER_ACTOR)))
    blocks = min(MOST_BLOCKS, max(actors, -(-len(rows) // BLOCK_ROWS)))
    dataset = ray.data.from_items(
        [{"row": json.dumps(row)} for row in rows], override_num_blocks=blocks
    ).map_batches(
        AskingWorker,
        fn_constructor_args=(
            Asked(str(task.folder), config, str(cache), payer, actors, run_blocks(), budget),
        ),
        batch_size=None,
        batch_format="numpy",
        compute=ray.data.ActorPoolStrategy(
            size=actors,
            max_tasks_in_flight_per_actor=2 * BLOCKS_PER_ACTOR,
            max_concurrent_calls_per_actor=BLOCKS_PER_ACTOR,
            enable_true_multi_threading=True,
        ),
        num_cpus=1,
    )
    return drain(dataset, total=len(rows), on_progress=on_progress)["stopped"]


def _check_budget(row: Row, task: Task, config: LiteLLMTeacher, *, spent_usd: float) -> None:
    from distill.teach.litellm import LiteLLMTeacherRunner

    assert config.budget_usd is not None
    most_usd = LiteLLMTeacherRunner(config, task, name="").most_usd(row)
    if spent_usd + most_usd > config.budget_usd:
        raise ConfigError(
            f"teacher.budget_usd {config.budget_usd:g} does not pay for one more request: "
            f"${spent_usd:.4f} are spent and one can cost ${most_usd:.4f}. Raise it, or lower "
            "teacher.max_tokens."
        )
