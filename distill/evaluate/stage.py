"""Score the three models' answers, measure, and write what the evaluation found.

Pure over its inputs: the answers of base and student come from `predict`, the teacher's from the
teach stage, the scoring from the task.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from cluster.errors import DataError
from cluster.storage import Store, rows_table
from distill.config import EvaluateConfig
from distill.cost import Cost, self_hosted_cost, teacher_cost
from distill.evaluate import metrics
from distill.evaluate.report import write_markdown, write_report
from distill.evaluate.scoring import Score
from distill.records import PREDICTION, by_id
from distill.teach.config import AnyTeacher

EVALUATION_FILE = "evaluation.json"
PREDICTIONS_FOLDER = "predictions"
MODELS = ("base", "student", "teacher")

# What the report needs beyond the record: when a request began, why an answer lost.
SCHEMA = pa.schema([*PREDICTION, ("started_s", pa.float64()), ("reason", pa.string())])

Row = dict[str, Any]


def evaluate(
    run: Store,
    *,
    prompts: Sequence[Row],
    answers: dict[str, list[Row]],
    teacher_rows: Sequence[Row],
    score: Score,
    teacher: AnyTeacher,
    config: EvaluateConfig,
    model: str,
    teacher_is_reference: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Write predictions, `evaluation.json`, `evaluation.md`, `report.html`; return the first.

    `prompts`: rows of `records.PROMPT`, split test. `answers`: what `predict` returned for them.
    `teacher_rows`: rows of `records.COMPLETION` for the same prompts; one that is missing or has
    an error counts as wrong, unless the prompt has no `reference` of its own: it is then left out
    for all three and counted in `num_without_reference`. `teacher_is_reference` says that the
    right answers are the teacher's own (always so for prompts without reference), which makes its
    accuracy 1.0 by definition; the results say so. `model` names the student's base model, whose
    tokenizer counts a teacher's tokens where a price needs them and nobody recorded them.
    """
    taught = by_id([row for row in teacher_rows if not row["error"]])
    scorable = [p for p in prompts if p["reference"] or p["example_id"] in taught]
    if not scorable:
        raise DataError(
            "no held-out prompt has a reference or a teacher's answer to compare with: "
            "give the prompts a `reference` or let the teacher answer the test split."
        )
    answers = {**answers, "teacher": _teacher_answers(scorable, teacher_rows)}
    predictions = {
        name: _predictions(name, scorable, by_id(answers[name]), taught, score)
        for name in MODELS
        if name in answers
    }
    bootstrap = metrics.Bootstrap(len(scorable), samples=config.bootstrap_samples, seed=seed)
    models: dict[str, Row] = {}
    for name, rows in predictions.items():
        models[name] = metrics.model_metrics(rows, bootstrap)
        if name == "teacher":
            cost = _teacher_cost(teacher, rows, scorable, model)
        else:
            models[name]["requests_per_s"] = metrics.requests_per_s(rows)
            cost = self_hosted_cost(
                usd_per_hour=config.self_hosted_usd_per_hour,
                requests_per_s=models[name]["requests_per_s"],
                concurrency=config.concurrency,
            )
        models[name] |= {"usd_per_1k": cost.usd_per_1k, "cost_basis": cost.basis}
    ratio, ratio_interval = metrics.transfer_ratio(
        predictions["student"], predictions["teacher"], bootstrap
    )
    evaluation: Row = {
        "num_prompts": len(scorable),
        "num_without_reference": len(prompts) - len(scorable),
        "transfer_ratio": ratio,
        "transfer_ratio_ci95": ratio_interval,
        "models": models,
        "concurrency": config.concurrency,
        "max_tokens": config.max_tokens,
        "bootstrap_samples": config.bootstrap_samples,
        "seed": seed,
        "notes": _notes(
            models,
            config=config,
            teacher_is_reference=teacher_is_reference or not any(p["reference"] for p in scorable),
        ),
    }
    for name, rows in predictions.items():
        run.write_table(f"{PREDICTIONS_FOLDER}/{name}.parquet", rows_table(rows, SCHEMA))
    run.write_json(EVALUATION_FILE, evaluation)
    write_markdown(run, evaluation)
    write_report(run, prompts=by_id(scorable))
    return evaluation


