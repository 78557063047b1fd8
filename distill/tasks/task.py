"""A loaded task: render a prompt, parse an answer, say whether it is right."""

from __future__ import annotations

import importlib.util
import json
import math
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from cluster.config import read_toml, validate
from cluster.errors import ConfigError, DataError
from cluster.storage import digest_of, folder_digests
from distill.evaluate.scoring import Scored
from distill.records import Message
from distill.surrogates import HALF, holds_half
from distill.tasks.spec import Comparison, TaskSpec, bundled_tasks
from distill.teach.reasoning import split_reasoning

FENCE = re.compile(r"^```(?:json)?\s*\n(.*?)\n?```$", re.DOTALL)
HEADING = re.compile(r"^#{1,6}[ \t]+(.+?)[ \t]*#*[ \t]*$", re.MULTILINE)


@dataclass(frozen=True)
class Parsed:
    """An answer read back: its fields, or why it could not be read."""

    answer: dict[str, Any] | None
    problem: str = ""


class Task:
    """A task folder. Loading it checks templates and schema, so that nothing is paid for a typo."""

    def __init__(self, folder: Path, spec: TaskSpec):
        """Use `load_task`, which reports problems by file."""
        self.folder = folder
        self.spec = spec
        self.name = spec.name
        self.schema = self._read_schema()
        self._system = _template(spec.prompt.system, field="prompt.system", folder=folder)
        self._user = _template(spec.prompt.user, field="prompt.user", folder=folder)
        self.headline = spec.score.headline or next(iter(spec.score.fields), "")

    @cached_property
    def digest(self) -> str:
        """SHA-256 over every file of the folder."""
        return digest_of(folder_digests(self.folder))

    def messages(self, variables: dict[str, Any]) -> list[Message]:
        """Render the templates; a variable that is missing is a DataError that names it."""
        from jinja2 import TemplateError

        try:
            system = self._system.render(variables).strip()
            user = self._user.render(variables).strip()
        except TemplateError as error:
            known = ", ".join(sorted(variables)) or "none"
            nulls = ", ".join(_nulls(variables))
            raise DataError(
                f"{self.folder}/task.toml: a prompt template cannot be filled: {error}; "
                f"the record has: {known}{f'; null in it: {nulls}' if nulls else ''}."
            ) from None
        opening = [{"role": "system", "content": system}] if system else []
        return [*opening, {"role": "user", "content": user}]

    def parse(self, completion: str) -> Parsed:
        """Read an answer. A JSON answer may stand in a code fence; nothing else may surround it.

        Reasoning in its tags before the answer is left out: a student of method `cot` writes it.
        """
        _, text = split_reasoning(completion)
        output = self.spec.output
        if output.format == "text":
            return Parsed({"text": text}) if text else Parsed(None, "empty")
        if output.format == "sections":
            return _parse_sections(text, output.sections)
        fenced = FENCE.match(text)
        try:
            return self._parse_json(fenced[1] if fenced else text)
        except RecursionError:
            return Parsed(None, "JSON, but nested too deeply")

    def _parse_json(self, text: str) -> Parsed:
        try:
            answer = json.loads(text)
        except ValueError as error:
            return Parsed(None, f"not JSON: {error}")
        if not isinstance(answer, dict):
            return Parsed(None, f"JSON, but a {type(answer).__name__} and no object")
        if holds_half(answer, source=text):
            return Parsed(None, f"JSON, but {HALF}")
        try:
            problem = next(iter(self._validator.iter_errors(answer)), None)
        except (OverflowError, ValueError) as error:
            # NaN, or a number beyond every float, against `multipleOf`.
            return Parsed(None, f"a number in it cannot be checked: {error}")
        if problem is not None:
            where = ".".join(map(str, problem.absolute_path)) or "the answer"
            return Parsed(None, f"{where}: {problem.message}")
        return Parsed(answer)

    def field_problem(self, name: str, value: Any) -> str:
        """Say why a valid answer cannot have this value in a field; empty when it can."""
        if self.spec.output.format != "json":
            return "" if isinstance(value, str) and value.strip() else f"{value!r} is no text"
        validator = self._validator.evolve(schema=self.schema["properties"][name])
        problem = next(iter(validator.iter_errors(value)), None)
        return "" if problem is None else problem.message

    def score(self, completion: str, reference: dict[str, Any] | None) -> Scored:
        """Compare an answer with the reference; invalid answers are never right."""
        parsed = self.parse(completion)
        expected = str((reference or {}).get(self.headline, ""))
        if parsed.answer is None:
            return Scored(False, False, "", expected, parsed.problem)
        label = str(parsed.answer.get(self.headline, ""))
        if reference is None:
            return Scored(True, False, label, "", "no reference to compare with")
        wrong = [
            name
            for name, comparison in self.spec.score.fields.items()
            if not _agrees(
                parsed.answer.get(name),
                reference.get(name),
                comparison=comparison,
                tolerance=self.spec.score.tolerance,
            )
        ]
        if self.headline in self.spec.score.fields and self.headline not in wrong:
            label = expected  # the class itself, as figures by class count it: "Yes" is "yes"
        return Scored(True, not wrong, label, expected, f"wrong: {', '.join(wrong)}" * bool(wrong))

    def score_row(self, completion: str, row: dict[str, Any]) -> Scored:
        """Score against the prompt's own `reference`, or else the teacher's answer to it."""
        if row["reference"]:
            return self.score(completion, json.loads(row["reference"]))
        return self.score(completion, self.parse(row["teacher_completion"]).answer)

    def function(self, reference: str) -> Callable[..., Any]:
        """Load `module:function` from the task folder."""
        return load_function(self.folder, reference)

    def load_verify(self) -> None:
        """Load `verify` where the task has one; ConfigError says why it cannot be."""
        if not self.spec.verify:
            return
        try:
            self._verify  # noqa: B018 - loaded once and kept
        except ConfigError as error:
            raise ConfigError(
                f"{self.folder}/task.toml: verify {self.spec.verify!r} cannot be loaded: {error} "
                "Mend the file, or remove `verify`."
            ) from error

    def verified(self, variables: dict[str, Any], answer: dict[str, Any]) -> tuple[float, str]:
        """Run the task's `verify`: its score from 0 to 1, and its reason.

        DataError when it returns anything else; what it raises comes through.
        """
        outcome = self._verify(variables, answer)
        value, reason = outcome if isinstance(outcome, tuple) else (outcome, "")
        score = float(value)
        if not 0 <= score <= 1:
            raise DataError(f"{self.spec.verify} returned {value!r:.80}; expected 0 to 1.")
        return score, str(reason)

    @cached_property
    def _verify(self) -> Callable[..., Any]:
        return self.function(self.spec.verify)

    @cached_property
    def _validator(self) -> Any:
        from jsonschema import Draft202012Validator

        return Draft202012Validator(self.schema)

    def _read_schema(self) -> dict[str, Any]:
        output = self.spec.output
        if output.format != "json":
            return {}
        from jsonschema import Draft202012Validator, SchemaError

        source = f"{self.folder}/task.toml: output.json_schema"
        schema: Any = output.json_schema
        if output.json_schema_file:
            path = self.folder / output.json_schema_file
            source = str(path)
            if not path.is_file():
                raise ConfigError(f"{source}: no such file; output.json_schema_file names it.")
            try:
                schema = json.loads(path.read_text(encoding="utf-8"))
            except ValueError as error:
                raise ConfigError(f"{source} is not valid JSON: {error}") from None
        try:
            Draft202012Validator.check_schema(schema)
        except SchemaError as error:
            where = "/".join(map(str, error.absolute_path)) or "(top)"
            raise ConfigError(
                f"{source} is no JSON Schema: at {where}: {error.message}. "
                "See json-schema.org, draft 2020-12."
            ) from None
        if schema.get("type") != "object":
            raise ConfigError(f'{source}: the answer must be an object; add "type": "object".')
        unknown = set(self.spec.score.fields) - set(schema.get("properties", {}))
        if unknown:
            raise ConfigError(
                f"{self.folder}/task.toml: score.fields {sorted(unknown)} are no properties of the "
                f"output schema; it has {sorted(schema.get('properties', {}))}."
            )
        return schema


