"""Strict configuration: one TOML file a run, dotted overrides, and errors that list everything.

Order of precedence, lowest first: defaults, files in the order given, `--section.field value`.
"""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args, get_origin

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from pydantic.fields import FieldInfo

from cluster.errors import ConfigError


class StrictModel(BaseModel):
    """Base of every configuration section: unknown fields are errors, field docs are the help."""

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        validate_default=True,
        protected_namespaces=(),
        allow_inf_nan=False,
    )

    @model_validator(mode="before")
    @classmethod
    def _truth_is_no_number(cls, given: Any) -> Any:
        """Let `true` for a number be refused as the word it is; pydantic would make 1 of it."""
        if not isinstance(given, dict):
            return given
        return {
            name: str(value).lower() if _is_truth_for_number(cls, name, value) else value
            for name, value in given.items()
        }


def _is_truth_for_number(model: type[BaseModel], name: str, value: Any) -> bool:
    if not isinstance(value, bool) or name not in model.model_fields:
        return False
    return set(_plain_types(model.model_fields[name].annotation)) <= {int, float, type(None)}


def _plain_types(annotation: Any) -> Iterator[Any]:
    arguments = get_args(annotation)
    if get_origin(annotation) is Annotated:
        arguments = arguments[:1]
    if not arguments:
        yield annotation
    for argument in arguments:
        yield from _plain_types(argument)


ConfigT = TypeVar("ConfigT", bound=StrictModel)


class ClusterConfig(StrictModel):
    """Where Ray runs and how much of it one run may use."""

    address: str = "local"
    """`local` starts a Ray of its own and stops it afterwards; `auto` joins the cluster this
    process belongs to; otherwise a Ray address such as `ray://head:10001`."""
    accelerator: str | None = None
    """`None` trains and serves on CPU; `"H100"`, `"A100"`, `"L4"`, … asks for that Ray accelerator
    type and uses one GPU a worker and a replica."""
    logical_cpus: int = Field(default=8, ge=4, le=4096)
    """CPUs a local Ray claims to have. Serve, the engine and the trainer's controller each hold
    some while mostly waiting, so on a small machine this is more than the cores."""
    object_store_mb: int = Field(default=512, ge=80)
    """Shared memory of a local Ray's object store, MiB."""
    metrics_port: int = Field(default=8090, ge=1024, le=65535)
    """Port at which a local Ray's metrics agent answers Prometheus."""
    min_free_memory_gb: float = Field(default=3.0, ge=0)
    """A stage that loads a model refuses to start with less free memory than this, GiB."""


