"""What `distillery capacity` shows: tables, a line of replicas over time, TOML, JSON and a plot."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from cluster.errors import ConfigError
from jobs.display import Display
from serve.autoscale import Scaling
from serve.capacity.simulate import Outcome, Site
from serve.capacity.trace import Trace, busiest_per_s

BLOCKS = "▁▂▃▄▅▆▇█"
COLUMNS = 72


@dataclass(frozen=True, kw_only=True)
class Report:
    """Everything that was simulated and what it was simulated for."""

    trace: Trace
    site: Site
    slo_p90_s: float
    margin: float
    usd_per_hour: float | None
    configured: Outcome
    cheapest: Outcome | None
    """Best setting found; it may not hold."""
    fixed: Outcome | None
    """Smallest fixed number that holds."""
    settings: int
    seconds: float

    @property
    def wanted_s(self) -> float:
        """P90 that was searched for, seconds."""
        return self.slo_p90_s * (1 - self.margin)

    @property
    def held(self) -> bool:
        """Whether something holds the objective; True where none was set."""
        if not self.slo_p90_s:
            return True
        found = (self.configured, self.cheapest, self.fixed)
        return any(outcome is not None and outcome.holds(self.slo_p90_s) for outcome in found)

    @property
    def outcomes(self) -> dict[str, Outcome]:
        """What is shown, by its name."""
        named = {
            "as configured": self.configured,
            "cheapest": self.cheapest if self.cheapest_holds else None,
            "nearest": None if self.cheapest_holds else self.cheapest,
            "smallest fixed": self.fixed,
        }
        return {name: outcome for name, outcome in named.items() if outcome is not None}

    @property
    def cheapest_holds(self) -> bool:
        """Whether the search found a setting that holds, with the margin."""
        return self.cheapest is not None and self.cheapest.holds(self.wanted_s)

    def usd_per_1000(self, outcome: Outcome) -> float | None:
        """US dollars per 1,000 answered requests; `None` without a price."""
        if self.usd_per_hour is None or not len(outcome.latency_s):
            return None
        return outcome.usd(self.usd_per_hour) / len(outcome.latency_s) * 1000


def print_report(report: Report, display: Display) -> None:
    """Print the traffic, every outcome, replicas over time, and the setting to paste."""
    trace, site, curve = report.trace, report.site, report.site.curve
    rate = len(trace) / max(trace.span_s, 1e-9)
    most = curve.requests_per_s(site.max_ongoing_requests)
    say = display.say
    say(f"traffic   {len(trace):,} requests in {_duration(trace.span_s)}, {rate:.3g} a second, "
        f"{busiest_per_s(trace):.3g} in the busiest five minutes ({trace.source})")  # fmt: skip
    say(f"replica   {curve.alone_s:.3g} s for a request alone, at most {most:.3g} requests/s with "
        f"up to {site.max_ongoing_requests} at once, starts in {site.start_s:g} s")  # fmt: skip
    display.table(
        "simulated",
        ["", "P50", "P90", "P99", "refused", "late", "replicas", "hours", "idle", "$/1k"],
        [_row(name, outcome, report) for name, outcome in report.outcomes.items()],
    )
    for name, outcome in report.outcomes.items():
        if outcome.peak > outcome.running.min():
            say(f"{name:<14} {sparkline(outcome.running)} {outcome.peak}")
    if report.usd_per_hour is None:
        say("dollars   not known: give --usd-per-hour, the price of one replica")
    if report.slo_p90_s:
        _say_verdict(report, display)
    say(f"simulated {report.settings} settings in {report.seconds:.1f} s")


def _say_verdict(report: Report, display: Display) -> None:
    say, best = display.say, report.cheapest
    missed = report.configured.missed_share(report.slo_p90_s)
    verdict = "holds" if report.configured.holds(report.slo_p90_s) else "misses"
    say(f"objective P90 of {report.slo_p90_s:g} s: as configured it {verdict}; {missed:.0%} of the "
        "five-minute windows are above it")  # fmt: skip
    if best is None:
        return
    if not report.cheapest_holds:
        alone = report.site.curve.alone_s
        why = (
            f"; a request alone takes {alone:.3g} s already, which no replica shortens"
            if alone > report.wanted_s
            else ""
        )
        say(f"no setting holds {report.wanted_s:.3g} s ({report.margin:.0%} below the objective) "
            f"with up to {best.scaling.max_replicas} replicas{why}")  # fmt: skip
        return
    say(f"\ncheapest that holds {report.wanted_s:.3g} s, {report.margin:.0%} below the objective:")
    say(as_toml(_needed(best)))


def _needed(best: Outcome) -> Scaling:
    """Return the setting with the bound that was needed: it was never asked for more."""
    return replace(best.scaling, max_replicas=max(int(best.target.max()), best.peak))


def as_toml(scaling: Scaling) -> str:
    """Return a setting as `[serve]` fields."""
    fields = asdict(scaling)
    return "[serve]\n" + "\n".join(f"{name} = {value}" for name, value in fields.items()) + "\n"


def sparkline(values: np.ndarray, *, columns: int = COLUMNS) -> str:
    """Return one line of blocks, each the largest value of its part; zero is a space."""
    parts = np.array_split(values, min(columns, len(values)))
    tops = np.array([part.max() for part in parts], float)
    steps = np.ceil(tops / max(tops.max(), 1e-9) * len(BLOCKS)).astype(int)
    return "".join(BLOCKS[step - 1] if step else " " for step in steps)


def report_dict(report: Report) -> dict[str, Any]:
    """Return the report for a program: seconds, dollars and shares as they are."""
    return {
        "traffic": {"requests": len(report.trace), "seconds": report.trace.span_s},
        "slo_p90_s": report.slo_p90_s,
        "margin": report.margin,
        "held": report.held,
        "settings": report.settings,
        "seconds": report.seconds,
        "outcomes": {
            name: {
                "scaling": asdict(outcome.scaling),
                "p50_s": outcome.quantile_s(0.5),
                "p90_s": outcome.quantile_s(0.9),
                "p99_s": outcome.quantile_s(0.99),
                "rejected": outcome.rejected,
                "late": outcome.late,
                "peak_replicas": outcome.peak,
                "replica_hours": outcome.replica_s / 3600,
                "idle_share": outcome.idle_share,
                "usd_per_1000": report.usd_per_1000(outcome),
                "holds": bool(report.slo_p90_s and outcome.holds(report.slo_p90_s)),
            }
            for name, outcome in report.outcomes.items()
        },
    }


PLOTS = (".png", ".svg", ".pdf")


def check_plot(path: str) -> None:
    """ConfigError if a plot could not be written to `path`."""
    file = Path(path)
    if file.suffix.lower() not in PLOTS:
        raise ConfigError(f"--plot {path}: the name must end in {', '.join(PLOTS)}.")
    if not file.absolute().parent.is_dir():
        raise ConfigError(f"--plot {path}: there is no folder {file.parent}; make it first.")


def save_plot(report: Report, path: str) -> None:
    """Draw requests under way, replicas and P90 by minute to a PNG, SVG or PDF file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.subplots(3, sharex=True)
    for name, outcome in report.outcomes.items():
        hours = outcome.time_s / 3600
        axes[0].plot(hours, outcome.ongoing, linewidth=0.8, label=name)
        axes[1].step(hours, outcome.running, where="post", linewidth=1.2, label=name)
        at, p90_s = _p90_by(outcome, window_s=max(60.0, report.trace.span_s / 300))
        axes[2].plot(at / 3600, p90_s, linewidth=1.0, label=name)
    if report.slo_p90_s:
        axes[2].axhline(report.slo_p90_s, color="black", linewidth=0.8, linestyle="--")
    for axis, title in zip(axes, ("requests under way", "replicas", "P90, s"), strict=True):
        axis.set_ylabel(title)
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    axes[1].legend(fontsize=8)
    axes[2].set_xlabel("hours")
    figure.savefig(path, dpi=130)


