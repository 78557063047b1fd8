"""How hard a task is, read from its definition: format, fields, lengths, reasoning, code.

The levels 1 to 4 and what follows from them are the field's (`[[level]]` of `rules_of_thumb.toml`);
the thresholds that lead from a definition to a level are our own (`[reading]`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from cluster.storage import canonical_json
from distill.tasks.rules_of_thumb import rules_of_thumb
from distill.tasks.spec import Category
from distill.tasks.task import Task

Kind = Literal["choice", "number", "text", "list", "object"]
# From simple to hard, to take the hardest branch of a schema that allows several.
KINDS: tuple[Kind, ...] = ("choice", "number", "text", "list", "object")
FORMATTED_CHARS = 40  # a date, an e-mail address, a pattern: a label, whatever its exact length

CODE = frozenset({"code", "sql", "patch", "diff", "script", "program", "implementation"})
REASONING = frozenset(
    {"reasoning", "steps", "derivation", "thinking", "solution", "working", "plan"}
)
PROOF = frozenset({"proof", "theorem", "lemma"})
HARDEST_FIRST: tuple[Category, ...] = ("proofs", "dialogue", "code", "reasoning")
STEP_BY_STEP = re.compile(r"step[ -]by[ -]step|chain[ -]of[ -]thought", re.IGNORECASE)
JINJA = re.compile(r"\{\{.*?\}\}|\{%.*?%\}|\{#.*?#\}", re.DOTALL)


@dataclass(frozen=True)
class OutputField:
    """One field, section or the text of an answer."""

    name: str
    kind: Kind
    required: bool = True
    choices: tuple[str, ...] = ()
    max_chars: int | None = None
    """Longest text that the schema allows; `None`: no limit."""
    items: tuple[str, ...] = ()
    """Property names of an object, or of a list's objects."""
    repeated: bool = False
    """Whether it is a list."""


@dataclass(frozen=True)
class Finding:
    """Something in the definition that sets a lower bound on the level."""

    level: int
    text: str


@dataclass(frozen=True)
class Complexity:
    """How hard the task is, and why."""

    level: int
    """1 simple, 2 moderate, 3 complex, 4 very complex."""
    name: str
    reasons: list[Finding]
    """The highest first."""
    level_of_definition: int
    """The level before a stated category settled it."""
    category: Category | None
    """As stated, or as the definition reads; `None`: neither."""
    category_stated: bool
    answer_tokens: float | None
    """Estimated tokens of a typical answer; `None`: no answer is known."""


def read_complexity(
    task: Task,
    *,
    rows: Sequence[Mapping[str, Any]],
    answers: Sequence[str],
    category: Category | None,
) -> Complexity:
    """Work out the level of `task`.

    `rows` are prompts as `distill.prompts.split.build_rows` makes them and `answers` are recorded
    answers; both may be empty, and then a text without a limit counts as long. A stated `category`
    settles the level, or its range where the category has one.
    """
    rules = rules_of_thumb()
    texts = _texts(rows, answers)
    tokens = median(map(len, texts)) / rules.reading.chars_per_token if texts else None
    long = _long_fields(task, rows=rows, answers=answers)
    found = list(_findings(task, long=long, rows=rows, texts=texts, tokens=tokens))
    level_read = max((finding.level for finding, _ in found), default=1)
    category_read = _category(task, level=level_read, kinds=[kind for _, kind in found])
    reasons = sorted((finding for finding, _ in found), key=lambda f: -f.level)
    if not reasons:
        reasons = [Finding(1, "every field is a choice, a number or a short text")]
    level = level_read
    if category is not None:
        low, high = rules.for_category(category).levels
        level = min(max(level_read, low), high)
        reasons.insert(0, Finding(level, f'deployment.category = "{category}"'))
    return Complexity(
        level=level,
        name=rules.for_level(level).name,
        reasons=reasons,
        level_of_definition=level_read,
        category=category or category_read,
        category_stated=category is not None,
        answer_tokens=tokens,
    )


