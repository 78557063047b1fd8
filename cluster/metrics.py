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

TOKEN_BUCKETS_S = [
    0.001, 0.002, 0.005, 0.01, 0.015, 0.025, 0.04, 0.06, 0.1, 0.15, 0.25, 0.5, 1.0, 2.0, 5.0,
]  # fmt: skip
"""Seconds a generated token: an H100's milliseconds to a laptop's seconds."""

WAIT_BUCKETS_S = [
    0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0,
]  # fmt: skip
"""Seconds in which nothing is generated: queues and the gateway."""

MODEL_LABELS = ("adapter", "version", "route")
"""`adapter`: name, `base`, or `unknown`; `version`: `v3` or `-`; `route`: `chat`, `completions`,
`shadow`."""

SHADOW_ROUTE = "shadow"
"""Of answers that no client gets: no objective is for them."""

REQUEST_LATENCY = "distillery_request_latency_seconds"
TIME_TO_FIRST_TOKEN = "distillery_time_to_first_token_seconds"
TIME_PER_OUTPUT_TOKEN = "distillery_time_per_output_token_seconds"
QUEUE_SECONDS = "distillery_queue_seconds"
GATEWAY_OVERHEAD = "distillery_gateway_overhead_seconds"
REQUESTS = "distillery_requests_total"
SLO_SECONDS = "distillery_slo_p90_seconds"
SLO_MISSES = "distillery_slo_misses_total"
PROMPT_TOKENS = "distillery_prompt_tokens_total"
COMPLETION_TOKENS = "distillery_completion_tokens_total"
ERRORS = "distillery_errors_total"
IN_FLIGHT = "distillery_requests_in_flight"
ADAPTER_LOADS = "distillery_adapter_loads_total"
ADAPTER_LOAD_SECONDS = "distillery_adapter_load_seconds"
ADAPTER_SWAP_SECONDS = "distillery_adapter_swap_seconds"
RESIDENT_ADAPTERS = "distillery_resident_adapters"
REQUEST_LOG_DROPPED = "distillery_request_log_dropped_total"
REQUEST_LOG_MASKED = "distillery_request_log_masked_total"

MONITOR_LABELS = ("adapter",)
"""Of what `distillery monitor --metrics FILE` writes for node exporter's textfile collector."""

MONITOR_DRIFT = "distillery_monitor_drift"
MONITOR_PSI = "distillery_monitor_psi"
MONITOR_P_VALUE = "distillery_monitor_p_value"
MONITOR_SIGNAL_LABELS = (*MONITOR_LABELS, "signal")
MONITOR_ROWS = "distillery_monitor_rows"
MONITOR_VALID_RATIO = "distillery_monitor_valid_ratio"
MONITOR_TIME = "distillery_monitor_timestamp_seconds"
QUALITY_CHECKS = "distillery_quality_checks_total"
FALLBACK_STEPS = "distillery_fallback_steps_total"
FALLBACKS = "distillery_fallbacks_total"
TEACHER_USD = "distillery_teacher_usd_total"
SAVED_USD = "distillery_saved_usd_total"
ROUTED = "distillery_difficulty_routed_total"
SPLIT_WEIGHT = "distillery_split_weight_ratio"
SPLIT_REQUESTS = "distillery_split_requests"
CANARIES_ENDED = "distillery_canaries_ended_total"

TRAIN_LABELS = ("run",)
"""`run`: name of the run's folder."""

TRAIN_GAUGES = {
    "loss": ("distillery_train_loss", "Loss of the newest step, nats a token."),
    "validation_loss": (
        "distillery_train_validation_loss",
        "Newest loss on held-out records, nats a token.",
    ),
    "tokens_per_s": (
        "distillery_train_tokens_per_second",
        "Tokens a second of the newest step over all workers, without padding.",
    ),
    "grad_norm": ("distillery_train_grad_norm", "Global gradient norm before clipping."),
    "learning_rate": ("distillery_train_learning_rate", "Learning rate of the newest step."),
    "memory_mib": (
        "distillery_train_memory_mib",
        "Peak memory of rank 0, MiB: CUDA allocations, or the resident set on CPU.",
    ),
    "step": ("distillery_train_step", "Optimiser steps done."),
    "total_steps": ("distillery_train_total_steps", "Optimiser steps planned."),
}
"""Figure of a row of `curves.jsonl` -> gauge and its description."""

EXPORTED_PREFIX = "ray_"
"""What Ray puts before every name."""
