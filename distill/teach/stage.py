"""Ask the teacher for every prompt that has no answer yet.

A model's answers go into a journal as they arrive (`journal.py`), which runs share; the run's own
files are made from it, in the order of the prompts, so that they are the same however often the
work was interrupted. What a program or a recording says costs nothing and is computed in batches.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from cluster.errors import ConfigError, StageError
from cluster.storage import Store, digest_of, rows_table
from distill.batches import Progress, drain, map_to_parquet
from distill.config import LiteLLMTeacher, ReplayTeacher
from distill.records import COMPLETION
from distill.tasks.task import Task, load_task
from distill.teach.bill import bill
from distill.teach.journal import read_journal
from distill.teach.teacher import AnyTeacher, build_teacher, request_key, teacher_name
from distill.teach.terms import check_terms

ANSWERS, FAILED, TIMINGS = "completions/answers.parquet", "failed.parquet", "timings.parquet"
BLOCK_ROWS = 64
BLOCKS_PER_ACTOR = 4
"""Blocks that an actor works on at once: the next rows wait inside it, not on their way to it."""
CONCURRENCY_PER_ACTOR = 64
"""LiteLLM costs about 4.5 ms of CPU a request: one process is full at some 200 a second."""
MOST_BLOCKS = 4096

_FAILED = pa.schema([("example_id", pa.string()), ("failure", pa.string()), ("error", pa.string())])
_TIMINGS = pa.schema(
    [
        ("request_key", pa.string()),
        ("latency_s", pa.float64()),
        ("requests", pa.int64()),
        ("retried", pa.list_(pa.string())),
    ]
)


def check_teacher(config: AnyTeacher, task: Task) -> None:
    """Fail now on what would fail later: a missing key, price, file, function or permission."""
    if isinstance(config, LiteLLMTeacher):
        check_terms(config)
    if isinstance(config, (LiteLLMTeacher, ReplayTeacher)):
        build_teacher(config, task)
    else:
        task.function(config.function)


def key_of(row: dict[str, Any], config: AnyTeacher, task: Task) -> str:
    """Digest of a row's request: the same prompt asked in the same way is the same request."""
    if not isinstance(config, LiteLLMTeacher):
        return request_key(row, config)
    output = task.spec.output.model_dump(mode="json")
    return request_key(row, config, output_digest=digest_of([output, task.schema]))


def read_completions(
    prompts: Sequence[dict[str, Any]], config: AnyTeacher, *, store: Store
) -> list[dict[str, Any]]:
    """Answers on disk for these prompts and this teacher, in the prompts' order."""
    if not store.names("completions"):
        return []
    # A model's file was made for exactly these prompts; a program's may hold answers to prompts
    # that changed since.
    by_key = not isinstance(config, LiteLLMTeacher)
    answered = {
        row["request_key" if by_key else "example_id"]: row
        for row in store.read_rows("completions")
        if not row["error"]
    }
    timings = store.read_rows(TIMINGS) if store.exists(TIMINGS) else []
    latencies = {row["request_key"]: row["latency_s"] for row in timings}
    rows = []
    for prompt in prompts:
        found = answered.get(request_key(prompt, config) if by_key else prompt["example_id"])
        if found is not None:
            latency_s = latencies.get(found["request_key"], found["latency_s"])
            own = {name: prompt[name] for name in ("split", "example_id")}
            rows.append({**found, "latency_s": latency_s, **own})
    return rows


def cache_folder(config: LiteLLMTeacher, *, store: Store) -> Path:
    """Where the answers of this model lie, for all runs below the same root."""
    root = Path(config.cache).expanduser() if config.cache else Path(store.root).parent / "answers"
    return root.absolute() / re.sub(r"[^A-Za-z0-9._-]+", "-", config.model)


