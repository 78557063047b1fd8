"""The checklist's items on what must come out, and on when it counts as right."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from cluster.errors import ConfigError
from distill.tasks.checklist import Evidence, Item
from distill.tasks.complexity import OutputField, literal_text, output_fields
from distill.tasks.rules_of_thumb import rules_of_thumb
from distill.tasks.spec import Comparison
from distill.tasks.task import Task


def output_items(evidence: Evidence) -> Iterator[Item]:
    """Grade what must come out: the form of an answer."""
    task = evidence.task
    fields = output_fields(task)
    question = "Is the form of an answer fixed?"
    if task.spec.output.format == "text":
        yield Item(
            "output.format",
            question,
            "warn",
            'format "text": anything that is not empty is valid',
            'use format = "json" with a schema, or "sections", if the answer has parts',
        )
    elif not fields:
        yield Item(
            "output.format",
            question,
            "fail",
            "the schema has no properties: any object is valid",
            "list the fields under output.json_schema.properties; use enum for known values",
        )
    else:
        shown = ", ".join(f"{f.name} ({_kind(f)})" for f in fields)
        yield Item("output.format", question, "pass", f"{task.spec.output.format}: {shown}")
    if task.spec.output.format == "json" and fields:
        yield _strict(task, fields)
    if task.spec.output.format != "text" and fields:
        yield _named_in_prompt(task, fields)


def _strict(task: Task, fields: Sequence[OutputField]) -> Item:
    question = "Does the schema refuse what is missing or invented?"
    never = _never(task.schema)
    if never:
        path, known = never
        return Item(
            "output.strict",
            question,
            "fail",
            f"{path} is required, but no property: no answer is ever valid",
            f"required may name {', '.join(known)}, or add {path} to the properties",
        )
    optional = [f.name for f in fields if not f.required]
    open_ended = task.schema.get("additionalProperties", True) is not False
    if not optional and not open_ended:
        return Item("output.strict", question, "pass", "all required, none added")
    found = [f"not required: {', '.join(optional)}"] * bool(optional)
    found += ["further fields are allowed"] * open_ended
    advice = ["required = [every field]"] * bool(optional)
    advice += ["additionalProperties = false"] * open_ended
    return Item("output.strict", question, "warn", "; ".join(found), "add " + " and ".join(advice))


def _never(schema: Any) -> tuple[str, list[str]] | None:
    """Return the path of a field that an object must and must not have, and those it may have."""
    if not isinstance(schema, dict):
        return None
    properties = schema.get("properties", {})
    closed = schema.get("additionalProperties") is False and not schema.get("patternProperties")
    for name in schema.get("required", ()):
        if name not in properties:
            if closed:
                return name, list(properties)
            continue
        inside = _never(properties[name])
        if inside:
            return f"{name}.{inside[0]}", inside[1]
    return None


def _named_in_prompt(task: Task, fields: Sequence[OutputField]) -> Item:
    question = "Does the prompt name every field of the answer?"
    text = literal_text(task).casefold()
    unnamed = [f.name for f in fields if f.name.casefold() not in text]
    if not unnamed:
        return Item("output.named", question, "pass", f"all {len(fields)}")
    return Item(
        "output.named",
        question,
        "warn",
        f"not in the templates: {', '.join(unnamed)}",
        "name them, with what each may hold, in prompt.system",
    )


def success_items(evidence: Evidence) -> Iterator[Item]:
    """Grade how an answer is found to be right."""
    task = evidence.task
    spec = task.spec
    question = "Can an answer be shown to be right?"
    name = "success.criterion"
    checks = [f"score: {', '.join(spec.score.fields)}"] * bool(spec.score.fields)
    checks += [f"verify: {spec.verify}"] * bool(spec.verify)
    problem = _verifier_problem(task)
    if problem:
        yield Item(name, question, "fail", problem, "mend the file, or remove `verify`")
    elif checks:
        yield Item(name, question, "pass", "; ".join(checks))
    elif spec.rubric:
        yield Item(
            name,
            question,
            "warn",
            f"only judged: {', '.join(spec.rubric)}",
            "add [score.fields] or a verify function for whatever can be checked: judges drift",
        )
    else:
        yield Item(
            name,
            question,
            "fail",
            "no score, no verify, no rubric",
            "add [score.fields] for what must agree, verify = module:function, or a [rubric]",
        )
    if spec.score.fields:
        yield _comparisons(task)
    yield _reference(evidence)
    yield _coverage(task)


def _verifier_problem(task: Task) -> str:
    try:
        task.load_verify()
    except ConfigError as error:
        return str(error)
    return ""


def _comparisons(task: Task) -> Item:
    question = "Does each comparison fit its field?"
    name = "success.comparison"
    fields = {f.name: f for f in output_fields(task)}
    missing = [n for n in task.spec.score.fields if n not in fields]
    if missing:
        return Item(
            name,
            question,
            "fail",
            f"no such part of the answer: {', '.join(missing)}",
            f"score.fields may name {', '.join(fields)}",
        )
    odd = {
        f"{n} ({_kind(fields[n])}) is compared as {comparison}": better
        for n, comparison in task.spec.score.fields.items()
        if (better := _better(fields[n], comparison))
    }
    if odd:
        return Item(name, question, "warn", "; ".join(odd), "; ".join(dict.fromkeys(odd.values())))
    shown = ", ".join(f"{n} {comparison}" for n, comparison in task.spec.score.fields.items())
    return Item(name, question, "pass", shown)


def _better(output: OutputField, comparison: Comparison) -> str:
    """Return what to write instead, or nothing when the comparison fits."""
    if output.repeated and comparison != "set":
        return 'compare a list as "set", unless its order matters'
    if output.kind == "number" and comparison in ("casefold", "set"):
        return 'compare a number as "number" with a tolerance'
    if output.kind in ("choice", "text") and comparison in ("number", "set"):
        return 'compare words as "exact" or "casefold"'
    limit = rules_of_thumb().reading.short_text_chars
    if output.kind == "text" and (output.max_chars or limit + 1) > limit:
        return "free text rarely agrees to the letter: give it maxLength or enum, or judge it"
    return ""


def _reference(evidence: Evidence) -> Item:
    question = "What is an answer compared with?"
    name = "success.reference"
    never = [
        (row["prompt_id"] or row["example_id"], problem)
        for row in evidence.rows
        if row["reference"] and (problem := _out_of_reach(evidence.task, row["reference"]))
    ]
    if never:
        prompt, problem = never[0]
        found = f"{len(never)} of {len(evidence.rows)} references agree with no valid answer, "
        found += f"as that of prompt {prompt}: {problem}"
        advice = "mend `reference` in these records: an answer must be able to agree with it"
        return Item(name, question, "fail", found, advice)
    if evidence.task.spec.verify:
        return Item(name, question, "pass", f"{evidence.task.spec.verify} decides by execution")
    known = sum(bool(row["reference"]) for row in evidence.rows)
    found = f"{known} of {len(evidence.rows)} prompts looked at have a reference"
    if known and known == len(evidence.rows):
        return Item(name, question, "pass", found)
    return Item(
        name,
        question,
        "warn",
        f"{found}; without one, the teacher's answer counts as right",
        "add `reference` at least to prompts of the test split, checked by a person",
    )


def _out_of_reach(task: Task, text: str) -> str:
    """Say why no valid answer agrees with a reference (JSON); empty when one can."""
    reference: Mapping[str, Any] = json.loads(text)
    for output in output_fields(task):
        comparison = task.spec.score.fields.get(output.name)
        if comparison is None:
            continue
        if output.name not in reference:
            if output.required:
                return f"it has no {output.name}"
            continue
        problem = _unmatched(task, output, reference[output.name], comparison)
        if problem:
            return f"{output.name}: {problem}"
    return ""


def _unmatched(task: Task, output: OutputField, value: Any, comparison: Comparison) -> str:
    if comparison == "number":
        try:
            float(value)
        except (TypeError, ValueError):
            return f"{value!r} is no number"
        return ""
    if comparison == "casefold":
        same = {choice.strip().casefold() for choice in output.choices}
        if not same or str(value).strip().casefold() in same:
            return ""
    if comparison == "set":
        return ""  # the items may stand in any form and order
    return task.field_problem(output.name, value)


def _coverage(task: Task) -> Item:
    question = "Is every part of the answer checked by something?"
    name = "success.coverage"
    unscored = [f.name for f in output_fields(task) if f.name not in task.spec.score.fields]
    if not unscored and output_fields(task):
        return Item(name, question, "pass", "all fields are scored")
    by = ["verify"] * bool(task.spec.verify)
    by += [f"rubric ({', '.join(task.spec.rubric)})"] * bool(task.spec.rubric)
    shown = ", ".join(unscored) or "nothing is scored"
    if by:
        return Item(name, question, "pass", f"not scored: {shown}; left to {' and '.join(by)}")
    advice = "add a [rubric] dimension for them and a judge in [jury], or a verify function"
    return Item(name, question, "warn", f"nothing looks at: {shown}", advice)


def _kind(output: OutputField) -> str:
    if output.kind == "choice":
        return f"one of {len(output.choices)}"
    limit = f" up to {output.max_chars}" if output.max_chars else ""
    return f"{'list' if output.repeated else output.kind}{limit}"