def _teacher_answers(prompts: Sequence[Row], teacher_rows: Sequence[Row]) -> list[Row]:
    known = by_id(teacher_rows)
    missing = {"completion": "", "error": "the teacher gave no answer"}
    return [{**missing, **known.get(p["example_id"], p)} for p in prompts]


def _predictions(
    name: str,
    prompts: Sequence[Row],
    answers: dict[str, Row],
    taught: dict[str, Row],
    score: Score,
) -> list[Row]:
    rows = []
    for prompt in prompts:
        key = prompt["example_id"]
        if key not in answers:
            raise DataError(f"{name} has no answer for prompt {key}; run the evaluation again.")
        answer = answers[key]
        right = taught[key]["completion"] if key in taught else ""
        scored = score(answer["completion"], {**prompt, "teacher_completion": right})
        rows.append(
            {
                **answer,
                "model": name,
                "stratum": prompt["stratum"],
                "valid": scored.valid,
                "correct": scored.correct,
                "label": scored.label if scored.valid else "",
                "expected": scored.expected,
                "reason": answer["error"] or scored.reason,
                "prompt_tokens": answer.get("prompt_tokens"),
                "completion_tokens": answer.get("completion_tokens"),
                "latency_s": answer.get("latency_s"),
            }
        )
    return rows


def _teacher_cost(
    teacher: AnyTeacher,
    rows: Sequence[Row],
    prompts: Sequence[Row],
    model: str,
) -> Cost:
    answered = [row for row in rows if not row["error"]]
    if teacher.price is not None and answered and not all(r["prompt_tokens"] for r in answered):
        counted = _count_tokens(model, by_id(prompts), answered)
        cost = teacher_cost(
            teacher,
            mean_prompt_tokens=sum(n for n, _ in counted) / len(counted),
            mean_completion_tokens=sum(n for _, n in counted) / len(counted),
        )
        return Cost(cost.usd_per_1k, f"{cost.basis}; tokens counted by the student's tokenizer")
    known = bool(answered) and all(r["prompt_tokens"] for r in answered)
    return teacher_cost(
        teacher,
        mean_prompt_tokens=_mean(answered, "prompt_tokens") if known else None,
        mean_completion_tokens=_mean(answered, "completion_tokens") if known else None,
    )


def _count_tokens(
    model: str, prompts: dict[str, Row], rows: Sequence[Row]
) -> list[tuple[int, int]]:
    from transformers import AutoTokenizer

    from distill.train.encode import encode_prompt

    tokenizer = AutoTokenizer.from_pretrained(model)
    return [
        (
            len(encode_prompt(tokenizer, prompts[row["example_id"]]["messages"])),
            len(tokenizer(row["completion"], add_special_tokens=False)["input_ids"]),
        )
        for row in rows
    ]


def _mean(rows: Sequence[Row], name: str) -> float:
    return sum(row[name] for row in rows) / len(rows)


def _notes(
    models: dict[str, Row], *, config: EvaluateConfig, teacher_is_reference: bool
) -> list[str]:
    notes = [
        f"Latency and throughput were measured with {config.concurrency} requests in flight, "
        "base first, then the student on the same engine, answers of at most "
        f"{config.max_tokens} tokens."
    ]
    if teacher_is_reference:
        notes.append(
            "The teacher's answers are the reference, so its accuracy is 1.0 by definition and "
            "the transfer ratio is the student's accuracy."
        )
    if any(figures[name] in (0.0, 1.0) for figures in models.values() for name in SHARES):
        notes.append(
            "An interval around 0 or 1 collapses in a bootstrap; with n prompts the true share "
            "may still be up to 3/n away (rule of three)."
        )
    for name, figures in models.items():
        notes.append(f"Cost of {name}: {figures['cost_basis'].rstrip('.')}.")
        if figures["errors"]:
            notes.append(f"{figures['errors']} prompts got no answer from {name} (see predictions)")
    return notes


SHARES = ("schema_valid", "accuracy")
