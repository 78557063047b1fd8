"""The checklist's items on what goes in, and on the inputs that are out of the ordinary."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from distill.tasks.checklist import Evidence, Item, Verdict
from distill.tasks.complexity import Complexity, literal_text, output_fields
from distill.tasks.rules_of_thumb import RulesOfThumb, rules_of_thumb
from distill.tasks.task import Task
from distill.teach.replay import recorded_answer
from distill.teach.stage import MOST_FAILED

# A template with fewer words of its own hardly says what is wanted.
FEW_WORDS = 8
# Below this share of distinct prompts the number of prompts says little.
DISTINCT_SHARE = 0.9
# How a definition names the input that does not fit: in an enumeration or in the prompt.
MISFIT = re.compile(
    r"\b(other|unknown|none|unclear|missing|not applicable|n/a|escalat\w+|investigat\w+|refus\w+"
    r"|cannot|can't|ambiguous|insufficient|empty|unsure|invalid|null|otherwise|if no|no match)\b",
    re.IGNORECASE,
)


def input_items(evidence: Evidence) -> Iterator[Item]:
    """Grade what goes in: the prompts and the templates that carry them."""
    rules = rules_of_thumb()
    task, rows = evidence.task, evidence.rows
    source = task.spec.prompts.file or task.spec.prompts.generator
    question = "Can the prompts be read and filled into the templates?"
    if evidence.problem:
        yield Item(
            "input.prompts",
            question,
            "fail",
            evidence.problem,
            f"mend {source}: [prompts] names it in {task.folder}/task.toml",
        )
    else:
        count = "made as asked" if evidence.sample.total is None else f"{evidence.sample.total:,}"
        yield Item("input.prompts", question, "pass", f"{source}: {count}, {len(rows)} filled")
    yield _template_varies(task)
    yield _instructions(task)
    yield _enough(evidence, rules)
    yield _lengths(evidence, rules)
    yield from _recorded(evidence)


def _template_varies(task: Task) -> Item:
    question = "Does the prompt carry the input?"
    used = _variables(task)
    if used:
        return Item("input.variables", question, "pass", f"templates use {', '.join(used)}")
    return Item(
        "input.variables",
        question,
        "fail",
        "no template uses a variable: every prompt is the same",
        "put the fields of the prompts file into prompt.user, as {{ name }}",
    )


def _instructions(task: Task) -> Item:
    question = "Does the prompt say what to do?"
    words = len(re.findall(r"\w+", literal_text(task)))
    if words >= FEW_WORDS:
        return Item("input.instructions", question, "pass", f"{words} words besides the input")
    return Item(
        "input.instructions",
        question,
        "warn",
        f"{words} words besides the input",
        "say the task and its rules in prompt.system: the teacher has nothing else to go by",
    )


def _enough(evidence: Evidence, rules: RulesOfThumb) -> Item:
    question = "Are there enough different prompts?"
    name = "input.enough"
    sampled, rows, total = len(evidence.sample.prompts), len(evidence.rows), evidence.sample.total
    if not rows:
        return Item(name, question, "fail", "none", "give prompts: a file or a generator")
    share = rows / sampled
    distinct = f"{rows:,} of {sampled:,} looked at are different"
    if total is None and share >= DISTINCT_SHARE:
        return Item(name, question, "pass", f"a generator; {distinct}")
    if total is None:
        return Item(
            name, question, "warn", f"a generator; {distinct}", "let the generator vary more"
        )
    count = round(total * share)
    minimum = _minimum(evidence.complexity, rules)
    least = int(rules.figure.style_examples.values[0])
    unsteady = int(rules.figure.inconsistent_below_examples.values[0])
    found = f"{count:,} different prompts"
    if count >= minimum:
        return Item(name, question, "pass", f"{found}; at least {minimum:,} are usual")
    if count < least:
        advice = f"collect more; under {least} not even a style is learnt"
        return Item(name, question, "fail", found, advice)
    advice = f"collect or generate more: at least {minimum:,} are usual for such a task"
    if count < unsteady:
        advice += f"; under {unsteady} a model is inconsistent"
    return Item(name, question, "warn", found, advice)


def _minimum(complexity: Complexity, rules: RulesOfThumb) -> int:
    by_category = rules.for_category(complexity.category).data if complexity.category else None
    return (by_category or rules.for_level(complexity.level).data)[0]


def _lengths(evidence: Evidence, rules: RulesOfThumb) -> Item:
    question = "Do prompt and answer have a usual length?"
    name = "input.length"
    if not evidence.rows:
        return Item(name, question, "warn", "unknown", "needs prompts that can be read")
    per_token = rules.reading.chars_per_token
    lengths = sorted(
        sum(len(message["content"]) for message in row["messages"]) / per_token
        for row in evidence.rows
    )
    answer = evidence.complexity.answer_tokens
    typical, longest = lengths[len(lengths) // 2], lengths[-1]
    found = f"prompt about {typical:,.0f} tokens, longest {longest:,.0f}"
    found += f", answer about {answer:,.0f}" if answer is not None else ", answer unknown"
    low, high = rules.figure.example_tokens.values
    if longest + (answer or 0) > high:
        advice = (
            f"the usual length filter ends at {high:,.0f} tokens: say so in the run "
            "(student.max_length, curate limits), or shorten the prompt"
        )
        return Item(name, question, "warn", found, advice)
    if answer is not None and typical + answer < low:
        advice = f"the usual length filter begins at {low:,.0f} tokens: do not switch it on here"
        return Item(name, question, "warn", found, advice)
    return Item(name, question, "pass", found)


def _recorded(evidence: Evidence) -> Iterator[Item]:
    """Grade the answers that the run beside the task replays, if it does."""
    recording, rows = evidence.sample.recording, evidence.rows
    if recording is None:
        return
    question = "Do the recorded answers belong to the prompts, and do they fit?"
    name = "input.answers"
    if recording.problem:
        advice = f"mend {recording.file}: [teacher] in run.toml names it"
        yield Item(name, question, "fail", recording.problem, advice)
        return
    if not rows:
        found = f"{len(recording.answers):,} answers, and no prompt to look at"
        yield Item(name, question, "warn", found, "needs prompts that can be read")
        return
    answers = [(row, recorded_answer(recording.answers, row)) for row in rows]
    missing = [row for row, answer in answers if answer is None]
    if missing:
        first = missing[0]["prompt_id"] or missing[0]["example_id"]
        found = f"{len(missing)} of {len(rows)} prompts looked at have no answer, as {first!r}"
        found += f" ({recording.file} has {next(iter(recording.answers))!r})"
        few = len(missing) <= MOST_FAILED * len(rows)
        advice = (
            f"give each answer in {recording.file} the `id` of its prompt; "
            f"a run stops where more than {MOST_FAILED:.0%} have none"
        )
        yield Item(name, question, "warn" if few else "fail", found, advice)
        return
    problems = [
        (row["prompt_id"] or row["example_id"], problem)
        for row, answer in answers
        if answer and (problem := evidence.task.parse(answer["completion"]).problem)
    ]
    if not problems:
        yield Item(name, question, "pass", f"all {len(rows)} prompts looked at have one that fits")
        return
    prompt, first = problems[0]
    every = len(problems) == len(rows)
    found = f"none of {len(rows)} fits" if every else f"{len(problems)} of {len(rows)} do not fit"
    yield Item(
        name,
        question,
        "fail" if every else "warn",
        f"{found} the output, as that of {prompt!r}: {first}",
        f"mend {recording.file}, or [output] in task.toml: what does not fit is not trained on",
    )


def edge_items(evidence: Evidence) -> Iterator[Item]:
    """Grade what the definition says of inputs that are rare, do not fit, or are alike."""
    rules = rules_of_thumb()
    yield _misfits(evidence.task)
    yield _strata(evidence, rules)
    yield _splits(evidence)


def _misfits(task: Task) -> Item:
    question = "Is it said what to do with an input that does not fit?"
    texts = [c for f in output_fields(task) for c in f.choices] + [literal_text(task)]
    signs = [match[0] for text in texts for match in MISFIT.finditer(text.replace("_", " "))]
    templates = task.spec.prompt.system + task.spec.prompt.user
    signs += ["{% if … %} in a template"] * bool(re.search(r"\{%-?\s*if\b", templates))
    if signs:
        shown = ", ".join(list(dict.fromkeys(sign.lower() for sign in signs))[:5])
        return Item("edge.misfits", question, "pass", f"the definition speaks of: {shown}")
    return Item(
        "edge.misfits",
        question,
        "warn",
        "no such word in the prompt or the enumerations",
        "add a way out (such as an enum value other or escalate) and say when to take it; "
        "give prompts that need it",
    )


def _strata(evidence: Evidence, rules: RulesOfThumb) -> Item:
    question = "Are rare kinds of input told apart from common ones?"
    name = "edge.strata"
    stratum = evidence.task.spec.prompts.stratum
    if not stratum:
        advice = "name the variable that holds a prompt's kind: stratum = … in [prompts]"
        return Item(name, question, "warn", "no stratum", advice)
    if not evidence.rows:
        return Item(name, question, "warn", f"stratum {stratum}; no prompts to look at")
    counts = Counter(row["stratum"] for row in evidence.rows)
    nameless = counts.get("", 0)
    if nameless:
        found = f"{nameless} of {len(evidence.rows)} prompts have no {stratum}"
        verdict: Verdict = "fail" if nameless == len(evidence.rows) else "warn"
        return Item(name, question, verdict, found, f"give every record a value for {stratum}")
    (largest, size), *_ = counts.most_common(1)
    share = size / len(evidence.rows)
    found = f"{len(counts)} by {stratum}; the largest, {largest}, has {share:.0%}"
    risky = rules.figure.risky_stratum_share.values[0]
    if share > risky:
        advice = f"more than {risky:.0%} in one kind is risky: add prompts of the others"
        return Item(name, question, "warn", found, advice)
    return Item(name, question, "pass", found)


def _splits(evidence: Evidence) -> Item:
    question = "Are near-copies of a training prompt kept out of the test?"
    name = "edge.splits"
    disjoint = evidence.task.spec.prompts.disjoint
    if not disjoint:
        return Item(
            name,
            question,
            "warn",
            "only whole prompts are kept apart",
            'name what makes two prompts the same case: disjoint = [["variable", …]] in [prompts]',
        )
    variables = [json.loads(row["variables"]) for row in evidence.rows]
    dead = [
        " + ".join(combination)
        for combination in disjoint
        if variables and not any(_all_there(record, combination) for record in variables)
    ]
    if dead:
        found = f"no prompt has all of {'; '.join(dead)}"
        return Item(name, question, "fail", found, "use the names of variables in the records")
    return Item(name, question, "pass", "; ".join(" + ".join(c) for c in disjoint))


def _all_there(record: Mapping[str, Any], combination: Sequence[str]) -> bool:
    return all(_value(record, path) is not None for path in combination)


def _value(record: Any, path: str) -> Any:
    for part in path.split("."):
        record = record.get(part) if isinstance(record, dict) else None
    return record


def _variables(task: Task) -> list[str]:
    from jinja2 import Environment, meta

    # Only parsed: nothing of the template is executed here.
    parsed = Environment(autoescape=True).parse(task.spec.prompt.system + task.spec.prompt.user)
    return sorted(meta.find_undeclared_variables(parsed))
