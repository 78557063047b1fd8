"""The checklist's items on the workload: what is not stated is a warning with what to write."""

from __future__ import annotations

from collections.abc import Iterator

from distill.tasks.checklist import Evidence, Item
from distill.tasks.complexity import Complexity
from distill.tasks.rules_of_thumb import RulesOfThumb, rules_of_thumb
from distill.tasks.spec import Deployment


def deployment_items(evidence: Evidence) -> Iterator[Item]:
    """Grade what is known about the workload: `[deployment]` of task.toml."""
    rules = rules_of_thumb()
    deployment, complexity = evidence.deployment, evidence.complexity
    yield _volume(deployment, rules)
    yield _latency(deployment, complexity, rules)
    yield _stated(
        "private",
        "Must prompts stay on your own machines?",
        deployment.private,
        when_true="they must",
        when_false="they may leave",
    )
    yield _stated(
        "facts_change",
        "Does a right answer need facts that change and are not in the prompt?",
        deployment.facts_change,
        when_true="it does",
        when_false="it does not",
        advice="look the facts up when asked (retrieval) and put them into the prompt; "
        "then facts_change is false",
    )
    yield _stated(
        "few_shot_solves",
        "Would a prompt with a few examples already do it?",
        deployment.few_shot_solves,
        when_true="it would, on a model that you can afford to keep",
        when_false="it would not",
        advice="keep the prompt; there is nothing left to train for",
        unknown="try 5 examples in the prompt of the model that you could afford to keep, on 50 "
        "prompts whose answers you know",
    )
    yield _category(complexity)


def _stated(
    name: str,
    question: str,
    value: bool | None,
    *,
    when_true: str,
    when_false: str,
    advice: str = "",
    unknown: str = "",
) -> Item:
    """Grade a yes-or-no field; `advice` is what a yes that speaks against distilling calls for."""
    identity = f"deployment.{name}"
    if value is None:
        write = f"write {name} = true or false in [deployment]"
        text = f"{unknown}; then {write}" if unknown else write
        return Item(identity, question, "warn", "not stated", text)
    if not value:
        return Item(identity, question, "pass", when_false)
    return Item(identity, question, "fail" if advice else "pass", when_true, advice)


def _volume(deployment: Deployment, rules: RulesOfThumb) -> Item:
    question = "How many requests a day?"
    name = "deployment.requests_per_day"
    requests = deployment.requests_per_day
    if requests is None:
        return Item(
            name,
            question,
            "warn",
            "not stated",
            "write requests_per_day = … in [deployment]; the API's bill or its log has it",
        )
    rule = rules.for_volume(requests)
    found = f"{requests:,}"
    if rule.recommend == "distil":
        return Item(name, question, "pass", f"{found}; {rule.reason}")
    if rule.recommend == "compute":
        return Item(name, question, "warn", found, rule.reason)
    # Too few to save money; another reason can still be good enough.
    reasons = ["privacy"] * bool(deployment.private) + ["latency"] * is_fast(deployment)
    if not reasons:
        return Item(name, question, "fail", found, rule.reason)
    advice = f"{rule.reason}, were it not for {' and '.join(reasons)}"
    return Item(name, question, "warn", found, advice)


def is_fast(deployment: Deployment) -> bool:
    """Return whether the stated latency is one that large models behind an API do not keep."""
    limit = deployment.max_latency_ms
    return limit is not None and limit < rules_of_thumb().figure.fast_below_ms.values[0]


def _latency(deployment: Deployment, complexity: Complexity, rules: RulesOfThumb) -> Item:
    question = "How long may an answer take?"
    name = "deployment.max_latency_ms"
    limit = deployment.max_latency_ms
    if limit is None:
        advice = "write max_latency_ms = … in [deployment]: what nine of ten answers must keep"
        return Item(name, question, "warn", "not stated", advice)
    found = f"P90 at most {limit:,} ms"
    if complexity.answer_tokens is not None:
        speed = complexity.answer_tokens / (limit / 1000)
        found += f"; a typical answer of {complexity.answer_tokens:,.0f} tokens needs at least "
        found += f"{speed:,.0f} tokens/s"
    if is_fast(deployment):
        found += f"; under {rules.figure.fast_below_ms.values[0]:.0f} ms speaks for a small model"
    return Item(name, question, "pass", found)


def _category(complexity: Complexity) -> Item:
    question = "What kind of task is it?"
    name = "deployment.category"
    read = f"the definition reads as level {complexity.level_of_definition}"
    if not complexity.category_stated:
        guess = f"like {complexity.category}, " if complexity.category else ""
        advice = f'write category = "{complexity.category or "…"}" in [deployment] if that is so'
        return Item(name, question, "warn", f"not stated; {guess}{read}", advice)
    found = f"{complexity.category}, level {complexity.level}; {read}"
    if complexity.level_of_definition > complexity.level:
        harder = next(r for r in complexity.reasons if r.level == complexity.level_of_definition)
        advice = (
            f"the category may flatter the task ({harder.text}): plan for level "
            f"{complexity.level_of_definition}, or trust the category after a trial"
        )
        return Item(name, question, "warn", found, advice)
    return Item(name, question, "pass", found)
