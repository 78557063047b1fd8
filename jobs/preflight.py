"""Everything that can be known to fail later, checked before anything is loaded or paid for."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from cluster.errors import ConfigError
from cluster.models import model_location
from cluster.session import require_memory, require_port
from distill.judge.judges import check_jury
from distill.teach.stage import check_teacher
from jobs.run import Run


def preflight(run: Run, stages: Sequence[str]) -> None:
    """Raise the first problem that would stop one of `stages`."""
    config = run.config
    local = config.cluster.address == "local"
    if "generate" in stages:
        check_teacher(config.teacher, run.task)
    if "curate" in stages:
        check_jury(config.jury.judges, run.task)
    if {"train", "evaluate", "deploy"} & set(stages):
        check_student(config.student.model)
    if {"train", "evaluate", "deploy"} & set(stages) and local:
        require_memory(config.cluster.min_free_memory_gb, purpose="this run")
    if "deploy" in stages and local:
        require_port(config.serve.port, field="serve.port", host=config.serve.host)


def check_student(model: str) -> None:
    """Check that a local model folder is whole and has a chat template; a hub name passes."""
    folder = Path(model_location(model))
    if not folder.is_absolute():
        return  # a hub name: its template is seen when it is loaded
    template = folder / "chat_template.jinja"
    settings = folder / "tokenizer_config.json"
    if not template.is_file() and "chat_template" not in (
        json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    ):
        raise ConfigError(
            f"student.model {model!r} has no chat template (chat_template.jinja or the field in "
            "tokenizer_config.json): use an instruct model, or put its template there."
        )
