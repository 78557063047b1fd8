"""Evol-Instruct: each generation rewrites prompts into harder or different ones.

Xu et al. 2024, "WizardLM: Empowering Large Pre-Trained Language Models to Follow Complex
Instructions", section 3: operations in depth make a prompt harder, operations in breadth make
another one; a rewrite that fails is eliminated and its parent takes part again.
"""

from __future__ import annotations

import json
import random
from typing import Any

from distill.batches import Progress
from distill.prompts.config import EvolInstruct, Operation
from distill.prompts.pool import Pool, Variables, read_objects
from distill.prompts.self_instruct import Ask, about
from distill.records import Message

OPERATIONS: dict[Operation, str] = {
    "constrain": "Add one more condition or limit that the answer has to respect.",
    "deepen": "If it asks about something, make it ask for more depth and breadth of it.",
    "reason": "If it can be solved in one step of thought, change it so that it takes several.",
    "complicate": "Add data to it that has to be read and used: a table, a list, a code or a log.",
    "require": "Add one more thing that is asked for.",
    "concretise": "Replace what is general in it by something specific: a name, a figure, a case.",
    "mutate": "Keep what is asked and change its circumstances: who, where, when, how much.",
    "new": "Write a wholly new one of the same domain, about a rarer case, of the same difficulty.",
}
MOST_WORDS_MORE = 20


def evol_instruct(
    pool: Pool,
    config: EvolInstruct,
    *,
    target: int,
    ask: Ask,
    on_progress: Progress | None = None,
) -> list[dict[str, Any]]:
    """Grow the pool by `target` prompts; returns a dictionary for each generation.

    It has {"generation", "asked", "added", "operations": {operation: added}}.
    """
    parents = list(pool.seeds)
    generations: list[dict[str, Any]] = []
    for number in range(1, config.generations + 1):
        missing = target - len(pool.grown)
        if missing <= 0:
            break
        rng = random.Random(f"{config.seed} generation {number}")
        chosen = _parents(parents, missing, last=number == config.generations, rng=rng)
        operations = [rng.choice(config.operations) for _ in chosen]
        answers = ask([question(pool, p, o) for p, o in zip(chosen, operations, strict=True)])
        added: dict[str, int] = dict.fromkeys(config.operations, 0)
        for place, (parent, operation, answer) in enumerate(
            zip(chosen, operations, answers, strict=True)
        ):
            if len(pool.grown) >= target:
                break
            candidate = next(iter(read_objects(answer)), None)
            if pool.add(candidate, parent=parent):
                added[operation] += 1
                if place < len(parents):
                    parents[place] = pool.grown[-1]
        generations.append(
            {
                "generation": number,
                "asked": len(chosen),
                "added": sum(added.values()),
                "operations": {name: count for name, count in added.items() if count},
            }
        )
        if on_progress is not None:
            on_progress(len(pool.grown), target)
    return generations


def question(pool: Pool, parent: Variables, operation: Operation) -> list[Message]:
    """Return the request to rewrite a prompt."""
    shown = {name: parent[name] for name in pool.fields if name in parent}
    return [
        {"role": "system", "content": about(pool)},
        {
            "role": "user",
            "content": (
                f"An input of the task:\n{json.dumps(shown, ensure_ascii=False)}\n\n"
                f"Rewrite it. {OPERATIONS[operation]} It stays something that a person could ask "
                f"and that can be answered, at most {MOST_WORDS_MORE} words longer. Answer with "
                "one JSON object with the same fields, and nothing else."
            ),
        },
    ]


def _parents(
    parents: list[Variables], missing: int, *, last: bool, rng: random.Random
) -> list[Variables]:
    """Return who is rewritten in a generation: everybody, and the last one fills what is missing.

    Further rounds over the same parents get other operations.
    """
    if not last:
        return parents[:missing] if len(parents) > missing else list(parents)
    chosen = list(parents)
    while len(chosen) < missing:
        chosen += rng.sample(parents, min(len(parents), missing - len(chosen)))
    return chosen
