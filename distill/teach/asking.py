"""The worker that asks a model: an event loop that stays full while blocks of rows come and go."""

from __future__ import annotations

import asyncio
import json
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from distill.batches import failed_block
from distill.tasks.task import load_task
from distill.teach.answer import is_final, journal_row
from distill.teach.bill import paid_for
from distill.teach.config import LiteLLMTeacher
from distill.teach.identity import teacher_name
from distill.teach.journal import Journal, read_journal
from distill.teach.limits import Gate, Limits
from distill.teach.shared import cluster_limit

POLL_BUDGET_S = 0.1


@dataclass(frozen=True)
class Asked:
    """What a worker needs; plain values and a Ray handle, so that it can be shipped."""

    task_folder: str
    teacher: LiteLLMTeacher
    cache: str
    """Folder of the journal."""
    payer: str
    """The run that pays; it stands in every line."""
    workers: int
    """How many ask beside each other."""
    blocks: Any
    """Handle of the run's `Blocks`."""
    budget: Any = None
    """Handle of the run's `Budget`, or nothing."""


class AskingWorker:
    """A Ray Data actor: each call is a block, all blocks share one event loop and one gate."""

    def __init__(self, asked: Asked):
        """Load the task and the client once."""
        import ray

        # Only here: LiteLLM takes seconds to import.
        from distill.teach.litellm import LiteLLMTeacherRunner

        self._asked = asked
        config = asked.teacher
        task = load_task(Path(asked.task_folder))
        self._name = teacher_name(config, task)
        self._teacher = LiteLLMTeacherRunner(config, task, name=self._name)
        self._journal = Journal(asked.cache)
        # A worker that is lost is started again as the same actor.
        self._id: str = ray.get_runtime_context().get_actor_id()
        self._settle_for_predecessor()
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=self._loop.run_forever, daemon=True).start()
        self._gate: Gate = asyncio.run_coroutine_threadsafe(self._open(), self._loop).result()

    def _settle_for_predecessor(self) -> None:
        """Return what a worker that was lost had set aside, and book what it had paid.

        Not when its blocks are begun again: others may run first, and wait for that money.
        """
        import ray

        budget = self._asked.budget
        held = ray.get(budget.held_by.remote(self._id)) if budget is not None else []
        if not held:
            return
        paid = paid_for(read_journal(self._asked.cache), requests=held, payer=self._asked.payer)
        ray.get([budget.settle.remote(request, usd) for request, usd in paid.items()])

    async def _open(self) -> Gate:
        config, workers = self._asked.teacher, self._asked.workers
        limits = Limits(config.concurrency, config.requests_per_minute, config.tokens_per_minute)
        sync = cluster_limit(config.model, limits, api_base=config.api_base, workers=workers)
        return await Gate(sync).__aenter__()

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        """Answer a block of rows; returns counts only, the answers are in the journal."""
        rows = [json.loads(text) for text in batch["row"]]
        try:
            missing = self._unanswered(rows)
            asked = asyncio.run_coroutine_threadsafe(self._all(missing), self._loop).result()
            outcomes = [True] * (len(rows) - len(missing)) + asked
        except Exception:
            return {"stopped": [0], **failed_block()}
        return {
            "done": [outcomes.count(True)],
            "stopped": [outcomes.count(False)],
            "error": [b""],
        }

    def _unanswered(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Leave out what a worker that was lost had answered of this block."""
        import ray

        if not ray.get(self._asked.blocks.begin.remote(rows[0]["request_key"])):
            return rows
        wanted = {row["request_key"] for row in rows}
        answered = {
            line["request_key"]
            for line in read_journal(self._asked.cache)
            if line["request_key"] in wanted and is_final(line)
        }
        return [row for row in rows if row["request_key"] not in answered]

    async def _all(self, rows: list[dict[str, Any]]) -> list[bool]:
        return list(await asyncio.gather(*(self._one(row) for row in rows)))

    async def _one(self, row: dict[str, Any]) -> bool:
        """Answer one row and write it down; False when there is no money for it."""
        budget = self._asked.budget
        request = row["request_key"]
        most_usd = self._teacher.most_usd(row) if budget is not None else 0.0
        while budget is not None:
            may = await budget.reserve.remote(request, most_usd, worker=self._id)
            if may is not None:
                break
            await asyncio.sleep(POLL_BUDGET_S)
        if budget is not None and not may:
            return False
        answer = await self._teacher.ask(row, gate=self._gate)
        self._journal.add(journal_row(row, answer, teacher=self._name, payer=self._asked.payer))
        if budget is not None:
            budget.settle.remote(request, answer.cost_usd)
        return True
