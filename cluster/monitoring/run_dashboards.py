"""The dashboards of what is no request: training, and data that drifts or is made."""

from __future__ import annotations

from collections.abc import Iterable

from cluster import metrics as names
from cluster.metrics import EXPORTED_PREFIX as RAY
from cluster.monitoring.grafana_json import Dashboard, Panel, Query, graph, stat
from cluster.monitoring.promql import NONE_YET

OF_RUN = 'run="$run"'


def _training() -> Iterable[Panel]:
    titles = {
        "loss": ("Training loss", "short"), "validation_loss": ("Held-out loss", "short"),
        "tokens_per_s": ("Tokens a second", "short"), "grad_norm": ("Gradient norm", "short"),
        "learning_rate": ("Learning rate", "sci"), "memory_mib": ("Peak memory", "mbytes"),
    }  # fmt: skip
    gauge = {field: f"{RAY}{name}" for field, (name, _) in names.TRAIN_GAUGES.items()}
    step, total = (f"max({gauge[field]}{{{OF_RUN}}})" for field in ("step", "total_steps"))
    yield stat("Done", f"{step} / {total}", "percentunit")
    for field in ("loss", "validation_loss", "tokens_per_s"):
        yield stat(f"{titles[field][0]}, now", f"max({gauge[field]}{{{OF_RUN}}})", titles[field][1])
    for field, (title, unit) in titles.items():
        text = names.TRAIN_GAUGES[field][1]
        yield graph(title, Query(f"max by (run) ({gauge[field]}{{{OF_RUN}}})", "{{run}}"),
                    unit=unit, text=text)  # fmt: skip
    yield graph(
        "Processors",
        Query(f"avg by (instance) ({RAY}node_cpu_utilization)", "{{instance}} CPU, %"),
        Query(f"avg by (instance) ({RAY}node_gpus_utilization)", "{{instance}} GPU, %"),
    )
    yield graph(
        "Nodes' memory",
        Query(f"sum by (instance) ({RAY}node_mem_used)", "{{instance}}"),
        Query(f"sum by (instance) ({RAY}node_gram_used) * 1048576", "{{instance}} GPU"),
        unit="bytes",
    )


TRAINING = Dashboard(
    "distillery-training",
    "Distillery: training",
    tuple(_training()),
    variables=(("run", f"{RAY}{names.TRAIN_GAUGES['loss'][0]}"),),
)

DATA = Dashboard(
    "distillery-data",
    "Distillery: data",
    (
        stat("Drift", f"max({names.MONITOR_DRIFT})", text="0 none, 1 moderate, 2 major."),
        stat("Valid answers in the log", f"min({names.MONITOR_VALID_RATIO})", "percentunit"),
        stat("Since the monitor looked", f"time() - max({names.MONITOR_TIME})", "s"),
        stat("Rows of the log lost, 1 d",
             f"sum(increase({RAY}{names.REQUEST_LOG_DROPPED}[1d])) {NONE_YET}"),
        graph("Population stability index",
              Query(f"max by (adapter, signal) ({names.MONITOR_PSI})", "{{adapter}} {{signal}}"),
              most=0.25, text="Of each signal against the evaluation set."),
        graph("p-value, corrected",
              Query(f"min by (adapter, signal) ({names.MONITOR_P_VALUE})",
                    "{{adapter}} {{signal}}")),
        graph("Drift by adapter",
              Query(f"max by (adapter) ({names.MONITOR_DRIFT})", "{{adapter}}")),
        graph("Requests that were compared",
              Query(f"max by (adapter) ({names.MONITOR_ROWS})", "{{adapter}}")),
        graph("Personal data masked, by kind",
              Query(f"sum by (kind) (increase({RAY}{names.REQUEST_LOG_MASKED}[5m])) {NONE_YET}",
                    "{{kind}}")),
        graph("Rows out of Ray Data",
              Query(f"sum by (dataset, operator) (rate({RAY}data_output_rows[1m]))",
                    "{{dataset}} {{operator}}"), text="A second: prompts, answers, verdicts."),
        graph("Ray Data's memory",
              Query(f"sum by (dataset) ({RAY}data_current_bytes)", "{{dataset}} held"),
              Query(f"sum by (dataset) ({RAY}data_spilled_bytes)", "{{dataset}} spilled"),
              unit="bytes"),
        graph("Processors in use by Ray Data",
              Query(f"sum by (dataset) ({RAY}data_cpu_usage_cores)", "{{dataset}} CPU"),
              Query(f"sum by (dataset) ({RAY}data_gpu_usage_cores)", "{{dataset}} GPU")),
    ),
)  # fmt: skip
