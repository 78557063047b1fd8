"""Judges, one small Protocol: a task's own verifier, or a model."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any, Protocol

from cluster.errors import ConfigError
from distill.config import JudgeLiteLLM, JudgeVerify
from distill.tasks.task import Task

AnyJudge = JudgeVerify | JudgeLiteLLM
VERIFIED = "verified"
"""The dimension of an executed check."""


class Judge(Protocol):
    """Scores curated records; a judge that fails says so and never scores zero for it."""

    name: str

    def judge(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return verdict rows (`distill.records.VERDICT`), any number per record."""


def build_judge(config: AnyJudge, task: Task) -> Judge:
    """Make a judge, in the worker that uses it."""
    return VerifyJudge(task) if isinstance(config, JudgeVerify) else ModelJudge(config, task)


def check_jury(judges: Sequence[AnyJudge], task: Task) -> None:
    """Fail now on what would fail later: no verifier, no rubric, no key."""
    for config in judges:
        if isinstance(config, JudgeLiteLLM) and not task.spec.rubric:
            raise ConfigError(
                f"jury: {config.model} needs a rubric; add [rubric] to {task.folder}/task.toml."
            )
        build_judge(config, task)


class VerifyJudge:
    """Executes the task's `verify` function. Without one, a record that fits the schema passes."""

    def __init__(self, task: Task):
        """Load the function."""
        self.name = "verify"
        self._task = task
        self._verify = task.function(task.spec.verify) if task.spec.verify else None

    def judge(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Score each record by execution."""
        return [self._one(row) for row in rows]

    def _one(self, row: dict[str, Any]) -> dict[str, Any]:
        parsed = self._task.parse(row["completion"])
        if parsed.answer is None:
            return verdict(row, self.name, VERIFIED, score=0.0, reasoning=parsed.problem)
        if self._verify is None:
            return verdict(row, self.name, VERIFIED, score=1.0, reasoning="fits the schema")
        try:
            outcome = self._verify(json.loads(row["variables"]), parsed.answer)
        except Exception as error:
            return verdict(row, self.name, VERIFIED, error=f"{type(error).__name__}: {error}")
        score, reasoning = outcome if isinstance(outcome, tuple) else (outcome, "")
        return verdict(row, self.name, VERIFIED, score=float(score), reasoning=str(reasoning))


class ModelJudge:
    """A model that answers one strict JSON object: dimension -> {score, reasoning}."""

    def __init__(self, config: JudgeLiteLLM, task: Task):
        """Check the key."""
        from distill.teach.litellm import connection

        self.name = config.model
        self._config = config
        self._rubric = task.spec.rubric
        self._connection = connection(
            model=config.model, api_base=config.api_base, api_key_env=config.api_key_env
        )

    def judge(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        """Ask for every record, `concurrency` at a time."""
        return asyncio.run(self._all(rows))

    async def _all(self, rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        slots = asyncio.Semaphore(self._config.concurrency)

        async def one(row: dict[str, Any]) -> list[dict[str, Any]]:
            async with slots:
                return await self._one(row)

        found = await asyncio.gather(*(one(row) for row in rows))
        return [entry for entries in found for entry in entries]

    async def _one(self, row: dict[str, Any]) -> list[dict[str, Any]]:
        from distill.teach.litellm import complete

        request = {
            **self._connection,
            "temperature": 0.0,
            "response_format": {"type": "json_object"},
            "messages": [{"role": "user", "content": _question(row, self._rubric)}],
        }
        try:
            response, _ = await complete(request, max_retries=5, timeout_s=120.0)
            return read_scores(row, self.name, self._rubric, response.choices[0].message.content)
        except Exception as error:
            problem = f"{type(error).__name__}: {str(error)[:300]}"
            return [verdict(row, self.name, name, error=problem) for name in self._rubric]


def read_scores(
    row: dict[str, Any], judge: str, rubric: dict[str, str], text: str
) -> list[dict[str, Any]]:
    """Read a judge's answer; a dimension that is missing or out of 0–1 becomes an error."""
    answer = json.loads(text)
    verdicts = []
    for dimension in rubric:
        entry = answer.get(dimension)
        score = entry.get("score") if isinstance(entry, dict) else None
        if isinstance(score, (int, float)) and not isinstance(score, bool) and 0 <= score <= 1:
            reasoning = str(entry.get("reasoning", ""))
            verdicts.append(verdict(row, judge, dimension, score=float(score), reasoning=reasoning))
        else:
            problem = f"no score from 0 to 1 for {dimension}: {entry!r}"[:300]
            verdicts.append(verdict(row, judge, dimension, error=problem))
    return verdicts


def verdict(
    row: dict[str, Any],
    judge: str,
    dimension: str,
    *,
    score: float | None = None,
    reasoning: str = "",
    error: str = "",
) -> dict[str, Any]:
    """Build one verdict row."""
    return {
        "example_id": row["example_id"],
        "judge": judge,
        "dimension": dimension,
        "score": score,
        "reasoning": reasoning,
        "error": error,
    }


def _question(row: dict[str, Any], rubric: dict[str, str]) -> str:
    prompt = "\n\n".join(f"[{m['role']}]\n{m['content']}" for m in row["messages"])
    dimensions = "\n".join(f"- {name}: {text}" for name, text in rubric.items())
    return (
        "Judge the answer to the prompt below on each dimension, from 0.0 (useless) to 1.0 "
        f"(flawless).\n\nDimensions:\n{dimensions}\n\n<prompt>\n{prompt}\n</prompt>\n\n"
        f"<answer>\n{row['completion']}\n</answer>\n\n"
        'Reply with one JSON object and nothing else: {"<dimension>": {"score": 0.0, '
        '"reasoning": "one sentence"}, …} with every dimension.'
    )
