"""Who answers which prompt."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from distill.teach.config import AnyTeacher, OneTeacher, SeveralTeachers


def shares(
    prompts: Sequence[dict[str, Any]], config: AnyTeacher
) -> list[tuple[OneTeacher, list[dict[str, Any]]]]:
    """Return each teacher with its prompts: all of them, or its part of a mixture.

    Whose a prompt is follows from its id and the seed alone: it stays the same when others are
    added, so no answer is paid for twice.
    """
    if not isinstance(config, SeveralTeachers):
        return [(config, list(prompts))]
    if config.combine == "best_of":
        return [(member, list(prompts)) for member in config.members]
    own: list[list[dict[str, Any]]] = [[] for _ in config.members]
    for row in prompts:
        draw = random.Random(f"{config.seed} {row['example_id']}")
        [place] = draw.choices(range(len(own)), weights=config.weights or None)
        own[place].append(row)
    return list(zip(config.members, own, strict=True))