def load_task(folder: str | Path) -> Task:
    """Load a task from a folder, or by the name of one that comes with Distillery."""
    path = Path(folder)
    if path.name == "task.toml" and path.is_file():  # the file itself was given
        path = path.parent
    bundled = Path(__file__).parent / str(folder)
    if not (path / "task.toml").is_file() and str(folder) in bundled_tasks():
        path = bundled
    if not (path / "task.toml").is_file():
        raise ConfigError(
            f"task.folder {str(folder)!r}: there is no {folder}/task.toml, and the tasks that come "
            f"with Distillery are: {', '.join(bundled_tasks())}. "
            "`distillery init my-task` writes a folder to start from."
        )
    file = path / "task.toml"
    return Task(path.absolute(), validate(TaskSpec, read_toml(file), source=str(file)))


def load_function(folder: Path, reference: str) -> Callable[..., Any]:
    """Load `module:function` from `<folder>/module.py`; ConfigError says why it cannot be."""
    module_name, _, function_name = reference.partition(":")
    path = folder / f"{module_name}.py"
    if not path.is_file() or not function_name:
        raise ConfigError(
            f"{reference!r}: expected module:function with {path} being a Python file."
        )
    spec = importlib.util.spec_from_file_location(f"task_{folder.name}_{module_name}", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    # It is the user's own code: whatever it raises is why it cannot be loaded.
    except Exception as error:
        raise ConfigError(
            f"{reference!r}: {path} cannot be loaded: {type(error).__name__}: {error}."
        ) from error
    function = getattr(module, function_name, None)
    if not callable(function):
        raise ConfigError(f"{path} has no function {function_name!r}.")
    return function


def _template(text: str, *, field: str, folder: Path) -> Any:
    from jinja2 import StrictUndefined, TemplateSyntaxError
    from jinja2.sandbox import SandboxedEnvironment

    environment = SandboxedEnvironment(
        undefined=StrictUndefined, keep_trailing_newline=False, finalize=_printed
    )
    try:
        return environment.from_string(text)
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"{folder}/task.toml: {field}, line {error.lineno}: {error.message}; "
            "templates are Jinja2: {{ variable }}."
        ) from None


