"""Ask the teacher for every prompt that has no answer yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cluster.errors import StageError
from cluster.storage import Store
from distill.batches import Progress, map_to_parquet
from distill.config import LiteLLMTeacher, ReplayTeacher
from distill.records import COMPLETION
from distill.tasks.task import Task, load_task
from distill.teach.teacher import AnyTeacher, build_teacher, request_key, teacher_name


def check_teacher(config: AnyTeacher, task: Task) -> None:
    """Fail now on what would fail later: a missing key, price, file or function."""
    if isinstance(config, (LiteLLMTeacher, ReplayTeacher)):
        build_teacher(config, task)
    else:
        task.function(config.function)


def read_completions(
    prompts: Sequence[dict[str, Any]], config: AnyTeacher, *, store: Store
) -> list[dict[str, Any]]:
    """Answers on disk for these prompts and this teacher, in the prompts' order."""
    if not store.names("completions"):
        return []
    answered = {
        row["request_key"]: row for row in store.read_rows("completions") if not row["error"]
    }
    keys = [request_key(row, config) for row in prompts]
    return [
        {**answered[key], **{name: prompt[name] for name in ("split", "example_id")}}
        for key, prompt in zip(keys, prompts, strict=True)
        if key in answered
    ]


def generate(
    task: Task,
    config: AnyTeacher,
    *,
    prompts: Sequence[dict[str, Any]],
    store: Store,
    max_failed_fraction: float = 0.05,
    on_progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Answer the prompts that have no answer in `completions/`; returns all answers.

    An answer on disk is never asked for again. More failed rows than `max_failed_fraction` is a
    StageError that shows their commonest error.
    """
    known = {row["request_key"] for row in read_completions(prompts, config, store=store)}
    missing = [row for row in prompts if request_key(row, config) not in known]
    batch_size = 256
    if isinstance(config, LiteLLMTeacher):
        # A batch is on disk once all of it is answered: small ones lose less when killed.
        batch_size = max(16, 2 * config.concurrency)
    map_to_parquet(
        missing,
        make_worker=_worker(str(task.folder), config),
        store=store / "completions",
        schema=COMPLETION,
        batch_size=batch_size,
        on_progress=on_progress,
    )
    answers = read_completions(prompts, config, store=store)
    failed = len(prompts) - len(answers)
    if failed > max_failed_fraction * len(prompts):
        raise StageError(
            f"{failed} of {len(prompts)} prompts have no answer from "
            f"{teacher_name(config, task)}; the commonest error: {_commonest(store)}. "
            "What was answered is kept; a rerun asks for the rest."
        )
    return answers


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


def _commonest(store: Store) -> str:
    from collections import Counter

    errors = Counter(row["error"] for row in store.read_rows("completions") if row["error"])
    return errors.most_common(1)[0][0] if errors else "none recorded"
