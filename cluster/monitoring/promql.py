"""The queries that dashboards repeat."""

from __future__ import annotations

from cluster.metrics import EXPORTED_PREFIX as RAY
from cluster.monitoring.grafana_json import Query

NONE_YET = "or vector(0)"
"""What is rightly absent until it first happens is drawn as nothing, not as missing data."""


def rate(metric: str, labels: str = "", *, by: str = "", over: str = "5m") -> str:
    """Return the PromQL of a counter's rate a second, summed by labels."""
    return f"sum{f' by ({by})' if by else ''} (rate({RAY}{metric}{{{labels}}}[{over}]))"


def quantile(metric: str, share: float, labels: str, *, by: str) -> str:
    """Return the PromQL of a histogram's quantile."""
    return f"histogram_quantile({share}, {rate(f'{metric}_bucket', labels, by=f'{by}, le')})"


def quantile_since_start(metric: str, share: float, labels: str, *, by: str) -> str:
    """Return the quantile of all there was: of what is too rare for a rate over minutes."""
    buckets = f"{RAY}{metric}_bucket{{{labels}}}"
    return f"histogram_quantile({share}, sum by ({by}, le) ({buckets}))"


def quantiles(record: str, labels: str = "", legend: str = "") -> tuple[Query, ...]:
    """Return P50, P90 and P99 as rules.yml records them."""
    return tuple(
        Query(f"distillery:{record}:{p}{{{labels}}}", f"{legend}{p.upper()}")
        for p in ("p50", "p90", "p99")
    )