def generate(
    task: Task,
    config: AnyTeacher,
    *,
    prompts: Sequence[dict[str, Any]],
    store: Store,
    on_progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Answer the prompts that have no answer yet; returns all answers, in the prompts' order.

    An answer on disk is never asked for again. StageError, with the commonest error, when more
    rows failed than the teacher's `max_failed_fraction` (0.05 of a program or a recording), or
    when the budget ended first.
    """
    if isinstance(config, LiteLLMTeacher):
        return _ask_model(task, config, prompts=prompts, store=store, on_progress=on_progress)
    known = {row["request_key"] for row in read_completions(prompts, config, store=store)}
    map_to_parquet(
        [row for row in prompts if request_key(row, config) not in known],
        make_worker=_worker(str(task.folder), config),
        store=store / "completions",
        schema=COMPLETION,
        batch_size=256,
        on_progress=on_progress,
    )
    answers = read_completions(prompts, config, store=store)
    errors = Counter(row["error"] for row in store.read_rows("completions") if row["error"])
    _check_failures(len(prompts), len(answers), errors, config=config, task=task, allowed=0.05)
    return answers


def _ask_model(
    task: Task,
    config: LiteLLMTeacher,
    *,
    prompts: Sequence[dict[str, Any]],
    store: Store,
    on_progress: Progress | None,
) -> list[dict[str, Any]]:
    keys = [key_of(row, config, task) for row in prompts]
    wanted = set(keys)
    cache = cache_folder(config, store=store)
    payer = Path(store.root).name
    known = _Known.read(cache, wanted, payer=payer)
    # The same request is sent once, however many prompts it stands for. Equal beginnings follow
    # each other: providers charge less for a prefix that they have just seen.
    missing = {
        key: {"request_key": key, "example_id": row["example_id"], "messages": row["messages"]}
        for key, row in zip(keys, prompts, strict=True)
        if key not in known.answered
    }
    rows = sorted(missing.values(), key=lambda row: [m["content"] for m in row["messages"]])
    stopped = 0
    if rows:
        stopped = _run(rows, task, config, cache, payer, known.spent_usd, on_progress)
        known = _Known.read(cache, wanted, payer=payer)
    _write(prompts, keys, known, task=task, config=config, store=store)
    store.write_json("bill.json", bill(known.of_interest, keys=wanted, payer=payer))
    if stopped:
        raise StageError(
            f"teacher.budget_usd {config.budget_usd:g} is reached: ${known.spent_usd:.4f} are "
            "spent and the next request could pass it; "
            f"{stopped} of {len(prompts)} prompts were not asked. "
            "Raise the budget and run the same command again: what is answered is kept."
        )
    answers = read_completions(prompts, config, store=store)
    errors = Counter(row["error"] for row in store.read_rows(FAILED))
    _check_failures(
        len(prompts), len(answers), errors,
        config=config, task=task, allowed=config.max_failed_fraction,
    )  # fmt: skip
    return answers


@dataclass(frozen=True)
class _Known:
    """What the journal holds of a run."""

    of_interest: list[dict[str, Any]]
    """Lines that the run asked for or paid."""
    answered: dict[str, dict[str, Any]]
    """Its answers by request."""
    failed: dict[str, dict[str, Any]]
    """A failure of each request that has no answer."""
    spent_usd: float
    """What it has paid so far."""

    @classmethod
    def read(cls, cache: Path, wanted: set[str], *, payer: str) -> _Known:
        """Read the journal once."""
        rows = [
            row
            for row in read_journal(cache)
            if row["request_key"] in wanted or row["payer"] == payer
        ]
        mine = [row for row in rows if row["request_key"] in wanted]
        answered = {row["request_key"]: row for row in mine if not row["error"]}
        failed = {row["request_key"]: row for row in mine if row["request_key"] not in answered}
        spent_usd = sum(row["cost_usd"] for row in rows if row["payer"] == payer)
        return cls(rows, answered, failed, spent_usd)


def _run(
    rows: list[dict[str, Any]],
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
    from distill.teach.shared import run_budget

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
        fn_constructor_args=(Asked(str(task.folder), config, str(cache), payer, budget),),
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


def _check_budget(
    row: dict[str, Any], task: Task, config: LiteLLMTeacher, *, spent_usd: float
) -> None:
    from distill.teach.litellm import LiteLLMTeacherRunner

    assert config.budget_usd is not None
    most_usd = LiteLLMTeacherRunner(config, task, name="").most_usd(row)
    if spent_usd + most_usd > config.budget_usd:
        raise ConfigError(
            f"teacher.budget_usd {config.budget_usd:g} does not pay for one more request: "
            f"${spent_usd:.4f} are spent and one can cost ${most_usd:.4f}. Raise it, or lower "
            "teacher.max_tokens."
        )


def _write(
    prompts: Sequence[dict[str, Any]],
    keys: list[str],
    known: _Known,
    *,
    task: Task,
    config: LiteLLMTeacher,
    store: Store,
) -> None:
    """Write the run's files from the journal: answers in the prompts' order, failures, timings.

    What differs from run to run (how long it took, how often it was retried) stands apart, so
    that the answers of an interrupted run are the same file as those of an undisturbed one.
    """
    name = teacher_name(config, task)
    rows, failed = [], []
    for key, prompt in zip(keys, prompts, strict=True):
        found = known.answered.get(key)
        if found is not None:
            rows.append({**prompt, **found, "example_id": prompt["example_id"], "teacher": name})
        elif key in known.failed:
            failed.append({**known.failed[key], "example_id": prompt["example_id"]})
    timings = [{name: row[name] for name in _TIMINGS.names} for row in known.answered.values()]
    # Answers of other prompts, or of another teacher, are in the cache and not in this run.
    store.remove("completions")
    store.write_table(FAILED, rows_table(failed, _FAILED))
    store.write_table(TIMINGS, rows_table(timings, _TIMINGS))
    store.write_table(ANSWERS, rows_table([{**r, "latency_s": None} for r in rows], COMPLETION))


def _check_failures(
    asked: int, answered: int, errors: Counter[str], *, config: AnyTeacher, task: Task,
    allowed: float,
) -> None:  # fmt: skip
    failed = asked - answered
    if failed > allowed * asked:
        commonest = errors.most_common(1)[0][0] if errors else "none recorded"
        raise StageError(
            f"{failed} of {asked} prompts have no answer from "
            f"{teacher_name(config, task)}; the commonest error: {commonest}. "
            "What was answered is kept; a rerun asks for the rest."
        )


def _worker(
    folder: str, config: AnyTeacher
) -> Callable[[], Callable[[list[dict[str, Any]]], list[dict[str, Any]]]]:
    def make() -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
        task = load_task(Path(folder))
        teacher = build_teacher(config, task)

        def answer(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
            return [
                {
                    **row,
                    **asdict(found),
                    "teacher": teacher.name,
                    "request_key": request_key(row, config),
                }
                for row, found in zip(rows, teacher.answer(rows), strict=True)
            ]

        return answer

    return make
