"""Compare a window of the request log with the run's evaluation set, and say whether it drifted."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from cluster.masking import MaskingConfig, mask_texts
from distill.curate.config import EmbeddingsConfig
from distill.curate.embed import build_embed
from distill.curate.text import prompt_text
from distill.monitor.config import MonitorConfig
from distill.monitor.fields import compare_fields, flat
from distill.monitor.signals import (
    Signal,
    compare_categories,
    compare_embeddings,
    compare_numbers,
    judge_signals,
)
from distill.monitor.validity import over_time, proportion
from distill.monitor.window import Window
from distill.tasks.task import Task

SEVERITY = {"none": 0, "moderate": 1, "major": 2}
VALIDITY = "validity over time"

Row = dict[str, Any]


def reference_rows(
    prompts: Sequence[Row], predictions: Sequence[Row], *, masking: MaskingConfig | None = None
) -> list[Row]:
    """The evaluation set as the log would hold it: masked, with the student's answers.

    `prompts` are of split test, `predictions` the student's; a prompt without an answer is out.
    `masking` is the server's: what the log shows as `<EMAIL_1>` must not look like drift.
    """
    said = {row["example_id"]: row for row in predictions if not row["error"]}
    found = []
    for prompt in prompts:
        if prompt["example_id"] not in said:
            continue
        contents = [message["content"] for message in prompt["messages"]]
        *contents, completion = mask_texts(
            [*contents, said[prompt["example_id"]]["completion"]], masking
        )[0]
        messages = [
            {**message, "content": content}
            for message, content in zip(prompt["messages"], contents, strict=True)
        ]
        found.append({"messages": messages, "completion": completion})
    return found


def monitor(
    task: Task,
    config: MonitorConfig,
    *,
    reference: Sequence[Row],
    window: Window,
    embeddings: EmbeddingsConfig,
    min_valid: float | None = None,
) -> Row:
    """Return what `monitor.json` holds.

    `reference` is what `reference_rows` returned; `min_valid` is the gate on valid answers: the
    window has drifted too when the upper end of its interval is below. The verdict is
    `not_enough_rows`, `none`, `moderate` or `major`.
    """
    current = [{"messages": r["messages"], "completion": r["student"]} for r in window.rows]
    answers = [[task.parse(row["completion"]).answer for row in rows] for rows in
               (reference, current)]  # fmt: skip
    # What went elsewhere was asked all the same: without it the hard prompts would seem to be gone.
    asked = [*current, *window.routed]
    signals = _signals(task, config, reference, current, answers, embeddings, asked=asked)
    judge_signals(
        signals,
        min_rows=config.min_rows,
        alpha=config.alpha,
        moderate=config.psi_moderate,
        major=config.psi_major,
    )
    valid = [[answer is not None for answer in found] for found in answers]
    known, now = valid
    time = over_time(
        [row["created_at"] for row in window.rows],
        now,
        reference=(sum(known), len(known)),
        alpha=config.alpha,
    )
    enough = min(len(reference), len(current)) >= config.min_rows
    report: Row = {
        "verdict": "not_enough_rows",
        "drifted": [],
        "num_reference": len(reference),
        "num_rows": window.num_rows,
        "num_compared": len(current),
        "left_out": window.left_out,
        "versions": window.versions,
        "since": window.since.isoformat() if window.since else None,
        "until": window.until.isoformat() if window.until else None,
        "first": window.rows[0]["created_at"].isoformat() if window.rows else None,
        "last": window.rows[-1]["created_at"].isoformat() if window.rows else None,
        "settings": config.model_dump(mode="json"),
        "validity": {
            "reference": proportion(sum(known), len(known)) if known else None,
            "current": proportion(sum(now), len(now)) if now else None,
            "gate": min_valid,
            **time,
        },
        "signals": [asdict(signal) for signal in signals],
    }
    if enough:
        _judge(report, min_valid=min_valid)
    return report


def _signals(
    task: Task,
    config: MonitorConfig,
    reference: Sequence[Row],
    current: Sequence[Row],
    answers: Sequence[Sequence[Row | None]],
    embeddings: EmbeddingsConfig,
    *,
    asked: Sequence[Row],
) -> list[Signal]:
    both = (reference, current)
    prompts = [[prompt_text(row) for row in rows] for rows in (reference, asked)]
    said = [[row["completion"] for row in rows] for rows in both]
    found = []
    for name, (ours, theirs) in {"prompt": prompts, "completion": said}.items():
        lengths = [[float(len(text)) for text in texts] for texts in (ours, theirs)]
        found.append(compare_numbers(f"{name}.characters", *lengths, bins=config.bins))
    embed = build_embed(embeddings)
    for name, (ours, theirs) in {"prompt": prompts, "completion": said}.items():
        # TF-IDF is fitted to what it embeds: both sides together, or they could not be compared.
        vectors = embed([*ours, *theirs]) if ours and theirs else np.zeros((0, 1))
        found.append(
            compare_embeddings(
                f"{name}.embedding",
                vectors[: len(ours)],
                vectors[len(ours) :] if ours and theirs else vectors,
                clusters=config.clusters,
                permutations=config.permutations,
                seed=config.seed,
            )
        )
    labels = [["invalid" if answer is None else "valid" for answer in part] for part in answers]
    found.append(compare_categories("answer is valid", *labels, seed=config.seed))
    if task.spec.output.format == "json":
        fields = [[flat(answer) for answer in part if answer is not None] for part in answers]
        found += compare_fields(
            *fields,
            prefix="answer",
            bins=config.bins,
            max_categories=config.max_categories,
            seed=config.seed,
        )
    return found


def _judge(report: Row, *, min_valid: float | None) -> None:
    """Put the verdict and the reasons into the report."""
    drifted = [
        {"signal": s["name"], "change": s["verdict"], "psi": s["psi"], "p": s["p_adjusted"]}
        for s in report["signals"]
        if SEVERITY.get(s["verdict"], 0)
    ]
    validity = report["validity"]
    current = validity["current"]
    if min_valid is not None and current and current["ci95"][1] < min_valid:
        drifted.append({"signal": "valid answers below the gate", "change": "major"})
    if any(period["worse"] for period in validity["periods"]):
        drifted.append({"signal": VALIDITY, "change": "moderate"})
    report["drifted"] = drifted
    report["verdict"] = max((d["change"] for d in drifted), key=SEVERITY.__getitem__,
                            default="none")  # fmt: skip