def output_fields(task: Task) -> list[OutputField]:
    """Return what an answer consists of: schema properties, sections, or one text."""
    output = task.spec.output
    if output.format == "text":
        return [OutputField("text", "text")]
    if output.format == "sections":
        return [OutputField(name, "text") for name in output.sections]
    required = set(task.schema.get("required", ()))
    return [
        _field(name, schema, root=task.schema, required=name in required)
        for name, schema in task.schema.get("properties", {}).items()
    ]


def literal_text(task: Task) -> str:
    """Return what the prompt says whatever the input is: the templates without their Jinja."""
    return JINJA.sub(" ", f"{task.spec.prompt.system}\n{task.spec.prompt.user}")


def _findings(
    task: Task,
    *,
    long: Sequence[OutputField],
    rows: Sequence[Mapping[str, Any]],
    texts: Sequence[str],
    tokens: float | None,
) -> Iterator[tuple[Finding, Category | None]]:
    """Yield what makes the task harder than level 1, and the category that it points at."""
    reading = rules_of_thumb().reading
    fields = output_fields(task)
    if long:
        yield Finding(2, f"free text of more than a sentence or two: {_names(long)}"), None
    nested = [field for field in fields if field.kind == "object"]
    if nested:
        yield Finding(2, f"nested fields: {_names(nested)}"), None
    scored = len(task.spec.score.fields)
    if scored > reading.many_scored_fields:
        yield Finding(2, f"{scored} fields must be right at once"), None
    if tokens is not None and tokens > reading.moderate_answer_tokens:
        level = 3 if tokens > reading.complex_answer_tokens else 2
        yield Finding(level, f"a typical answer has about {tokens:,.0f} tokens"), None
    # A JSON answer may stand in a code fence of its own; that is no code.
    fences = texts if task.spec.output.format != "json" else []
    yield from _code(fields, long=long, texts=fences, tokens=tokens)
    lists = [field for field in fields if field.repeated]
    steps = [field for field in (*long, *lists) if _words(field.name) & REASONING]
    if steps:
        yield Finding(3, f"the answer reasons in {_names(steps)}"), "reasoning"
    elif STEP_BY_STEP.search(literal_text(task)):
        yield Finding(3, "the prompt asks for reasoning step by step"), "reasoning"
    if turns := _dialogue_variable(task, rows):
        yield Finding(3, f"the prompt holds a conversation: {turns}"), "dialogue"
    proofs = [field for field in long if _words(field.name) & PROOF]
    if proofs:
        yield Finding(4, f"the answer is a proof: {_names(proofs)}"), "proofs"


def _code(
    fields: Sequence[OutputField],
    *,
    long: Sequence[OutputField],
    texts: Sequence[str],
    tokens: float | None,
) -> Iterator[tuple[Finding, Category | None]]:
    files = [f for f in fields if f.repeated and {"path", "file", "filename"} & set(f.items)]
    if files:
        yield Finding(4, f"code in many files: {_names(files)}"), "code"
        return
    named = [field for field in long if _words(field.name) & CODE]
    fenced = sum("```" in text for text in texts)
    if not named and fenced * 2 <= len(texts):
        return
    where = _names(named) if named else f"{fenced} of {len(texts)} known answers"
    size = tokens is not None and tokens > rules_of_thumb().reading.complex_code_tokens
    yield Finding(3 if size else 2, f"{'long' if size else 'short'} code in {where}"), "code"


def _category(task: Task, *, level: int, kinds: Sequence[Category | None]) -> Category | None:
    """Return the hardest category that was found, or what level 1 JSON looks like."""
    for category in HARDEST_FIRST:
        if category in kinds:
            return category
    if level > 1 or task.spec.output.format != "json" or not task.spec.score.fields:
        return None
    scored = [field for field in output_fields(task) if field.name in task.spec.score.fields]
    return "classification" if all(f.kind == "choice" for f in scored) else "extraction"


