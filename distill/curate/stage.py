"""Curate the answers: checks and duplicates before the jury, cheapest first; both sides are kept.

What is decided after the jury (verification, balance, contamination) is in `finish.py`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from cluster.errors import ConfigError, StageError
from cluster.storage import Store, digest_of, rows_table
from distill.config import CurateConfig
from distill.curate.checks import checks
from distill.curate.contamination import evaluation_file
from distill.curate.embed import build_embed, check_model_folder
from distill.curate.text import part_text
from distill.records import COMPLETION, REJECTED
from distill.tasks.task import Task

SPLITS = ("train", "validation")
YIELD_FILE = "yield.json"
# Below this, starting the tasks takes longer than the hashing.
WORTH_RAY_ROWS = 50_000

Row = dict[str, Any]


@dataclass
class Curated:
    """What was kept, what was rejected and why, and the yield of each step."""

    kept: list[Row] = field(default_factory=list)
    rejected: list[Row] = field(default_factory=list)
    steps: list[Row] = field(default_factory=list)
    """`{"check", "rows_in", "rows_out", "share"}`; share is rows_out ÷ rows_in."""
    vectors: dict[str, np.ndarray] = field(default_factory=dict)
    """Embeddings by `example_id`, float32 (D,), where a step needed them."""

    def drop(self, reason: str, details: Mapping[int, str]) -> None:
        """Do one step: move the kept rows at these places to the rejected ones and count."""
        rows_in = len(self.kept)
        self.rejected += [
            {**self.kept[place], "reason": reason, "detail": detail}
            for place, detail in details.items()
        ]
        self.kept = [row for place, row in enumerate(self.kept) if place not in details]
        share = round(len(self.kept) / rows_in, 4) if rows_in else None
        self.steps.append(
            {"check": reason, "rows_in": rows_in, "rows_out": len(self.kept), "share": share}
        )


def check_curation(config: CurateConfig, task: Task) -> None:
    """Fail now on what would fail after the jury was paid; raises ConfigError or DataError."""
    checks(config, task)
    if config.min_verified is not None and not task.spec.verify:
        raise ConfigError(
            f"curate.min_verified {config.min_verified}: the task {task.name!r} has no `verify` "
            "function to run; add one to its task.toml or take the setting out."
        )
    if config.embeddings.model:
        check_model_folder(config.embeddings.model)
    for file in config.contamination.files if config.contamination else ():
        list(evaluation_file(file))


def curate_rows(
    rows: Sequence[Row], config: CurateConfig, *, task: Task, on_ray: bool = False
) -> Curated:
    """Run every check over all rows that passed the ones before; the first failure is the reason.

    Of duplicates the first row stays, so rows must come in a stable order. `on_ray` lets large
    numbers of them be hashed by Ray tasks.
    """
    result = Curated(list(rows))
    for reason, check in checks(config, task):
        found = ((place, check(row)) for place, row in enumerate(result.kept))
        result.drop(reason, {place: detail for place, detail in found if detail is not None})
    result.drop("duplicate", _exact_duplicates(result.kept))
    if config.near_duplicates is not None:
        result.drop("near_duplicate", _near_duplicates(result.kept, config, on_ray=on_ray))
    if config.semantic_duplicates is not None:
        result.vectors = embed_rows(result.kept, config)
        result.drop("semantic_duplicate", _semantic_duplicates(result, config))
    return result


def curate(
    answers: Sequence[Row], config: CurateConfig, *, task: Task, store: Store, on_ray: bool = False
) -> Curated:
    """Write `curated/<split>.parquet`, `rejected/<split>.parquet` and `yield.json`.

    Raises StageError, with the yield, when a split ends empty.
    """
    check_curation(config, task)
    result = Curated()
    parts = {}
    for split in SPLITS:
        rows = [row for row in answers if row["split"] == split]
        part = parts[split] = curate_rows(rows, config, task=task, on_ray=on_ray)
        result.kept += part.kept
        result.rejected += part.rejected
        result.steps += [{"split": split, **step} for step in part.steps]
        result.vectors |= part.vectors
    write_curated(parts, store=store)
    return result


def write_curated(parts: Mapping[str, Curated], *, store: Store) -> dict[str, Any]:
    """Write both sides of every split and `yield.json`; return the latter.

    Raises StageError, with the reasons, when a split ends empty.
    """
    report: dict[str, Any] = {}
    for split, part in parts.items():
        report[split] = {
            "rows_in": len(part.kept) + len(part.rejected),
            "rows_out": len(part.kept),
            "rejected": dict(Counter(row["reason"] for row in part.rejected).most_common()),
            "steps": part.steps,
        }
        store.write_table(f"curated/{split}.parquet", rows_table(part.kept, COMPLETION))
        store.write_table(f"rejected/{split}.parquet", rows_table(part.rejected, REJECTED))
    store.write_json(YIELD_FILE, report)
    empty = [split for split, part in report.items() if not part["rows_out"]]
    if empty:
        raise StageError(
            f"nothing of {' and '.join(empty)} passed the checks: "
            f"{ {split: report[split]['rejected'] for split in empty} }; rejected/ has every row."
        )
    return report


def embed_rows(rows: Sequence[Row], config: CurateConfig) -> dict[str, np.ndarray]:
    """Return the rows' embeddings by `example_id`, float32 (D,)."""
    texts = [part_text(row, config.embeddings.of) for row in rows]
    if not texts:
        return {}
    vectors = build_embed(config.embeddings)(texts)
    return {row["example_id"]: vector for row, vector in zip(rows, vectors, strict=True)}


def _exact_duplicates(rows: Sequence[Row]) -> dict[int, str]:
    first: dict[str, str] = {}
    found = {}
    for place, row in enumerate(rows):
        # The same prompt and answer but for case and white space teaches nothing twice.
        key = digest_of([[m["content"] for m in row["messages"]], _plain(row["completion"])])
        original = first.setdefault(key, row["example_id"])
        if original != row["example_id"]:
            found[place] = f"same as {original}"
    return found


def _near_duplicates(rows: Sequence[Row], config: CurateConfig, *, on_ray: bool) -> dict[int, str]:
    from distill.curate.near import band_keys, band_keys_on_ray, near_duplicates

    wanted = config.near_duplicates
    assert wanted is not None
    texts = [part_text(row, wanted.of) for row in rows]
    hashed = band_keys_on_ray if on_ray and len(texts) >= WORTH_RAY_ROWS else band_keys
    details = {}
    for found in near_duplicates(texts, wanted, keys=hashed(texts, wanted)):
        detail = f"similarity {found.similarity:.3f} to {rows[found.kept]['example_id']}"
        if found.similarity < wanted.threshold:
            nearest = rows[found.nearest]["example_id"]
            detail += f", {found.nearest_similarity:.3f} to {nearest} of the same cluster"
        details[found.index] = detail
    return details


def _semantic_duplicates(result: Curated, config: CurateConfig) -> dict[int, str]:
    from distill.curate.diversity import semantic_duplicates

    wanted = config.semantic_duplicates
    assert wanted is not None
    rows = result.kept
    if not rows:
        return {}
    vectors = np.stack([result.vectors[row["example_id"]] for row in rows])
    return {
        found.index: f"cosine {found.cosine:.3f} to {rows[found.kept]['example_id']}"
        for found in semantic_duplicates(vectors, threshold=wanted.threshold)
    }


def _plain(text: str) -> str:
    return " ".join(text.split()).casefold()
