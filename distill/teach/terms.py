"""Which teachers' terms restrict training on their answers: a dated table that warns and asks."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path
from typing import Any

from cluster.config import read_toml
from cluster.errors import ConfigError
from distill.teach.config import ModelTeacher


def terms_of(model: str) -> dict[str, Any] | None:
    """Return the table's entry for a LiteLLM model name, or nothing when it has none."""
    for entry in _table()["terms"]:
        if re.search(entry["pattern"], model, re.IGNORECASE):
            return dict(entry)
    return None


def check_terms(config: ModelTeacher) -> None:
    """ConfigError for a teacher whose terms restrict training, unless the run accepts them."""
    terms = terms_of(config.model)
    if terms is None or not terms["restricted"] or config.accept_teacher_terms:
        return
    raise ConfigError(
        f"teacher.model {config.model!r}: as of {_table()['as_of']}, {terms['provider']} "
        f"{terms['note']}. Read the terms that hold for you; if you may train on the answers, set "
        "accept_teacher_terms = true beside this model's name (the adapter's manifest records it), "
        "or choose a teacher with open weights."
    )


def describe_terms(config: ModelTeacher) -> str:
    """Return one sentence for the manifest: what the table said, of when, and what was accepted."""
    terms = terms_of(config.model)
    if terms is None:
        return f"no entry for {config.model} in the table of {_table()['as_of']}"
    accepted = ", accepted by the run" if terms["restricted"] else ""
    return f"{terms['provider']}: {terms['note']} (as of {_table()['as_of']}{accepted})"


@cache
def _table() -> dict[str, Any]:
    return read_toml(Path(__file__).with_name("terms.toml"))
