"""Answers recorded earlier, joined by id: nothing is asked, nothing is paid."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError, DataError
from distill.jsonl import read_jsonl
from distill.records import recorded_id
from distill.tasks.task import Task
from distill.teach.answer import Answer
from distill.teach.config import ReplayTeacher


def replay_file(config: ReplayTeacher, task: Task) -> Path:
    """Path of the recording: as given, or inside the task folder."""
    path = Path(config.file)
    found = path if path.is_file() else task.folder / config.file
    if not found.is_file():
        raise ConfigError(
            f"teacher.file {config.file!r}: no such file here or in {task.folder}; "
            "give a JSONL or Parquet file with `id` or `example_id`, and `completion`."
        )
    return found


class ReplayTeacherRunner:
    """Looks each prompt up by `example_id`, then by the id in the prompts file."""

    def __init__(self, config: ReplayTeacher, task: Task, *, name: str):
        """Read the recording."""
        self.name = name
        path = replay_file(config, task)
        self._answers: dict[str, dict[str, Any]] = {}
        for number, row in enumerate(_rows(path), start=1):
            key = recorded_id(row)
            if not key or not isinstance(row.get("completion"), str):
                raise DataError(f"{path}, record {number}: needs `completion` and an id.")
            self._answers[key] = row

    def answer(self, rows: Sequence[dict[str, Any]]) -> list[Answer]:
        """Return the recorded answers; a prompt without one gets an error."""
        return [self._one(row) for row in rows]

    def _one(self, row: dict[str, Any]) -> Answer:
        found = self._answers.get(row["example_id"]) or self._answers.get(row["prompt_id"] or "-")
        if found is None:
            return Answer(error="no recorded answer for this prompt")
        return Answer(
            completion=found["completion"],
            rationale=str(found.get("rationale") or ""),
            prompt_tokens=int(found.get("prompt_tokens") or 0),
            completion_tokens=int(found.get("completion_tokens") or 0),
            latency_s=float(found.get("latency_s") or 0.0),
            cost_usd=float(found.get("cost_usd") or 0.0),
        )


def _rows(path: Path) -> list[dict[str, Any]]:
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        return list(pq.read_table(path).to_pylist())
    return read_jsonl(path)
