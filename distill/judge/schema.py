"""The one strict JSON schema of a judge's answer, and reading an answer back.

The schema is built from the task's rubric, so every judge of a task answers the same object:
dimension -> reasoning, issues, score, confidence.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeGuard

from distill.surrogates import without_halves

MAX_ISSUES = 5
MAX_TAG_CHARS = 48
SHOWN_CHARS = 200


class UnreadableAnswer(ValueError):
    """A judge's answer that is no verdict; the message says why and shows how it begins."""

    def __init__(self, problem: str, text: str):
        """`text` is what the judge wrote."""
        beginning = " ".join(text.split())[:SHOWN_CHARS]
        super().__init__(f"{problem}; it begins: {beginning!r}")


@dataclass(frozen=True)
class Score:
    """What a judge says of one dimension."""

    score: float
    """0.0 to 1.0."""
    confidence: float | None
    """0.0 to 1.0; `None` when the judge did not say."""
    reasoning: str
    issues: tuple[str, ...]
    """Short kebab-case tags, such as `missing-edge-case`; each once."""


def verdict_schema(rubric: Mapping[str, str]) -> dict[str, Any]:
    """JSON Schema of an answer with every dimension of `rubric` (dimension -> what to look at).

    It stays within what providers accept as a strict schema: every property is required and no
    other is allowed.
    """
    return _object({name: _dimension(text) for name, text in rubric.items()})


def response_format(schema: dict[str, Any], *, name: str, strict: bool) -> dict[str, Any]:
    """`response_format` of a chat completion: the schema, or just "some JSON object"."""
    if not strict:
        return {"type": "json_object"}
    return {
        "type": "json_schema",
        "json_schema": {"name": name, "strict": True, "schema": schema},
    }


def read_verdict(text: str, rubric: Mapping[str, str]) -> dict[str, Score]:
    """Read a judge's answer: dimension -> score, for the dimensions that it scored.

    The object may stand in a code fence or after prose. Prose alone, half a JSON, two different
    verdicts, or any score that is no number from 0 to 1 is an UnreadableAnswer: a judge that used
    another scale once is not to be believed in the same answer's other scores. What only explains
    a score (reasoning, issues, confidence) may be missing.
    """
    answer = extract_object(
        text, lambda found: any(isinstance(found.get(name), dict) for name in rubric)
    )
    scores = {}
    for name in rubric:
        entry = answer.get(name)
        if entry is None:
            continue
        score = entry.get("score") if isinstance(entry, dict) else None
        if not is_share(score):
            raise UnreadableAnswer(f"no score from 0 to 1 for {name}: {entry!r:.80}", text)
        confidence = entry.get("confidence")
        scores[name] = Score(
            score=float(score),
            confidence=float(confidence) if is_share(confidence) else None,
            reasoning=without_halves(str(entry.get("reasoning") or "")),
            issues=issue_tags(entry.get("issues")),
        )
    return scores


def extract_object(text: str, wanted: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
    """Return the one JSON object in `text` that is `wanted`, wherever it stands.

    UnreadableAnswer when there is none, or when there are two that differ.
    """
    found = [value for value in _objects(text) if wanted(value)]
    if not found:
        problem = "half a JSON object or another one" if "{" in text else "prose without JSON"
        raise UnreadableAnswer(problem if text.strip() else "an empty answer", text)
    if any(value != found[0] for value in found):
        raise UnreadableAnswer(f"{len(found)} JSON objects that differ", text)
    return found[0]


def is_share(value: Any) -> TypeGuard[float]:
    """Whether a value is a number from 0 to 1 (NaN and booleans are not)."""
    return isinstance(value, (int, float)) and not isinstance(value, bool) and 0 <= value <= 1


def issue_tags(value: Any) -> tuple[str, ...]:
    """Return a list of words as kebab-case tags, each once, in order; anything else gives none."""
    if not isinstance(value, (list, tuple)):
        return ()
    tags = [re.sub(r"[^a-z0-9]+", "-", str(item).lower()).strip("-") for item in value]
    short = [tag[:MAX_TAG_CHARS].strip("-") for tag in tags if tag]
    return tuple(dict.fromkeys(short))[:MAX_ISSUES]


def _dimension(text: str) -> dict[str, Any]:
    # Models write the properties in this order: what is found comes before what it is worth.
    return {
        "description": text,
        **_object(
            {
                "reasoning": {"type": "string", "description": "One or two sentences."},
                "issues": {
                    "type": "array",
                    "description": "Faults found, as short kebab-case tags such as "
                    "missing-edge-case; empty when there is none.",
                    "items": {"type": "string", "pattern": "^[a-z0-9]+(-[a-z0-9]+)*$"},
                    "maxItems": MAX_ISSUES,
                },
                "score": {
                    "type": "number",
                    "description": "0.0 useless, 1.0 flawless.",
                    "minimum": 0,
                    "maximum": 1,
                },
                "confidence": {
                    "type": "number",
                    "description": "How sure you are of the score.",
                    "minimum": 0,
                    "maximum": 1,
                },
            }
        ),
    }


def _object(properties: dict[str, Any]) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """JSON objects in `text`; one that is not closed gives the objects inside it."""
    decoder = json.JSONDecoder()
    start = text.find("{")
    while start >= 0:
        try:
            value, end = decoder.raw_decode(text, start)
        except (ValueError, RecursionError):
            end = start + 1
        else:
            yield value
        start = text.find("{", end)
