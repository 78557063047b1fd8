"""`distillery capacity`: replicas, P90 and dollars for some traffic, and the cheapest setting."""

from __future__ import annotations

import asyncio
import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from cluster.config import ClusterConfig, StrictModel, load_config
from cluster.errors import ConfigError
from cluster.prices import ACCELERATOR_USD_PER_HOUR
from jobs.capacity_report import Report, check_plot, print_report, report_dict, save_plot
from jobs.client import KEY_ENV
from jobs.config import load_run_config
from jobs.display import Display
from serve.autoscale import Scaling
from serve.capacity.curve import ServiceCurve, read_curve, round_up
from serve.capacity.search import Search
from serve.capacity.simulate import Outcome, Site
from serve.capacity.trace import Trace, busiest_per_s, read_trace, scaled, synthetic
from serve.config import ServeConfig

MAX_REPLICAS = 10_000


class _Sections(StrictModel):
    """The sections of a run that capacity reads, for those who have no run yet."""

    serve: ServeConfig = ServeConfig()
    cluster: ClusterConfig = ClusterConfig()


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line says beside the configuration."""

    trace: str | None = None
    rate: float | None = None
    daily_peak: float | None = None
    hours: float = 24.0
    scale: float = 1.0
    curve: str | None = None
    startup_s: float | None = None
    usd_per_hour: float | None = None
    margin: float = 0.1
    search: bool = True
    plot: str | None = None
    seed: int = 0


def capacity_run(
    files: Sequence[str | Path], *, overrides: Sequence[str] = (), asked: Asked, as_json: bool
) -> int:
    """Simulate and print; returns 0 if some setting holds the objective, or none was asked for.

    Without `serve.slo_p90_s` there is no objective and nothing is searched.
    """
    sections = _sections(files, overrides)
    config = sections.serve
    if asked.curve is None:
        raise ConfigError(
            "--curve: give the JSON that `distillery capacity --measure URL --model NAME` wrote"
        )
    if asked.plot:
        check_plot(asked.plot)
    curve = read_curve(asked.curve)
    trace = _traffic(asked)
    site = Site(
        curve=curve,
        max_ongoing_requests=config.max_ongoing_requests,
        max_queued_requests=config.max_queued_requests,
        request_timeout_s=config.request_timeout_s,
        startup_s=asked.startup_s,
        seed=asked.seed,
    )
    display = _display()
    with display.step("simulate") as progress:

        def told(number: int, outcome: Outcome) -> None:
            progress.update(number, 0, f"{number} settings")

        began = time.monotonic()
        search = Search(trace, site, slo_p90_s=config.slo_p90_s * (1 - asked.margin), told=told)
        configured = search.outcome(_scaling(config))
        cheapest = fixed = None
        if asked.search and config.slo_p90_s:
            most = config.max_replicas or _most_replicas(trace, curve, config)
            begin = _scaling(config.model_copy(update={"max_replicas": most}))
            fixed = search.fixed(most)
            cheapest = search.cheapest(begin)
    report = Report(
        trace=trace,
        site=site,
        slo_p90_s=config.slo_p90_s,
        margin=asked.margin,
        usd_per_hour=_price(asked, sections.cluster.accelerator),
        configured=configured,
        cheapest=cheapest,
        fixed=fixed,
        settings=len(search.tried),
        seconds=time.monotonic() - began,
    )
    if asked.plot:
        save_plot(report, asked.plot)
    if as_json:
        print(json.dumps(report_dict(report), indent=2))
    else:
        print_report(report, display)
        if asked.plot:
            display.say(f"plot      {asked.plot}")
    return 0 if report.held else ConfigError.exit_code


def measure_run(
    url: str, *, model: str, out: str, concurrency: Sequence[int], startup_s: float | None,
    **settings: Any,
) -> None:  # fmt: skip
    """Measure a curve and write it to `out`."""
    from cluster.storage import folder_and_name
    from serve.capacity.measure import CONCURRENCIES, measure_curve

    display = Display()
    curve = asyncio.run(
        measure_curve(
            url,
            model=model,
            api_key=os.environ.get(KEY_ENV) or "none",
            concurrencies=list(concurrency) or CONCURRENCIES,
            told=lambda point: display.say(
                f"{point.concurrency:>3} at once  {point.seconds_per_request:.2f} s a request, "
                f"P90 {point.p90_s:.2f} s, {point.tokens_per_s:.1f} tokens/s "
                f"({point.requests} requests)"
            ),
            **settings,
        )
    )
    if startup_s is not None:
        curve = curve.model_copy(update={"startup_s": startup_s})
    store, name = folder_and_name(out)
    store.write_json(name, curve.model_dump())
    display.say(f"written to {out}; of one replica, if the server has one")


def _display() -> Display:
    console = Console(highlight=False)
    # Tables stay whole where the output is a file.
    return Display(console if console.is_terminal else Console(highlight=False, width=110))


def _sections(files: Sequence[str | Path], overrides: Sequence[str]) -> _Sections:
    if files:
        run = load_run_config(files, overrides=overrides)
        return _Sections(serve=run.serve, cluster=run.cluster)
    return load_config(_Sections, [], overrides=overrides)


def _traffic(asked: Asked) -> Trace:
    if (asked.trace is None) == (asked.rate is None):
        raise ConfigError(
            "give the traffic once: --trace FILE, or --rate REQUESTS_PER_SECOND (and --daily-peak)"
        )
    if asked.trace is not None:
        trace = read_trace(asked.trace)
    else:
        assert asked.rate is not None
        trace = synthetic(
            rate=asked.rate, daily_peak=asked.daily_peak, hours=asked.hours, seed=asked.seed
        )
    return trace if asked.scale == 1.0 else scaled(trace, asked.scale, seed=asked.seed)


def _scaling(config: ServeConfig) -> Scaling:
    if not config.max_replicas:
        count = config.replicas
        return Scaling(min_replicas=count, max_replicas=count, target_ongoing_requests=1.0)
    return Scaling(**config.model_dump(include=set(Scaling.__dataclass_fields__)))


def _most_replicas(trace: Trace, curve: ServiceCurve, config: ServeConfig) -> int:
    """Return four times what the busiest five minutes need at full speed, and at least eight."""
    work_s = curve.work_s(trace.prompt_tokens, trace.completion_tokens, count=len(trace))
    per_replica = curve.requests_per_s(config.max_ongoing_requests)
    share = float(work_s.mean()) / curve.alone_s
    needed = round_up(busiest_per_s(trace) * share / per_replica)
    return min(MAX_REPLICAS, max(8, 4 * needed))


def _price(asked: Asked, accelerator: str | None) -> float | None:
    if asked.usd_per_hour is not None:
        return asked.usd_per_hour
    return ACCELERATOR_USD_PER_HOUR.get(accelerator) if accelerator else None
