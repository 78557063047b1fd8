"""What serving's routing by difficulty takes from a run: a predictor, checked to fit."""

from __future__ import annotations

from cluster.difficulty import REMAKE, Predictor, read_predictor
from cluster.errors import ConfigError
from cluster.models import model_name
from distill.tasks.task import load_task
from jobs.config import RunConfig
from serve.routing.router import RoutingParts


def routing_parts(config: RunConfig) -> dict[str, RoutingParts]:
    """Return the parts of `serve.routing`.

    DataError for a file that cannot be read as one; ConfigError, with every problem, for one of
    another student or without a threshold.
    """
    parts = {}
    problems: list[str] = []
    for name, section in config.serve.routing.items():
        field = f"serve.routing.{name}.predictor"
        predictor = read_predictor(section.predictor, field=field)
        problems += _misfits(name, predictor, config)
        if section.threshold is None and predictor.threshold is None:
            problems.append(
                f"{field} {section.predictor!r} recommends no routing ({predictor.reason}); leave "
                f"the section out, or set serve.routing.{name}.threshold"
            )
        parts[name] = RoutingParts(section, predictor)
    if problems:
        raise ConfigError("\n  ".join(problems))
    return parts


def _misfits(name: str, predictor: Predictor, config: RunConfig) -> list[str]:
    quality = config.serve.quality.get(name)
    task = load_task((quality and quality.task) or config.task.folder)
    base = model_name(config.student.model)
    where = f"serve.routing.{name}.predictor was learned from"
    problems = []
    if predictor.task_digest != task.digest:
        known = predictor.task != task.name
        what = f"the task {predictor.task!r}" if known else f"another state of {task.name!r}"
        problems.append(f"{where} {what}, and the answers are those of {task.name!r}; {REMAKE}")
    if predictor.adapter != name:
        problems.append(
            f"{where} the student {predictor.adapter!r}; name the section so, or {REMAKE}"
        )
    if predictor.base_model != base:
        problems.append(
            f"{where} a student of {predictor.base_model!r}, and student.model is {base!r}; "
            f"{REMAKE}"
        )
    return problems
