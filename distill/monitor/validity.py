"""Which share of the answers the task's parser accepts, and how that goes over time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from datetime import datetime, timedelta
from typing import Any

from scipy import stats

HOURLY_UP_TO = timedelta(days=3)
PERIOD_ROWS = 5
"""Fewer answers in a period are shown, and not judged."""
CONFIDENCE = 0.95

Row = dict[str, Any]


def proportion(num_valid: int, num_rows: int) -> Row:
    """Return the share with its 95% Wilson interval (Wilson 1927)."""
    interval = stats.binomtest(num_valid, num_rows).proportion_ci(CONFIDENCE, method="wilson")
    return {
        "num_rows": num_rows,
        "num_valid": num_valid,
        "share": num_valid / num_rows,
        "ci95": [float(interval.low), float(interval.high)],
    }


def over_time(
    at: Sequence[datetime], valid: Sequence[bool], *, reference: tuple[int, int], alpha: float
) -> Row:
    """Return the share by hour (windows up to three days) or day, oldest first.

    A period is `worse` when fewer answers are valid than in the `reference` (valid, all) by
    Fisher's exact test, corrected for the number of periods (Benjamini–Hochberg); one of fewer
    than 5 rows is not judged (`None`).
    """
    if not at:
        return {"unit": "hour", "periods": []}
    unit = "hour" if max(at) - min(at) <= HOURLY_UP_TO else "day"
    groups: dict[datetime, list[bool]] = defaultdict(list)
    for moment, is_valid in zip(at, valid, strict=True):
        start = moment.replace(minute=0, second=0, microsecond=0)
        groups[start if unit == "hour" else start.replace(hour=0)].append(is_valid)
    periods = [
        {"start": start.isoformat(), **proportion(sum(found), len(found)), "worse": None}
        for start, found in sorted(groups.items())
    ]
    judged = [period for period in periods if period["num_rows"] >= PERIOD_ROWS]
    if judged and reference[1]:
        p_values = [_fewer(period, reference) for period in judged]
        adjusted = stats.false_discovery_control(p_values, method="bh")
        for period, p_adjusted in zip(judged, adjusted, strict=True):
            period |= {"p_adjusted": float(p_adjusted), "worse": bool(p_adjusted <= alpha)}
    return {"unit": unit, "periods": periods}


def _fewer(period: Row, reference: tuple[int, int]) -> float:
    num_valid, num_rows = reference
    table = [
        [period["num_valid"], period["num_rows"] - period["num_valid"]],
        [num_valid, num_rows - num_valid],
    ]
    return float(stats.fisher_exact(table, alternative="less").pvalue)