def _p90_by(outcome: Outcome, *, window_s: float) -> tuple[np.ndarray, np.ndarray]:
    if not len(outcome.latency_s):
        return np.empty(0), np.empty(0)
    number = (outcome.arrival_s / window_s).astype(int)
    edges = np.flatnonzero(np.diff(number)) + 1
    at = number[np.concatenate(([0], edges))] * window_s
    p90_s = [np.quantile(part, 0.9) for part in np.split(outcome.latency_s, edges)]
    return at, np.array(p90_s)


def _row(name: str, outcome: Outcome, report: Report) -> list[str]:
    usd = report.usd_per_1000(outcome)
    low, high = int(outcome.running.min()), outcome.peak
    return [
        name,
        *(f"{outcome.quantile_s(share):.2f} s" for share in (0.5, 0.9, 0.99)),
        f"{outcome.rejected:,}",
        f"{outcome.late:,}",
        f"{low:,}" if low == high else f"{low:,}-{high:,}",
        f"{outcome.replica_s / 3600:,.1f}",
        f"{outcome.idle_share:.0%}",
        "" if usd is None else f"{usd:.4f}",
    ]


def _duration(seconds: float) -> str:
    return f"{seconds / 3600:.1f} h" if seconds >= 3600 else f"{seconds / 60:.1f} min"
