"""Run the reference solution on every example of a retold question."""

from __future__ import annotations

from typing import Any

from cluster.errors import DataError
from distill.tasks.interview.question import FormError, read_question, read_signature
from distill.tasks.sandbox import Limits, Outcome, check_calls, shown

# The examples are small: what takes longer is not within the problem's constraints.
LIMITS = Limits(cpu_s=5, wall_s=60.0, memory_mb=512)


def verify(variables: dict[str, Any], answer: dict[str, Any]) -> tuple[float, str]:
    """Return the share of the question's examples that hold, and the first that does not.

    `variables` has the `problem`, `answer` the sections. The question's arguments are given to
    the problem's reference solution by position. A question that cannot be read, with fewer than
    three examples or with another number of parameters, scores 0.

    Raises DataError if the reference solution fails on the problem's own examples: that is no
    fault of the answer.
    """
    problem = variables["problem"]
    try:
        question = read_question(answer)
    except FormError as error:
        return 0.0, str(error)
    reference = read_signature(problem["signature"])
    own, needed = question.signature.parameters, reference.parameters
    if len(own) != len(needed):
        return 0.0, (
            f"Function signature: it has {len(own)} parameters ({', '.join(own)}), the problem's "
            f"has {len(needed)} ({', '.join(needed)})."
        )
    # The problem's own examples go first, in the same process.
    given = [(example["args"], example["expected"]) for example in problem["examples"]]
    retold = [(example.arguments, example.output) for example in question.examples]
    outcomes = check_calls(
        problem["solution"], reference.function, [*given, *retold], limits=LIMITS
    )
    for number, outcome in enumerate(outcomes[: len(given)], start=1):
        if outcome.kind != "ok":
            raise DataError(
                f"problem {problem['id']!r}: its solution fails on its own example {number} "
                f"({outcome.kind}: {outcome.detail}); mend the problem's file."
            )
    results = list(zip(question.examples, outcomes[len(given) :], strict=True))
    held = sum(outcome.kind == "ok" for _, outcome in results)
    reason = next(
        (
            f"Example {number}: {_reason(outcome, example.output)}"
            for number, (example, outcome) in enumerate(results, start=1)
            if outcome.kind != "ok"
        ),
        "",
    )
    return held / len(results), reason


def _reason(outcome: Outcome, output: Any) -> str:
    if outcome.kind == "mismatch":
        return f"Output is {shown(output)}, the reference solution returns {shown(outcome.value)}."
    return f"the reference solution fails on this input ({outcome.kind}: {outcome.detail})."
