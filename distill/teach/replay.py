"""Answers recorded earlier, joined by id: nothing is asked, nothing is paid."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError, DataError
from distill.jsonl import numbered_jsonl
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


def read_recording(path: Path) -> dict[str, dict[str, Any]]:
    """Read recorded answers by their `example_id` or `id`.

    DataError for a line that cannot be read, has no id or no `completion`.
    """
    answers: dict[str, dict[str, Any]] = {}
    for place, row in _rows(path):
        key = recorded_id(row)
        if not key or not isinstance(row.get("completion"), str):
            raise DataError(
                f"{path}, {place}: needs `completion`, a text, and `id` or `example_id`."
            )
        answers[key] = row
    return answers


def recorded_answer(
    answers: Mapping[str, dict[str, Any]], row: dict[str, Any]
) -> dict[str, Any] | None:
    """Return a prompt's answer by its `example_id`, or else by its id in the prompts file."""
    return answers.get(row["example_id"]) or answers.get(row["prompt_id"] or "-")


class ReplayTeacherRunner:
    """Looks each prompt up by `example_id`, then by the id in the prompts file."""

    def __init__(self, config: ReplayTeacher, task: Task, *, name: str):
        """Read the recording."""
        self.name = name
        self._answers = read_recording(replay_file(config, task))

    def answer(self, rows: Sequence[dict[str, Any]]) -> list[Answer]:
        """Return the recorded answers; a prompt without one gets an error."""
        return [self._one(row) for row in rows]

    def _one(self, row: dict[str, Any]) -> Answer:
        found = recorded_answer(self._answers, row)
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


def _rows(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Yield each record with its place in the file."""
    if path.suffix == ".parquet":
        import pyarrow.parquet as pq

        for number, row in enumerate(pq.read_table(path).to_pylist(), start=1):
            yield f"record {number}", row
        return
    for number, row in numbered_jsonl(path):
        yield f"line {number}", row
