"""The dataset card: `dataset.json` for machines, `dataset.html` for people, nothing beside it."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from cluster.storage import Store, digest_of
from distill.config import CurateConfig
from distill.curate.balance import group_of
from distill.curate.diversity import Diversity, under_represented
from distill.curate.scatter import scatter
from distill.curate.stage import Curated
from distill.curate.tokens import LengthCounter, length_counter
from distill.evaluate.report import page_environment
from distill.tasks.task import Task

CARD_FILE = "dataset.json"
PAGE_FILE = "dataset.html"
TEMPLATE = "dataset.html.j2"
EXAMPLES_PER_REASON = 3
MOST_LISTED = 200
MOST_BARS = 40
MOST_BINS = 14

Row = dict[str, Any]


def write_card(
    store: Store,
    *,
    task: Task,
    config: CurateConfig,
    given: Sequence[Row],
    parts: Mapping[str, Curated],
    yields: dict[str, Any],
    diversity: Diversity | None,
    contamination: dict[str, Any] | None,
    notes: Sequence[str],
) -> dict[str, Any]:
    """Write `dataset.json` and `dataset.html`; return the former.

    `given` are the training rows before curation, `parts` the outcome of every split.
    """
    from markupsafe import Markup

    kept = {split: part.kept for split, part in parts.items()}
    rows = [row for part in kept.values() for row in part]
    counter = length_counter(config.tokenizer)
    by = [*(("stratum",) if any(row["stratum"] for row in rows) else ()), *config.strata]
    card: dict[str, Any] = {
        "task": task.name,
        "task_digest": task.digest,
        "dataset_digest": dataset_digest(rows),
        "teachers": sorted({row["teacher"] for row in rows}),
        "num_records": len(rows),
        "unit": counter.unit,
        "splits": {split: _lengths(part, counter) for split, part in kept.items()},
        "yield": yields,
        "failure_modes": _failure_modes(parts),
        "distributions": {name: _distribution(kept["train"], name, counter) for name in by},
        "completion_lengths": _histogram(kept["train"], counter),
        "under_represented": under_represented(kept["train"], given, by, counter=counter),
        "diversity": _diversity(diversity),
        "contamination": contamination,
        "notes": list(notes),
    }
    store.write_json(CARD_FILE, card)
    picture = _picture(diversity) if diversity is not None else ""
    page = (
        page_environment(Path(__file__).parent)
        .get_template(TEMPLATE)
        .render(card=card, picture=Markup(picture), most_listed=MOST_LISTED, most_bars=MOST_BARS)
    )
    store.write_bytes(PAGE_FILE, page.encode())
    return card


def dataset_digest(rows: Sequence[Row]) -> str:
    """SHA-256 (hex) of what would be trained on: split, prompt and answer, whatever the order."""
    return digest_of(
        sorted(
            [row["split"], row["example_id"], row["messages"], row["completion"]] for row in rows
        )
    )


def _lengths(rows: Sequence[Row], counter: LengthCounter) -> dict[str, Any]:
    """Totals over prompts and completions, and the spread of the completions' lengths."""
    prompts = [sum(counter.count(m["content"]) for m in row["messages"]) for row in rows]
    completions = np.array([counter.count(row["completion"]) for row in rows])
    return {
        "num_records": len(rows),
        "prompt_total": sum(prompts),
        "prompt_mean": sum(prompts) / len(rows),
        "completion_total": int(completions.sum()),
        "completion_mean": float(completions.mean()),
        "completion_p50": float(np.percentile(completions, 50)),
        "completion_p95": float(np.percentile(completions, 95)),
        "completion_max": int(completions.max()),
    }


def _failure_modes(parts: Mapping[str, Curated]) -> list[dict[str, Any]]:
    """Reasons of the rejects over all splits, commonest first, with a few examples each."""
    by_reason: dict[str, list[Row]] = defaultdict(list)
    for part in parts.values():
        for row in part.rejected:
            by_reason[row["reason"]].append(row)
    total = sum(len(part.kept) + len(part.rejected) for part in parts.values())
    return [
        {
            "reason": reason,
            "count": len(rows),
            "share": len(rows) / total,
            "examples": [
                {"example_id": row["example_id"], "split": row["split"], "detail": row["detail"]}
                for row in rows[:EXAMPLES_PER_REASON]
            ],
        }
        for reason, rows in sorted(by_reason.items(), key=lambda entry: -len(entry[1]))
    ]


def _distribution(rows: Sequence[Row], by: str, counter: LengthCounter) -> dict[str, int]:
    return dict(Counter(group_of(row, by, counter=counter) for row in rows).most_common())


def _histogram(rows: Sequence[Row], counter: LengthCounter) -> dict[str, int]:
    """Counts of the answers' lengths in up to `MOST_BINS` ranges of one round width."""
    sizes = [counter.count(row["completion"]) for row in rows]
    low, high = min(sizes), max(sizes)
    widths = (f * 10**e for e in range(9) for f in (1, 2, 5))
    width = next(w for w in widths if high // w - low // w < MOST_BINS)
    counts = Counter(size // width for size in sizes)
    return {
        f"{n * width}–{n * width + width - 1}" if width > 1 else str(n): counts[n]
        for n in range(low // width, high // width + 1)
    }


def _diversity(found: Diversity | None) -> dict[str, Any] | None:
    if found is None:
        return None
    return {
        "verdict": found.verdict,
        "reason": found.reason,
        "num_records": len(found.labels),
        "num_kept": sum(found.keep),
        "explained_variance": found.explained,
        "clusters": [asdict(cluster) for cluster in found.clusters],
    }


def _picture(found: Diversity) -> str:
    first, second = found.explained
    return scatter(
        found.coordinates,
        found.labels,
        found.keep,
        names=[cluster.name for cluster in found.clusters],
        axes=(
            f"first principal component ({first:.0%} of the variance)",
            f"second ({second:.0%})",
        ),
        title="Training records by their first two principal components",
    )
