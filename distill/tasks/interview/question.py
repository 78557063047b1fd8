"""Read an interview question back from the sections of an answer.

The format is the one that the prompt in task.toml asks for, and no other:

- Title: one line.
- Function signature: one Python `def` without a body, defaults, `*` or `/`.
- Constraints and Follow-ups: list items that begin with `- ` (`* ` and `1. ` are read as well).
- Examples: an `Input:` line, an `Output:` line and perhaps an `Explanation:` each; a line such as
  `Example 1` may stand above. Input gives every parameter as `name = value, …`; the values are
  Python literals that JSON can hold.
"""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

MIN_CONSTRAINTS = 2
MIN_EXAMPLES = 3
MIN_FOLLOW_UPS = 2
SHOWN_CHARS = 80

FENCE = re.compile(r"\A```(?:python)?[ \t]*\n(.*?)\n?```\Z", re.DOTALL)
ITEM = re.compile(r"\s*(?:[-*]|\d+[.)])\s+(\S.*)")
EXAMPLE_TITLE = re.compile(r"Example\s+\d+:?")
FIELD = re.compile(r"(Input|Output|Explanation):\s*(.*)")


class FormError(ValueError):
    """A question that cannot be read; `problems` has a sentence for each reason."""

    def __init__(self, problems: list[str]):
        """Keep all problems; the message is all of them."""
        super().__init__(" ".join(problems))
        self.problems = problems


@dataclass(frozen=True)
class Signature:
    """A function's name and its parameters, in order."""

    function: str
    parameters: tuple[str, ...]


@dataclass(frozen=True)
class Example:
    """One example: arguments in the order of the signature, and the result."""

    arguments: list[Any]
    output: Any
    explanation: str = ""


@dataclass(frozen=True)
class Question:
    """A question as a program sees it."""

    title: str
    statement: str
    signature: Signature
    constraints: list[str]
    examples: list[Example]
    follow_ups: list[str]


def read_question(sections: Mapping[str, str]) -> Question:
    """Read the sections that `Task.parse` returns. FormError lists all that is wrong with them."""
    problems: list[str] = []
    title = sections["Title"].strip()
    if "\n" in title:
        problems.append("Title: it must be one line.")
    signature = Signature("", ())
    examples: list[Example] = []
    try:
        signature = read_signature(sections["Function signature"])
    except FormError as error:
        problems += error.problems
    else:
        # Without a signature no input can be read.
        examples = _examples(sections["Examples"], signature, problems)
    question = Question(
        title=title,
        statement=sections["Problem statement"].strip(),
        signature=signature,
        constraints=_items("Constraints", sections, problems, least=MIN_CONSTRAINTS),
        examples=examples,
        follow_ups=_items("Follow-ups", sections, problems, least=MIN_FOLLOW_UPS),
    )
    if problems:
        raise FormError(problems)
    return question


def read_signature(text: str) -> Signature:
    """Read `def name(parameter: type, …) -> type:`; FormError says what else is there."""
    text = text.strip()
    fenced = FENCE.match(text)
    source = (fenced[1] if fenced else text.strip("`")).strip()
    try:
        body = ast.parse(source + " ..." * source.endswith(":")).body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise FormError([f"Function signature: {_cut(source)} is not Python."]) from None
    if len(body) != 1 or not isinstance(body[0], ast.FunctionDef):
        raise FormError(["Function signature: there must be one def line and nothing else."])
    function = body[0]
    arguments = function.args
    if not all(_is_empty(statement) for statement in function.body):
        raise FormError(["Function signature: the function must have no body."])
    if arguments.vararg or arguments.kwarg or arguments.kwonlyargs or arguments.posonlyargs:
        raise FormError(["Function signature: the parameters must be plain, without * and /."])
    if arguments.defaults or function.decorator_list:
        raise FormError(["Function signature: defaults and decorators are not allowed."])
    if not arguments.args:
        raise FormError(["Function signature: the function has no parameter."])
    return Signature(function.name, tuple(argument.arg for argument in arguments.args))


def _is_empty(statement: ast.stmt) -> bool:
    if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
        return isinstance(statement.value.value, str) or statement.value.value is ...
    return isinstance(statement, ast.Pass)