def _long_fields(
    task: Task, *, rows: Sequence[Mapping[str, Any]], answers: Sequence[str]
) -> list[OutputField]:
    """Return the text fields that are longer than a label, by what is seen, or else by the schema.

    A text that the score compares literally is a label: nobody gets two sentences right to the
    letter. A text without limit, score and example counts as long.
    """
    limit = rules_of_thumb().reading.short_text_chars
    known = [parsed for answer in answers if (parsed := task.parse(answer).answer) is not None]
    known += [json.loads(row["reference"]) for row in rows if row["reference"]]

    def is_long(field: OutputField) -> bool:
        seen = [len(str(answer[field.name])) for answer in known if answer.get(field.name)]
        if seen:
            return median(seen) > limit
        if field.max_chars is not None:
            return field.max_chars > limit
        return field.name not in task.spec.score.fields

    return [field for field in output_fields(task) if field.kind == "text" and is_long(field)]


def _texts(rows: Sequence[Mapping[str, Any]], answers: Sequence[str]) -> list[str]:
    """Return the recorded answers; without any, the references, which may hold fewer fields."""
    if answers:
        return list(answers)
    references = [json.loads(row["reference"]) for row in rows if row["reference"]]
    return [str(r["text"]) if set(r) == {"text"} else canonical_json(r) for r in references]


def _dialogue_variable(task: Task, rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the variable that holds turns with roles in at least half of the prompts."""
    counts: dict[str, int] = {}
    for row in rows:
        for name, value in json.loads(row["variables"]).items():
            if isinstance(value, list) and value and all(_is_turn(turn) for turn in value):
                counts[name] = counts.get(name, 0) + 1
    templates = task.spec.prompt.system + task.spec.prompt.user
    return next((n for n, c in counts.items() if c * 2 >= len(rows) and n in templates), "")


def _is_turn(value: Any) -> bool:
    return isinstance(value, dict) and "role" in value and bool({"content", "text"} & set(value))


def _field(name: str, schema: Any, *, root: dict[str, Any], required: bool) -> OutputField:
    schema = _resolved(schema, root)
    if not isinstance(schema, dict):  # `true` is a schema too: anything goes
        return OutputField(name, "text", required)
    branches = [
        _field(name, branch, root=root, required=required)
        for branch in schema.get("anyOf") or schema.get("oneOf") or ()
        if _resolved(branch, root) != {"type": "null"}
    ]
    if branches:
        hardest = max(branches, key=lambda field: KINDS.index(field.kind))
        if hardest.kind != "choice":
            return hardest
        choices = tuple(choice for branch in branches for choice in branch.choices)
        return OutputField(name, "choice", required, choices)
    if "enum" in schema or "const" in schema:
        values = schema.get("enum", [schema.get("const")])
        return OutputField(name, "choice", required, tuple(map(str, values)))
    kinds = schema.get("type", "string")
    kind = next((k for k in kinds if k != "null"), "null") if isinstance(kinds, list) else kinds
    if kind == "boolean":
        return OutputField(name, "choice", required, ("true", "false"))
    if kind in ("number", "integer"):
        return OutputField(name, "number", required)
    if kind == "object":
        return OutputField(name, "object", required, items=tuple(schema.get("properties", ())))
    if kind == "array":
        item = _resolved(schema.get("items", {}), root)
        properties = tuple(item.get("properties", ())) if isinstance(item, dict) else ()
        return OutputField(
            name, "object" if properties else "list", required, items=properties, repeated=True
        )
    limit = FORMATTED_CHARS if {"format", "pattern"} & set(schema) else None
    return OutputField(name, "text", required, max_chars=schema.get("maxLength", limit))


def _resolved(schema: Any, root: dict[str, Any]) -> Any:
    """Follow `$ref` inside the same schema; a loop or a foreign reference is left as it is."""
    for _ in range(10):
        reference = schema.get("$ref", "") if isinstance(schema, dict) else ""
        if not reference.startswith("#/"):
            return schema
        target: Any = root
        for part in reference[2:].split("/"):
            target = target.get(part, {}) if isinstance(target, dict) else {}
        schema = target
    return schema


def _words(name: str) -> set[str]:
    return set(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()))


def _names(fields: Sequence[OutputField]) -> str:
    return ", ".join(dict.fromkeys(field.name for field in fields))
