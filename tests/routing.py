"""A task whose difficulty can be read off the prompt, one where it cannot, and files of both."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

from cluster.difficulty import Model, Predictor, Scorer
from cluster.example import example_id
from distill.route.curve import Wish
from distill.route.labels import HeldOut, Logged
from distill.route.route import Subject, route

Row = dict[str, Any]
VENDORS = ("Keystone", "Acme", "Orion", "Nordwind")


def text(rng: random.Random, *, hard: bool) -> str:
    """A bank line; a hard one has two currencies."""
    one = rng.choice(["EUR", "USD", "GBP"])
    other = rng.choice([c for c in ("EUR", "USD", "GBP") if c != one]) if hard else one
    amount = f"{rng.randint(100, 999_999) / 100:.2f}"
    vendor = rng.choice(VENDORS)
    currency = f"{one} and {other}" if hard else "same"
    return (
        f"Bank: 2025-0{rng.randint(1, 9)}-1{rng.randint(0, 9)} | {vendor} Logistics | {one} "
        f"{amount}\nERP: {vendor} Logistics | {other} {amount}\n"
        f"Currency: {currency}. Gap: {rng.randint(0, 20)} days."
    )


def questions(count: int, *, seed: int, readable: bool = True) -> list[Row]:
    """Prompts with `wrong`: half of the hard ones and 3% of the others, or of all alike."""
    rng = random.Random(seed)
    found = []
    for _ in range(count):
        hard = rng.random() < 0.2
        said = text(rng, hard=hard)
        messages = [{"role": "system", "content": "Classify."}, {"role": "user", "content": said}]
        rate = (0.5 if hard else 0.03) if readable else 0.12
        found.append(
            {
                "example_id": example_id(messages),
                "messages": messages,
                "hard": hard,
                "wrong": rng.random() < rate,
            }
        )
    return found


def held(rows: list[Row], *, other: Callable[[Row], bool | None] = lambda row: True) -> HeldOut:
    """The rows as held-out prompts; `other` says whether the other model is right."""
    return HeldOut(
        example_ids=[row["example_id"] for row in rows],
        texts=[row["messages"][1]["content"] for row in rows],
        wrong=[row["wrong"] for row in rows],
        other_right=[other(row) for row in rows],
    )


SUBJECT = Subject(
    task="reconcile",
    task_digest="0" * 64,
    adapter="reconcile",
    base_model="tiny",
    student="demo-1",
    student_usd=0.02,
    other_usd=1.5,
)


def learned(
    rows: list[Row],
    *,
    wish: Wish = Wish(),  # noqa: B008 - frozen
    subject: Subject = SUBJECT,
    more: Logged | None = None,
    other: Callable[[Row], bool | None] = lambda row: True,
) -> Row:
    """What `routing.json` would hold."""
    return route(
        held(rows, other=other), more or Logged(), subject=subject, wish=wish, samples=300, seed=17
    )


EASY, HARD = (
    next(row["messages"] for row in questions(200, seed=11) if row["hard"] is hard)
    for hard in (False, True)
)


def predictor_of(adapter: str, *, base_model: str) -> Predictor:
    """What says how hard a prompt is to `adapter`; it can be read off these."""
    return Predictor(
        scorer=Scorer(Model.model_validate(learned(questions(500, seed=1))["model"])),
        threshold=0.25,
        task="reconcile",
        task_digest="0" * 64,
        adapter=adapter,
        base_model=base_model,
        reason="",
    )
