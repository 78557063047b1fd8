"""A prompt's variables, read back from what was asked: a log has messages, `verify` wants them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from cluster.errors import DataError
from distill.records import Message
from distill.tasks.task import Task


def read_variables(
    task: Task, messages: Sequence[Message], *, given: str = ""
) -> dict[str, Any] | None:
    """Return the variables that render to exactly these messages, or None.

    `given` is what the request said they are, as JSON. Otherwise the task's `prompts.reader` finds
    them; without one, templates that hold nothing but text and plain `{{ names }}` are matched, and
    the values are then strings.
    """
    said = _json_object(given)
    if said is not None and _renders(task, said, messages):
        return said
    reader = task.spec.prompts.reader
    if reader:
        found = task.function(reader)([dict(message) for message in messages])
    else:
        found = _matched(task, messages)
    return found if found is not None and _renders(task, found, messages) else None


def _json_object(text: str) -> dict[str, Any] | None:
    try:
        value = json.loads(text or "null")
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def _renders(task: Task, variables: dict[str, Any], messages: Sequence[Message]) -> bool:
    try:
        again = task.messages(variables)
    except DataError:  # what a client calls variables may be anything
        return False
    return [_plain(m) for m in again] == [_plain(m) for m in messages]


def _plain(message: Message) -> tuple[str, str]:
    return message["role"], message["content"].strip()


def _matched(task: Task, messages: Sequence[Message]) -> dict[str, Any] | None:
    prompt = task.spec.prompt
    templates = [text for text in (prompt.system, prompt.user) if text]
    if len(templates) != len(messages):
        return None
    found: dict[str, Any] = {}
    for template, message in zip(templates, messages, strict=True):
        parts = _parts(template)
        if parts is None:
            return None
        names = list(dict.fromkeys(part for kind, part in parts if kind == "name"))
        match = re.fullmatch(_pattern(parts, names), message["content"].strip(), re.DOTALL)
        if match is None:
            return None
        for number, name in enumerate(names):
            _put(found, name, match[f"v{number}"])
    return found


def _parts(template: str) -> list[tuple[str, str]] | None:
    """Return a template as ("text", …) and ("name", path); None if anything else is in it."""
    from jinja2 import Environment, nodes

    body = Environment(keep_trailing_newline=False).parse(template.strip()).body
    parts: list[tuple[str, str]] = []
    for output in body:
        if not isinstance(output, nodes.Output):
            return None
        for node in output.nodes:
            path = _path(node)
            if isinstance(node, nodes.TemplateData):
                parts.append(("text", node.data))
            elif path is not None:
                parts.append(("name", path))
            else:
                return None
    return parts


def _path(node: Any) -> str | None:
    from jinja2 import nodes

    if isinstance(node, nodes.Name):
        return str(node.name)
    if isinstance(node, nodes.Getattr):
        inner = _path(node.node)
        return None if inner is None else f"{inner}.{node.attr}"
    return None


def _pattern(parts: Sequence[tuple[str, str]], names: Sequence[str]) -> str:
    seen: set[str] = set()
    pattern = ""
    for kind, part in parts:
        if kind == "text":
            pattern += re.escape(part)
            continue
        group = f"v{names.index(part)}"
        pattern += f"(?P={group})" if part in seen else f"(?P<{group}>.*?)"
        seen.add(part)
    return pattern


def _put(variables: dict[str, Any], path: str, value: str) -> None:
    *parents, name = path.split(".")
    for parent in parents:
        variables = variables.setdefault(parent, {})
    variables[name] = value
