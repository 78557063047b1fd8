"""Have candidates for the teacher answer the same prompts, and the jury score what they say."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from cluster.storage import Store
from distill.batches import Progress
from distill.config import JuryConfig
from distill.judge.stage import score
from distill.records import answer_id
from distill.tasks.task import Task
from distill.teach.bill import bill, keep_bill
from distill.teach.collect import Found, collect
from distill.teach.config import OneTeacher
from distill.teach.identity import parameters, teacher_name

Row = dict[str, Any]


def candidate_names(candidates: Sequence[OneTeacher], task: Task) -> list[str]:
    """Name each candidate; those of one model are told apart by the settings that differ.

    ConfigError for two whose answers could not differ.
    """
    alike: dict[str, list[int]] = defaultdict(list)
    for place, config in enumerate(candidates):
        alike[teacher_name(config, task)].append(place)
    names = [""] * len(candidates)
    for name, places in alike.items():
        settings = [parameters(candidates[place]) for place in places]
        differing = [
            key
            for key in dict.fromkeys(key for found in settings for key in found)
            if any(found.get(key) != settings[0].get(key) for found in settings)
        ]
        for place, found in zip(places, settings, strict=True):
            said = ", ".join(f"{key}={found.get(key)}" for key in differing)
            names[place] = f"{name} ({said})" if said else name
    twice = [name for name in dict.fromkeys(names) if names.count(name) > 1]
    if twice:
        raise ConfigError(
            f"select.candidates: {', '.join(twice)} stands there more than once with the same "
            "settings; take one out, or give them another temperature, seed or reasoning."
        )
    return names


def ask_candidates(
    task: Task,
    candidates: Sequence[OneTeacher],
    *,
    prompts: Sequence[Row],
    jury: JuryConfig,
    store: Store,
    on_progress: Callable[[str, int, int], None] | None = None,
) -> tuple[list[Row], list[Row]]:
    """Return (answers, verdicts), as `distill.judge.selection.score_candidates` takes them.

    Both are durable: what was answered or judged once, here or in a run with the same cache, is
    not asked again; `bill.json` has what both cost. `on_progress` gets what is done, how much of
    it, of how much. StageError when a candidate answers nothing or its budget ends first.
    """

    def report(what: str) -> Progress | None:
        return None if on_progress is None else partial(on_progress, what)

    answers: list[Row] = []
    said: list[Row] = []
    all_found = Found()
    for name, config in zip(candidate_names(candidates, task), candidates, strict=True):
        found = collect(task, config, prompts, store=store, on_progress=report(name))
        all_found.add(found)
        payer = Path(store.root).name
        keep_bill(store, "answers", bill(all_found.journal, keys=all_found.keys, payer=payer))
        for problem in (found.stopped, found.silent):
            if problem is not None:
                raise problem
        answered = {row["example_id"]: row for row in found.answers}
        errors = {row.get("example_id"): row["error"] for row in found.failed}
        for prompt in prompts:
            key = prompt["example_id"]
            row = answered.get(key, {})
            answers.append(
                {
                    "example_id": key,
                    "candidate": name,
                    "messages": prompt["messages"],
                    "completion": row.get("completion", ""),
                    "error": "" if row else errors.get(key) or "no answer",
                    "latency_s": row.get("latency_s"),
                    "cost_usd": row.get("cost_usd"),
                }
            )
        said += [{**row, "teacher": name} for row in answered.values()]
    verdicts = score(task, jury, records=said, store=store, on_progress=report("jury"))
    # A verdict on disk may be from a time when the candidate had another name.
    authors = {answer_id(row): row["teacher"] for row in said}
    return answers, [{**row, "author": authors[answer_id(row)]} for row in verdicts]
