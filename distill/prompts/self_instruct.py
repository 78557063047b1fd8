"""Self-Instruct: a model writes new prompts like those it is shown, round after round.

Wang et al. 2023, "Self-Instruct: Aligning Language Models with Self-Generated Instructions",
section 2: examples are drawn from the seeds and from what was written before, and what is too
similar to a known prompt is refused.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable, Sequence
from typing import Any

from distill.batches import Progress
from distill.prompts.config import SelfInstruct
from distill.prompts.pool import Pool, Variables, read_objects
from distill.records import Message

Ask = Callable[[Sequence[list[Message]]], list[str]]
"""Conversations to a model's answers, in order; "" for one that was not answered."""
ROUNDS_WITHOUT_GAIN = 2


def self_instruct(
    pool: Pool,
    config: SelfInstruct,
    *,
    target: int,
    ask: Ask,
    on_progress: Progress | None = None,
) -> list[dict[str, int]]:
    """Grow the pool by `target` prompts; returns {"round", "asked", "added"} of each round.

    It ends early when two rounds in a row bring nothing new, or after `config.rounds`.
    """
    rounds: list[dict[str, int]] = []
    for number in range(1, config.rounds + 1):
        missing = target - len(pool.grown)
        if missing <= 0:
            break
        # Twice what is missing: some of it will be refused.
        count = min(config.requests, -(-2 * missing // config.per_request))
        rng = random.Random(f"{config.seed} round {number}")
        answers = ask([question(pool, config, rng=rng) for _ in range(count)])
        before = len(pool.grown)
        for answer in answers:
            for candidate in read_objects(answer):
                if len(pool.grown) < target:
                    pool.add(candidate)
        added = len(pool.grown) - before
        rounds.append({"round": number, "asked": count, "added": added})
        if on_progress is not None:
            on_progress(len(pool.grown), target)
        last = rounds[-ROUNDS_WITHOUT_GAIN:]
        if len(last) == ROUNDS_WITHOUT_GAIN and not any(entry["added"] for entry in last):
            break
    return rounds


def question(pool: Pool, config: SelfInstruct, *, rng: random.Random) -> list[Message]:
    """Return the request for new prompts, with examples drawn by `rng`."""
    shown = rng.sample(pool.seeds, min(config.seed_examples, len(pool.seeds)))
    shown += rng.sample(pool.grown, min(config.grown_examples, len(pool.grown)))
    rng.shuffle(shown)
    return [
        {"role": "system", "content": about(pool)},
        {
            "role": "user",
            "content": (
                f"These are {len(shown)} inputs of the task, one JSON object a line:\n"
                f"{as_lines(shown)}\n\n"
                f"Write {config.per_request} further inputs that the task could meet. They differ "
                "from these and from each other in subject, wording, length and difficulty, and "
                "rare cases are among them. Answer with a JSON list of "
                f"{config.per_request} objects with the same fields, and nothing else."
            ),
        },
    ]


def about(pool: Pool) -> str:
    """What a writer is told about the task."""
    task = pool.task
    purpose = task.spec.description or task.name
    return (
        f"You write inputs for a task that another model will be trained on. The task: {purpose}\n"
        "Write inputs only, never their answers."
    )


def as_lines(prompts: Sequence[Variables]) -> str:
    """Prompts as JSON, one a line."""
    return "\n".join(json.dumps(prompt, ensure_ascii=False) for prompt in prompts)


def made(pool: Pool, steps: Sequence[dict[str, Any]], *, kind: str) -> dict[str, Any]:
    """Return the report of a maker: how the pool grew, and what was refused by reason."""
    return {
        "kind": kind,
        "seeds": len(pool.seeds),
        "grown": len(pool.grown),
        "steps": list(steps),
        "refused": dict(pool.refused.most_common()),
    }