class RegistryConfig(StrictModel):
    """The adapter registry: a folder or object-store prefix of immutable versions."""

    uri: str = "registry"
    """Local path, `s3://…` or `gs://…`."""
    name: str = Field(default="", pattern=r"^$|^[a-z0-9][a-z0-9._-]{0,63}$")
    """Name to publish under; empty takes the task's name."""
    promote: bool = True
    """Move the alias to the new version after its gates passed."""
    alias: str = Field(default="prod", pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")
    """Alias to move."""


def read_toml(path: str | Path) -> dict[str, Any]:
    """Read one TOML file; a missing or broken one is a ConfigError that names the line."""
    file = Path(path)
    if (file / "run.toml").is_file():
        raise ConfigError(f"{path} is a folder; give the configuration in it: {file / 'run.toml'}")
    if not file.is_file():
        raise ConfigError(f"{path}: no such configuration file. Give the path of a TOML file.")
    try:
        return tomllib.loads(file.read_text(encoding="utf-8-sig"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid TOML: {error}") from error


def parse_overrides(arguments: Sequence[str]) -> dict[str, Any]:
    """Turn `--train.epochs 2 --task.folder=x` into nested dictionaries.

    A value is read as TOML where it is TOML (numbers, booleans, lists, quoted strings) and as a
    plain string otherwise, so nobody has to quote a path.
    """
    overrides: dict[str, Any] = {}
    problems: list[str] = []
    queue = list(arguments)
    while queue:
        argument = queue.pop(0)
        if not argument.startswith("--") or "." not in argument.split("=", 1)[0]:
            problems.append(
                f"{argument!r}: no option here; a field is set by --section.field value"
            )
            continue
        key, equals, value = argument[2:].partition("=")
        if not equals:
            if not queue:
                problems.append(f"{argument}: a value must follow")
                break
            value = queue.pop(0)
        target: Any = overrides
        *sections, field = key.replace("-", "_").split(".")
        for section in sections:
            target = target.setdefault(section, {}) if isinstance(target, dict) else None
        if not isinstance(target, dict):
            problems.append(f"{argument}: {'.'.join(sections)} was given a value before")
            continue
        target[field] = _toml_value(value)
    if problems:
        raise ConfigError("cannot read the command line:\n  " + "\n  ".join(problems))
    return overrides


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Merge nested dictionaries; a value in `over` wins, tables merge field by field.

    A table of another `kind` has other fields, so it replaces the whole table.
    """
    if over.get("kind", base.get("kind")) != base.get("kind"):
        return over
    merged = dict(base)
    for key, value in over.items():
        if isinstance(value, dict) and isinstance(merged.get(key), dict):
            merged[key] = merge(merged[key], value)
        else:
            merged[key] = value
    return merged


def load_config(
    model: type[ConfigT], paths: Sequence[str | Path], *, overrides: Sequence[str] = ()
) -> ConfigT:
    """Read the files in order, apply the overrides, validate, report every problem at once."""
    raw: dict[str, Any] = {}
    for path in paths:
        raw = merge(raw, read_toml(path))
    raw = merge(raw, parse_overrides(overrides))
    return validate(model, raw, source=", ".join(map(str, paths)) or "the configuration")


def validate(model: type[ConfigT], raw: dict[str, Any], *, source: str) -> ConfigT:
    """Validate `raw`, turning pydantic's report into sentences that name the fix."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        lines = [_sentence(model, problem) for problem in error.errors(include_url=False)]
        count = f"{len(lines)} problem" + ("s" if len(lines) > 1 else "")
        raise ConfigError(f"{source}: {count}\n  " + "\n  ".join(lines)) from None


def _sentence(model: type[BaseModel], problem: Any) -> str:
    location = [str(part) for part in problem["loc"]]
    path = ".".join(location)
    if problem["type"] == "extra_forbidden":
        parents, name = location[:-1], location[-1]
        known = sorted(_fields_at(model, parents))
        near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
        hint = f"did you mean {near[0]!r}?" if near else f"allowed: {', '.join(known)}"
        return f"{path}: unknown field; {hint}"
    if problem["type"] in ("union_tag_invalid", "union_tag_not_found"):
        name = problem["ctx"]["discriminator"].strip("'")
        kinds = ", ".join(repr(kind) for kind in sorted(_kinds_at(model, location, name)))
        given = problem["ctx"].get("tag")
        said = f"{given!r} cannot be used" if given else "is required"
        return f"{path}.{name}: {said}; allowed: {kinds}"
    message = problem["msg"].removeprefix("Value error, ")
    if problem["type"] == "missing":
        return f"{path}: is required; add it"
    shown = problem.get("input")
    if isinstance(shown, (str, int, float, bool, list, type(None))):
        return f"{path}: {shown!r} cannot be used; {message[:1].lower()}{message[1:]}"
    return f"{path}: {message}" if path else message


def _fields_at(model: type[BaseModel], path: Sequence[str]) -> set[str]:
    """Names allowed at `path`."""
    return {name for found in _models_at(model, path) for name in found.model_fields}


def _kinds_at(model: type[BaseModel], path: Sequence[str], name: str) -> set[str]:
    """Tags of the union at `path`, of which `name` is the discriminating field."""
    fields = [found.model_fields.get(name) for found in _models_at(model, path)]
    return {kind for field in fields if field for kind in get_args(field.annotation)}


def _models_at(model: type[BaseModel], path: Sequence[str]) -> list[type[BaseModel]]:
    """Models that may stand at `path`; a union's tag in the path selects its member."""
    candidates: list[type[BaseModel]] = [model]
    for part in path:
        below = [
            member
            for candidate in candidates
            if part in candidate.model_fields
            for member in _models_in(candidate.model_fields[part].annotation)
        ]
        # A discriminated union puts the tag into the path: keep the members that carry it.
        tagged = [c for c in candidates if _has_tag(c, part)]
        candidates = below or tagged or candidates
    return candidates


def _has_tag(model: type[BaseModel], tag: str) -> bool:
    return any(tag in get_args(info.annotation) for info in model.model_fields.values())


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models_in(argument)


def describe(
    model: type[BaseModel], *, prefix: str = "", default: object = None
) -> Iterator[tuple[str, str, str, str]]:
    """Yield (dotted name, type, default, documentation) of every field, for the help.

    `default` is an instance of `model` that stands where nothing is given, if there is one.
    """
    for name, info in model.model_fields.items():
        dotted = f"{prefix}{name}"
        nested = list(dict.fromkeys(_models_in(info.annotation)))
        if nested:
            for member in nested:
                given = getattr(default, name) if isinstance(default, model) else info.default
                own = given if isinstance(given, member) else None
                yield from describe(member, prefix=f"{dotted}.", default=own)
            continue
        shown = repr(getattr(default, name)) if isinstance(default, model) else _default(info)
        yield dotted, _type_name(info), shown, " ".join((info.description or "").split())


def _type_name(info: FieldInfo) -> str:
    annotation = info.annotation
    name = annotation.__name__ if isinstance(annotation, type) else str(annotation)
    return name.replace("typing.", "").replace("NoneType", "None")


def _default(info: FieldInfo) -> str:
    if info.is_required():
        return "required"
    return repr(info.get_default(call_default_factory=True))
