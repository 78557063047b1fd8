"""The check-up of a task: graded items, complexity, what to expect, and whether to distil at all.

No model is asked and nothing is paid for. Expectations are the field's rules of thumb
(`rules_of_thumb.toml`), each with its source; none is a promise.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cluster.errors import DataError
from distill.prompts.split import build_rows
from distill.tasks.checklist import Evidence, Item, PromptSample
from distill.tasks.checklist_answer import output_items, success_items
from distill.tasks.checklist_deployment import deployment_items, is_fast
from distill.tasks.checklist_prompts import edge_items, input_items
from distill.tasks.complexity import Complexity, read_complexity
from distill.tasks.rules_of_thumb import Advice, LevelRule, RulesOfThumb, rules_of_thumb
from distill.tasks.spec import Deployment
from distill.tasks.task import Task


@dataclass(frozen=True)
class Expectation:
    """One figure that others found for tasks like this one."""

    id: str
    label: str
    text: str
    """The figure with its unit, for people."""
    values: Mapping[str, float]
    """The same as numbers."""
    source: str
    """Where it is from."""


@dataclass(frozen=True)
class Reason:
    """Something that speaks for a recommendation or against it."""

    text: str
    supports: bool
    source: str


@dataclass(frozen=True)
class Recommendation:
    """What to do about the workload."""

    advice: Advice
    """`distil`; `prompt`: stay with a prompted API model; `retrieve`: look facts up when asked;
    `compute`: the break-even decides."""
    reasons: list[Reason]
    """The one that decided comes first."""
    unknown: list[str] = field(default_factory=list)
    """Fields of `[deployment]` that could still change the advice."""


@dataclass(frozen=True)
class Checkup:
    """All that `distillery check` says about a task."""

    task: str
    items: list[Item]
    complexity: Complexity
    expectations: list[Expectation]
    recommendation: Recommendation

    @property
    def failed(self) -> list[Item]:
        """Items that must be mended, or that speak against distilling."""
        return [item for item in self.items if item.verdict == "fail"]


def check_up(task: Task, sample: PromptSample, *, deployment: Deployment | None = None) -> Checkup:
    """Check a task against the checklist.

    `sample` holds what could be read of its prompts and answers, and may be empty. `deployment`
    describes the workload; `None` takes the task's own `[deployment]`.
    """
    deployment = deployment or task.spec.deployment
    rows, problem = [], sample.problem
    if not problem:
        try:
            rows = build_rows(task, sample.prompts)
        except DataError as error:
            problem = str(error)
    if not rows and not problem:
        problem = "there is no prompt"
    complexity = read_complexity(
        task, rows=rows, answers=sample.answers, category=deployment.category
    )
    evidence = Evidence(
        task=task,
        deployment=deployment,
        sample=sample,
        rows=rows,
        problem=problem,
        complexity=complexity,
    )
    return Checkup(
        task=task.name,
        items=[
            *input_items(evidence),
            *output_items(evidence),
            *success_items(evidence),
            *deployment_items(evidence),
            *edge_items(evidence),
        ],
        complexity=complexity,
        expectations=list(expectations(complexity)),
        recommendation=recommend(deployment),
    )


def recommend(deployment: Deployment) -> Recommendation:
    """Say whether to distil, by the field's signs: the strongest one that holds decides.

    Facts that change and a prompt that already does it rule distilling out. Privacy and latency
    call for it at any volume. Otherwise the number of requests a day decides; unknown, it has to
    be computed.
    """
    reasons = _signs(deployment)
    advice = reasons[0][0]
    return Recommendation(
        advice=advice,
        reasons=[Reason(text, own == advice, source) for own, text, source in reasons],
        unknown=[
            name
            for name, values in _possible().items()
            if getattr(deployment, name) is None
            and any(
                _signs(deployment.model_copy(update={name: value}))[0][0] != advice
                for value in values
            )
        ],
    )


def _signs(deployment: Deployment) -> list[tuple[Advice, str, str]]:
    """Return what each sign that holds calls for, its reason and its source; the first decides."""
    rules = rules_of_thumb()
    holds = {
        "facts_change": deployment.facts_change,
        "few_shot_solves": deployment.few_shot_solves,
        "private": deployment.private,
        "fast": is_fast(deployment),
    }
    found = [(rule.recommend, rule.reason, rule.source) for rule in rules.sign if holds[rule.name]]
    if deployment.requests_per_day is not None:
        volume = rules.for_volume(deployment.requests_per_day)
        found.append((volume.recommend, volume.reason, volume.source))
    elif not found:
        source = rules.volume[0].source
        found.append(("compute", "it is not stated how many requests a day there are", source))
    return found


def _possible() -> dict[str, list[Any]]:
    """Return the values of each field that could change an advice."""
    rules = rules_of_thumb()
    return {
        "facts_change": [True],
        "few_shot_solves": [True],
        "private": [True],
        "max_latency_ms": [int(rules.figure.fast_below_ms.values[0]) - 1],
        "requests_per_day": [rule.from_requests_per_day for rule in rules.volume],
    }


def expectations(complexity: Complexity) -> Iterator[Expectation]:
    """Yield data, student, transfer and what belongs to them, for a task of this complexity."""
    rules = rules_of_thumb()
    level = rules.for_level(complexity.level)
    data = _data(complexity, level=level, rules=rules)
    yield data
    of_level = f"{_range(level.data)}{'' if len(level.data) > 1 else ' and more'} at this level"
    yield Expectation(
        "data_of_level", "examples by complexity", of_level, _ends(level.data), level.source
    )
    share = rules.figure.raw_yield
    raw = [data.values["minimum"] / keep for keep in reversed(share.values)]
    raw_text = f"{_range(raw)}, because filters keep {_percent(share.values)} of them"
    yield Expectation(
        "raw_answers", "raw answers for the minimum", raw_text, _ends(raw), share.source
    )
    thinking = ", trained on written-out reasoning" * level.chain_of_thought
    yield Expectation(
        "student",
        "student",
        f"{_range(level.student_billions)} billion parameters{thinking}",
        _ends(level.student_billions),
        level.source,
    )
    times = rules.figure.teacher_times_student
    yield Expectation(
        "teacher", "teacher", f"{_range(times.values)} × the student's size", _ends(times.values),
        times.source,
    )  # fmt: skip
    low, high = level.transfer
    shown = f"at least {low:.0%}" if high == 1 else _percent(level.transfer)
    yield Expectation(
        "transfer", "transfer", f"{shown} of the teacher's score", _ends(level.transfer),
        level.source,
    )  # fmt: skip
    for name, label, figure in (
        ("style", "if only the style is to change", rules.figure.style_examples),
        ("format", "if only the format is new", rules.figure.format_examples),
        ("preference_pairs", "preference pairs, if any", rules.figure.preference_pairs),
    ):
        unit = "pairs" if name == "preference_pairs" else "examples"
        text = f"{_range(figure.values)} {unit}"
        yield Expectation(name, label, text, _ends(figure.values), figure.source)


def _data(complexity: Complexity, *, level: LevelRule, rules: RulesOfThumb) -> Expectation:
    category = rules.for_category(complexity.category) if complexity.category else None
    if category is not None and category.data is not None:
        minimum, recommended, ideal = category.data
        text = f"{minimum:,} at least, {recommended:,} recommended, {ideal:,} ideal"
        values = {"minimum": minimum, "recommended": recommended, "ideal": ideal}
        return Expectation("data", f"examples for {category.name}", text, values, category.source)
    # The sources have no such row: the ends of the level's range, and nothing made up between.
    values = {"minimum": level.data[0]}
    text = f"{level.data[0]:,} at least"
    if len(level.data) > 1:
        values["ideal"] = level.data[1]
        text += f", {level.data[1]:,} ideal"
    text += "; no figure for its category"
    return Expectation("data", "examples", text, values, level.source)


def _range(values: Sequence[float]) -> str:
    return "–".join(f"{value:,.0f}" for value in values)


def _percent(values: Sequence[float]) -> str:
    return "–".join(f"{value * 100:.0f}" for value in values) + "%"


def _ends(values: Sequence[float]) -> dict[str, float]:
    return dict(zip(("low", "high"), values, strict=False))
