"""The records of a run as `distillery plan` needs them: curated, as told, or a guess.

The best that is there counts: figures from the command line, then the run's curated records, then
the task's own prompts and recorded answers.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from cluster.errors import DistilleryError
from distill.curate.multitask import multitask_records
from distill.prompts.source import read_prompts
from distill.prompts.split import build_rows
from distill.tasks.rules_of_thumb import rules_of_thumb
from distill.teach.reasoning import CLOSE, OPEN, split_reasoning
from distill.train.items import LABEL_TASK, RATIONALE_TASK, sequences_of
from distill.train.plan.workload import RecordTokens, Workload, known_lengths, record_tokens
from jobs.config import RunConfig
from jobs.display import Display
from jobs.run import Run

TEMPLATE_TOKENS = 5
"""Tokens that a chat template puts around a message (ChatML: two marks, role, two line ends)."""
GUESSED_ANSWER_TOKENS = 200
"""Tokens of an answer when no record, no recorded answer and no flag says anything."""
LOOKED_AT = 200
"""Prompts of a task whose lengths are taken for those of all, evenly from what is read."""
ASSUMED_RATIONALE_TOKENS = 200
"""Tokens of a rationale when `cot` or `multitask` is to learn them and none is there yet."""
ASSUMED_LABEL_TOKENS = 4
"""Tokens of a label with its end of turn, likewise."""
Counts = list[RecordTokens]


def workload_of(
    config: RunConfig,
    *,
    records: int | None = None,
    mean_tokens: float | None = None,
    max_tokens: int | None = None,
    completion_share: float | None = None,
) -> Workload:
    """Describe a run's training records; what is given wins over what is found."""
    if mean_tokens is not None or max_tokens is not None:
        most = max_tokens or config.student.max_length
        mean = min(mean_tokens or most, most)
        share = 0.5 if completion_share is None else completion_share
        return Workload(records or config.prompts.train, mean, most, share, "as given")
    count, source = _curated(config)
    if not count:
        count, source = _sample(config)
    limit = config.student.max_length
    kept = [one for one in count if one.longest <= limit]
    kept = kept or [record_tokens([(limit // 2, limit // 2)])]
    share = sum(one.completion for one in kept) / sum(one.total for one in kept)
    share = share if completion_share is None else completion_share
    found = known_lengths([one.total for one in kept], completion_share=share, source=source)
    if source.startswith("curated") and records in (None, found.records):
        return found
    # Of a sample the lengths are known, and not that of the longest record to come.
    number = records or config.prompts.train
    alike = found.lengths if len(found.lengths) > 1 else ()
    # The tasks of `multitask` may be longer together than any one of them.
    most = max(limit, found.max_tokens)
    return Workload(number, found.mean_tokens, most, share, source, alike)


def _curated(config: RunConfig) -> tuple[Counts, str]:
    """Lengths of the run's curated training records, if the run got that far."""
    try:
        run = Run(config, Display())
        path = "curated/train.parquet"
        if not run.store.exists(path):
            return [], ""
        rows = _learnt(run, run.store.read_rows(path))
    except DistilleryError:  # a task that is not here yet: a plan needs none
        return [], ""
    encode, how = _tokenizer(config.student.model)
    source = f"curated/train.parquet of this run, {how}"
    method = config.train.method
    if method == "cot":
        reasoned = [row for row in rows if row.get("rationale")]
        if rows and not reasoned:  # training will say that they are missing
            counts = [
                _assumed(_prompt(row, encode), encode(row["completion"]) + 1, encode, method)
                for row in rows
            ]
            return counts, f"{source}, {_assuming(ASSUMED_RATIONALE_TOKENS)}"
        rows = reasoned
    # Pairs for DPO are made later; their answers are taken for as long as the curated ones.
    sequences = [sequences_of(row, "sft" if method == "dpo" else method) for row in rows]
    return [
        record_tokens([(_prompt(s, encode), encode(s["completion"]) + 1) for s in parts])
        for parts in sequences
    ], source


def _learnt(run: Run, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows with the labels that `multitask` learns."""
    if run.config.train.method != "multitask":
        return rows
    labelled = multitask_records(rows, task=run.task)
    return [{**row, "completion": row["response"]} for row in labelled]


def _sample(config: RunConfig) -> tuple[Counts, str]:
    """Lengths of the task's prompts with its recorded answers, or with a guess of their length."""
    from distill.tasks.task import load_task
    from jobs.check import recorded_answers

    nothing = "no data was found: half of student.max_length assumed"
    try:
        task = load_task(config.task.folder)
        sizes = {"train": LOOKED_AT}
        prompts = list(read_prompts(task, sizes=sizes, seed=config.prompts.seed, skip_bad=True))
        rows = build_rows(task, prompts[:: -(-len(prompts) // LOOKED_AT) or 1])
        recorded = recorded_answers(task)[:LOOKED_AT]
    except DistilleryError:  # no task yet, or one that is not ready: `distillery check` says why
        return [], nothing
    if not rows:
        return [], nothing
    encode, how = _tokenizer(config.student.model)
    taken_apart = [split_reasoning(text) for text in recorded]
    answers = [encode(answer) for _, answer in taken_apart]
    answers = answers or [encode(row["reference"]) for row in rows if row.get("reference")]
    mean = round(sum(answers) / len(answers)) if answers else GUESSED_ANSWER_TOKENS
    known = "recorded answers" if answers else f"answers assumed of {mean} tokens"
    method = config.train.method
    reasoned = [encode(rationale) for rationale, _ in taken_apart if rationale]
    reasoning = round(sum(reasoned) / len(reasoned)) if reasoned else ASSUMED_RATIONALE_TOKENS
    if method in ("cot", "multitask"):
        known += ", recorded rationales" if reasoned else f", {_assuming(reasoning)}"
    return [_assumed(_prompt(row, encode), mean, encode, method, reasoning) for row in rows], (
        f"the task's own prompts, {known}, {how}; longest assumed as student.max_length"
    )


def _assumed(
    prompt: int, answer: int, encode: Any, method: str, reasoning: int = ASSUMED_RATIONALE_TOKENS
) -> RecordTokens:
    """Count a record of which the rationale is not known, and with it what `method` makes of it."""
    if method == "cot":
        return record_tokens([(prompt, answer + reasoning + encode(f"{OPEN}\n\n{CLOSE}\n"))])
    if method != "multitask":
        return record_tokens([(prompt, answer)])
    label = (prompt + encode(f"\n\n{LABEL_TASK}"), ASSUMED_LABEL_TOKENS)
    rationale = (prompt + encode(f"\n\n{RATIONALE_TASK}"), reasoning + 1)
    return record_tokens([(prompt, answer), label, rationale])


def _assuming(reasoning: int) -> str:
    return f"rationales assumed of {reasoning} tokens"


def _prompt(row: dict[str, Any], encode: Any) -> int:
    messages = row["messages"]
    return sum(encode(m["content"]) + TEMPLATE_TOKENS for m in messages) + TEMPLATE_TOKENS - 2


def _tokenizer(model: str) -> tuple[Any, str]:
    """Return a function from text to its number of tokens, and how it counts."""
    file = Path(model).expanduser() / "tokenizer.json"
    if not file.is_file():
        chars = rules_of_thumb().reading.chars_per_token
        return (lambda text: -(-len(text) // chars)), f"{chars} characters a token"
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(file))
    return (lambda text: len(tokenizer.encode(text).ids)), "counted by its tokenizer"
