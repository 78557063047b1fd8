"""Metric names, labels and buckets: what Prometheus rules and dashboards may rely on.

Ray's metrics agent exports each under `ray_<name>`.
"""

from __future__ import annotations

LATENCY_BUCKETS_S = [
    0.01, 0.02, 0.05, 0.1, 0.2, 0.35, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5,
    10.0, 15.0, 20.0, 30.0, 45.0, 60.0, 90.0, 120.0,
]  # fmt: skip
"""10 ms to 120 s, at most 2.5-fold apart: a P90 read from them is off by little."""

LOAD_BUCKETS_S = [0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0]
"""Seconds to load an adapter on every replica."""

MODEL_LABELS = ("adapter", "version", "route")
"""`adapter`: name, `base`, or `unknown`; `version`: `v3` or `-`; `route`: `chat`, `completions`."""

REQUEST_LATENCY = "distillery_request_latency_seconds"
TIME_TO_FIRST_TOKEN = "distillery_time_to_first_token_seconds"
REQUESTS = "distillery_requests_total"
PROMPT_TOKENS = "distillery_prompt_tokens_total"
COMPLETION_TOKENS = "distillery_completion_tokens_total"
ERRORS = "distillery_errors_total"
IN_FLIGHT = "distillery_requests_in_flight"
ADAPTER_LOADS = "distillery_adapter_loads_total"
ADAPTER_LOAD_SECONDS = "distillery_adapter_load_seconds"
REQUEST_LOG_DROPPED = "distillery_request_log_dropped_total"

EXPORTED_PREFIX = "ray_"
"""What Ray puts before every name."""