def _printed(value: Any) -> Any:
    """Return what a template prints; null would become the word None."""
    from jinja2 import TemplateRuntimeError

    if value is None:
        raise TemplateRuntimeError(
            "a value that it prints is null: give it one, or print it under {% if … %} only"
        )
    return value


def _nulls(variables: dict[str, Any], prefix: str = "") -> Iterator[str]:
    """Yield the paths of the values that are null."""
    for name, value in variables.items():
        if value is None:
            yield f"{prefix}{name}"
        elif isinstance(value, dict):
            yield from _nulls(value, f"{prefix}{name}.")


def _parse_sections(text: str, required: list[str]) -> Parsed:
    wanted = {name.casefold() for name in required}
    # Any other heading is text of its section: an example may have one of its own.
    matches = [m for m in HEADING.finditer(text) if m[1].strip().casefold() in wanted]
    ends = [m.start() for m in matches[1:]] + [len(text)]
    found = {
        m[1].strip().casefold(): text[m.end() : end].strip()
        for m, end in zip(matches, ends, strict=True)
    }
    missing = [name for name in required if not found.get(name.casefold())]
    if missing:
        return Parsed(None, f"sections missing or empty: {', '.join(missing)}")
    return Parsed({name: found[name.casefold()] for name in required})


def _agrees(actual: Any, expected: Any, *, comparison: Comparison, tolerance: float) -> bool:
    if comparison == "casefold":
        return str(actual).strip().casefold() == str(expected).strip().casefold()
    if comparison == "number":
        try:
            return math.isclose(float(actual), float(expected), rel_tol=tolerance)
        except (TypeError, ValueError, OverflowError):
            return False
    if comparison == "set":
        return isinstance(actual, list) and sorted(map(str, actual)) == sorted(
            map(str, expected if isinstance(expected, list) else [expected])
        )
    return bool(actual == expected)