def _items(name: str, sections: Mapping[str, str], problems: list[str], *, least: int) -> list[str]:
    items: list[str] = []
    for line in sections[name].splitlines():
        found = ITEM.fullmatch(line)
        if found:
            items.append(found[1].strip())
        elif items and line[:1].isspace():
            items[-1] += f" {line.strip()}"
        elif line.strip():
            problems.append(f"{name}: {_cut(line)} is no list item; begin each with '- '.")
    if len(items) < least:
        problems.append(f"{name}: {_count(len(items), 'item')}, at least {least} are needed.")
    return items


def _examples(text: str, signature: Signature, problems: list[str]) -> list[Example]:
    """Read the examples that can be read, and add a sentence for every other one."""
    found: list[dict[str, str]] = []
    last = ""
    for line in filter(None, map(str.strip, text.splitlines())):
        field = FIELD.fullmatch(line)
        if field:
            last = field[1]
            if last == "Input" or not found:
                found.append({})
            if last in found[-1]:
                problems.append(f"Example {len(found)}: {last} stands twice.")
            found[-1][last] = field[2]
        elif EXAMPLE_TITLE.fullmatch(line):
            last = ""
        elif last == "Explanation":
            found[-1][last] += f" {line}"
        else:
            problems.append(
                f"Examples: {_cut(line)} is not Input:, Output: or Explanation: on one line."
            )
    if len(found) < MIN_EXAMPLES:
        count = _count(len(found), "example")
        problems.append(f"Examples: {count}, at least {MIN_EXAMPLES} are needed.")
    examples: list[Example] = []
    numbers: dict[str, int] = {}
    for number, fields in enumerate(found, start=1):
        try:
            example = _example(fields, signature)
        except FormError as error:
            problems += [f"Example {number}: {problem}" for problem in error.problems]
            continue
        twin = numbers.setdefault(repr(example.arguments), number)
        if twin != number:
            problems.append(f"Example {number}: it has the same input as example {twin}.")
        examples.append(example)
    return examples


def _example(fields: Mapping[str, str], signature: Signature) -> Example:
    missing = [name for name in ("Input", "Output") if not fields.get(name)]
    if missing:
        raise FormError([f"{' and '.join(missing)} must follow on one line."])
    inputs = _inputs(fields["Input"])
    if set(inputs) != set(signature.parameters):
        raise FormError(
            [f"Input names {', '.join(inputs)}, the signature {', '.join(signature.parameters)}."]
        )
    values = {**inputs, "Output": _literal(fields["Output"], "Output")}
    unfit = {name: kind for name, value in values.items() if (kind := _unfit(value))}
    if unfit:
        raise FormError(
            [f"{name} holds {kind}, which JSON does not." for name, kind in unfit.items()]
        )
    return Example(
        [inputs[name] for name in signature.parameters],
        values["Output"],
        fields.get("Explanation", ""),
    )


def _inputs(text: str) -> dict[str, Any]:
    """Read `name = value, name = value` with Python's own grammar, without executing anything."""
    try:
        call = ast.parse(f"f({text})", mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        call = None
    if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
        raise FormError([f"Input {_cut(text)} is not name = value, name = value."])
    inputs = {}
    for keyword in call.keywords:
        if keyword.arg is None:
            raise FormError([f"Input {_cut(text)} is not name = value, name = value."])
        inputs[keyword.arg] = _literal(keyword.value, keyword.arg)
    return inputs


def _literal(value: str | ast.expr, name: str) -> Any:
    try:
        return ast.literal_eval(value)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        text = value if isinstance(value, str) else ast.unparse(value)
        raise FormError([f"{name}: {_cut(text)} is no Python literal."]) from None


def _unfit(value: Any) -> str:
    """Return what of a value JSON cannot hold, or nothing."""
    if isinstance(value, dict):
        odd = [f"the key {key!r}" for key in value if not isinstance(key, str)]
        return next(filter(None, [*odd, *map(_unfit, value.values())]), "")
    if isinstance(value, list):
        return next(filter(None, map(_unfit, value)), "")
    if isinstance(value, bool | int | str) or (isinstance(value, float) and math.isfinite(value)):
        return ""
    return f"{value!r:.40} ({type(value).__name__})"


def _cut(text: str) -> str:
    return repr(text if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]}…")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + "s" * (number != 1)
