"""The pool that a model's new prompts must get into: readable, complete and new. Pure."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import ConfigError
from distill.curate.refusals import refusal
from distill.prompts.config import Grown
from distill.surrogates import holds_half
from distill.tasks.task import Task

WORD = re.compile(r"\w+")
# What a model says about its work instead of doing it; the paper drops such prompts as well.
TALKS_ABOUT_ITSELF = re.compile(
    r"(given|original|rewritten|evolved|created|new) prompt|\bas an ai\b", re.IGNORECASE
)
LEAST_WORDS = 3

Variables = dict[str, Any]


@dataclass
class Pool:
    """Prompts of a task by their variables; refuses what is broken or known.

    `known` are prompts that nothing new may repeat; the pool's own are among them.
    """

    task: Task
    config: Grown
    seeds: list[Variables]
    held_out: list[Variables]
    grown: list[Variables] = field(default_factory=list)
    refused: Counter[str] = field(default_factory=Counter)

    def __post_init__(self) -> None:
        """Settle the fields, and index what is known."""
        self.fields = _fields(self.seeds, self.config, task=self.task)
        self._shape = {name: type(value) for name, value in self.seeds[0].items()}
        self._known = [self._tokens(variables) for variables in (*self.seeds, *self.held_out)]

    def add(self, candidate: Any, *, parent: Variables | None = None) -> bool:
        """Take a prompt in, or count why not; returns whether it is in.

        With a `parent` the fields that are not text are its, and only what it says must be new.
        """
        if parent is not None and isinstance(candidate, dict):
            candidate = {**parent, **{k: v for k, v in candidate.items() if k in self.fields}}
        problem = self._problem(candidate)
        if problem:
            self.refused[problem] += 1
            return False
        self.grown.append(candidate)
        self._known.append(self._tokens(candidate))
        return True

    def text(self, variables: Variables) -> str:
        """The text of a prompt's fields."""
        return "\n".join(str(variables.get(name, "")) for name in self.fields)

    def _problem(self, candidate: Any) -> str:
        if not isinstance(candidate, dict):
            return "unreadable"
        if candidate.keys() != self._shape.keys():
            return "other fields"
        for name, kind in self._shape.items():
            value = candidate[name]
            same = isinstance(value, (int, float)) if kind in (int, float) else type(value) is kind
            if not same:
                return "other types"
        text = self.text(candidate)
        words = WORD.findall(text)
        if len(words) < LEAST_WORDS:
            return "too short"
        if len(words) > self.config.max_words:
            return "too long"
        if refusal(text):
            return "refusal"
        if TALKS_ABOUT_ITSELF.search(text):
            return "talks about itself"
        if self._similar(self._tokens(candidate)):
            return "too similar"
        return ""

    def _tokens(self, variables: Variables) -> list[str]:
        return WORD.findall(self.text(variables).casefold())

    def _similar(self, tokens: Sequence[str]) -> bool:
        """Whether a known prompt's ROUGE-L F1 is above the limit.

        The similarity by insertions and deletions is 2 · LCS ÷ (m + n), which is ROUGE-L's F1
        (Lin 2004).
        """
        from rapidfuzz import process
        from rapidfuzz.distance import Indel

        limit = self.config.max_similarity
        nearest = process.extractOne(
            tokens, self._known, scorer=Indel.normalized_similarity, score_cutoff=limit
        )
        return nearest is not None and nearest[1] > limit


def read_objects(text: str) -> list[Any]:
    """Return the JSON objects of a model's answer: a list, one object, or one a line.

    What cannot be read is an entry that is no object, so that it is counted.
    """
    fenced = re.search(r"```(?:json)?\s*\n(.*?)```", text, re.DOTALL)
    body = (fenced[1] if fenced else text).strip()
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        lines = [line.strip().rstrip(",") for line in body.splitlines()]
        found = [_object(line) for line in lines if line not in ("", "[", "]")] or [None]
    else:
        found = value if isinstance(value, list) else [value]
    return [None if holds_half(value, source=body) else value for value in found]


def _object(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        return None


def _fields(seeds: Iterable[Variables], config: Grown, *, task: Task) -> tuple[str, ...]:
    first = next(iter(seeds), {})
    texts = tuple(name for name, value in first.items() if isinstance(value, str))
    unknown = sorted(set(config.fields) - set(texts))
    if unknown or not texts:
        raise ConfigError(
            f"prompts.make.fields {list(config.fields)}: the prompts of {task.name} have "
            f"{list(texts) or 'no'} variables that are text; name one of them, or give the task a "
            "prompt with text to write."
        )
    return config.fields or texts
