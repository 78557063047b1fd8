"""What is decided once the jury has spoken: verification, balance, contamination, and the card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from cluster.storage import Store, rows_table
from distill.config import CurateConfig, JudgeVerify
from distill.curate.balance import balance
from distill.curate.card import write_card
from distill.curate.config import ContaminationConfig
from distill.curate.contamination import (
    EvaluationText,
    evaluation_file,
    find_overlaps,
    overlap_report,
)
from distill.curate.diversity import Diversity, diversity
from distill.curate.multitask import MULTITASK, multitask_records
from distill.curate.rationales import check_rationales
from distill.curate.stage import SPLITS, Curated, embed_rows, write_curated
from distill.curate.text import part_text
from distill.curate.tokens import length_counter
from distill.judge.judges import build_judge
from distill.tasks.task import Task

CONTAMINATION_FILE = "contamination.json"
RATIONALES_FILE = "rationales.json"

Row = dict[str, Any]


def finish(
    curated: Curated,
    config: CurateConfig,
    *,
    accepted: Sequence[Row],
    answers: Sequence[Row],
    min_score: float,
    evaluation: Sequence[EvaluationText],
    task: Task,
    store: Store,
) -> list[Row]:
    """Take the last steps and return the rows that stay, training and validation.

    `curated` is what `curate` returned, `accepted` the rows that the jury kept, `answers` all rows
    before curation, `evaluation` what no training record may repeat. Balance, the cap on clusters
    and contamination concern training rows alone: a held-out set stays as it was drawn. Rewrites
    `curated/`, `rejected/` and `yield.json`; writes `dataset.json` and `dataset.html`,
    `contamination.json` where it is configured and, where there is reasoning,
    `rationales.json` and `multitask/`.
    Raises StageError when a split ends empty.
    """
    ids = {row["example_id"] for row in accepted}
    parts = {split: _part(curated, split) for split in SPLITS}
    for part in parts.values():
        part.drop(
            "jury",
            {
                place: f"no score of {min_score:g} or more; see verdicts/"
                for place, row in enumerate(part.kept)
                if row["example_id"] not in ids
            },
        )
        if config.min_verified is not None:
            part.drop("verification", _unverified(part.kept, config.min_verified, task=task))
    train = parts["train"]
    notes = _balance(train, config)
    found = _cap_clusters(train, config)
    if found is not None and found.note:
        notes.append(f"clusters: {found.note}")
    contamination = None
    if config.contamination is not None:
        contamination = _decontaminate(train, config.contamination, evaluation=evaluation)
        store.write_json(CONTAMINATION_FILE, contamination)
    reasoning = _check_reasoning(parts, task=task)
    report = write_curated(parts, store=store)
    if reasoning:
        store.write_json(RATIONALES_FILE, reasoning)
        for split, part in parts.items():
            records = multitask_records(part.kept, task=task)
            store.write_table(f"multitask/{split}.parquet", rows_table(records, MULTITASK))
    write_card(
        store,
        task=task,
        config=config,
        given=[row for row in answers if row["split"] == "train"],
        parts=parts,
        yields=report,
        diversity=found,
        contamination=contamination,
        notes=notes,
    )
    return [row for part in parts.values() for row in part.kept]


def _check_reasoning(parts: Mapping[str, Curated], *, task: Task) -> dict[str, Any]:
    found = {}
    for split, part in parts.items():
        part.kept, report = check_rationales(part.kept, task=task)
        if report is not None:
            found[split] = report
    return found


def _part(curated: Curated, split: str) -> Curated:
    return Curated(
        [row for row in curated.kept if row["split"] == split],
        [row for row in curated.rejected if row["split"] == split],
        [
            {name: value for name, value in step.items() if name != "split"}
            for step in curated.steps
            if step["split"] == split
        ],
        curated.vectors,
    )


def _unverified(rows: Sequence[Row], least: float, *, task: Task) -> dict[int, str]:
    if not rows:
        return {}
    verdicts = {row["example_id"]: row for row in build_judge(JudgeVerify(), task).judge(rows)}
    details = {}
    for place, row in enumerate(rows):
        verdict = verdicts[row["example_id"]]
        if verdict["score"] is None:
            details[place] = f"could not be verified: {verdict['error']}"
        elif verdict["score"] < least:
            why = verdict["reasoning"] or "no reason given"
            details[place] = f"score {verdict['score']:.2f}, at least {least:g}: {why}"
    return details


def _balance(part: Curated, config: CurateConfig) -> list[str]:
    if not config.balance:
        return []
    counter = length_counter(config.tokenizer)
    _, rejected, notes = balance(part.kept, config.balance, counter=counter)
    details = {row["example_id"]: row["detail"] for row in rejected}
    places = {row["example_id"]: place for place, row in enumerate(part.kept)}
    part.drop("balance", {places[name]: detail for name, detail in details.items()})
    return notes


def _cap_clusters(part: Curated, config: CurateConfig) -> Diversity | None:
    if config.diversity is None or not part.kept:
        return None
    known = all(row["example_id"] in part.vectors for row in part.kept)
    vectors = part.vectors if known else embed_rows(part.kept, config)
    rows = part.kept
    found = diversity(
        np.stack([vectors[row["example_id"]] for row in rows]),
        config.diversity,
        keys=[row["example_id"] for row in rows],
        texts=[part_text(row, config.embeddings.of) for row in rows],
    )
    details = {}
    for place, stays in enumerate(found.keep):
        cluster = found.clusters[found.labels[place]]
        if not stays:
            details[place] = (
                f"cluster {cluster.name} held {cluster.share:.0%} of the records; "
                f"{cluster.kept} of {cluster.size} stay"
            )
    part.drop("dominant_cluster", details)
    return found


def _decontaminate(
    part: Curated, config: ContaminationConfig, *, evaluation: Sequence[EvaluationText]
) -> dict[str, Any]:
    against = [*evaluation, *(text for file in config.files for text in evaluation_file(file))]
    overlaps = find_overlaps(part.kept, against, config)
    report = overlap_report(overlaps, num_records=len(part.kept), against=against, config=config)
    details = {overlap.example_id: overlap.detail for overlap in overlaps}
    rejects = config.action == "reject"
    part.drop(
        "contamination",
        {
            place: details[row["example_id"]]
            for place, row in enumerate(part.kept)
            if rejects and row["example_id"] in details
        },
    )
    return report
