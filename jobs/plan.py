"""`distillery plan`: does a run fit, how long does it take, what does it cost, what would fit?"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from cluster.errors import ConfigError
from distill.train.plan.architecture import read_architecture
from distill.train.plan.hardware import Hardware, find_hardware
from distill.train.plan.memory import GIB
from distill.train.plan.plan import Plan, Suggestion, make_plan, require_fit, suggest
from distill.train.plan.setting import Setting
from jobs.config import RunConfig, load_run_config
from jobs.plan_data import workload_of

PRESETS = Path(__file__).parent / "presets"


@dataclass(frozen=True, kw_only=True)
class Asked:
    """What the command line says beside the configuration; `None` leaves it to the run."""

    hardware: str | None = None
    gpus: int | None = None
    memory_gib: float | None = None
    tflops: float | None = None
    usd_per_hour: float | None = None
    records: int | None = None
    mean_tokens: float | None = None
    max_tokens: int | None = None
    completion_share: float | None = None


def preset_path(name: str) -> Path:
    """Return a preset's file; ConfigError with the names for an unknown one."""
    path = PRESETS / f"{name}.toml"
    if not path.is_file():
        raise ConfigError(f"--preset {name!r}: no such preset; allowed: {', '.join(presets())}")
    return path


def presets() -> list[str]:
    """Names of the presets that come with Distillery."""
    return sorted(path.stem for path in PRESETS.glob("*.toml"))


def plan_run(
    files: Sequence[str | Path], *, overrides: Sequence[str] = (), asked: Asked, as_json: bool
) -> int:
    """Print the plan of a run; returns 0 if it fits.

    What cannot fit is a ConfigError that says what would; as JSON the exit code 2 alone says so.
    """
    plan = plan_config(load_run_config(files, overrides=overrides), asked)
    if as_json:
        print(json.dumps(as_dict(plan, [] if plan.fits else suggest(plan.setting)), indent=2))
        return 0 if plan.fits else ConfigError.exit_code
    console = Console(highlight=False)
    render(plan, console if console.is_terminal else Console(highlight=False, width=110))
    require_fit(plan)
    console.print("[green]fits[/]")
    return 0


def print_presets() -> None:
    """Print the presets with what each needs where it says it runs."""
    table = Table(box=None, pad_edge=False)
    for heading in ("preset", "student", "tuning", "on", "GiB a worker", "of"):
        table.add_column(heading, justify="right" if heading in ("GiB a worker", "of") else "left")
    for name in presets():
        config = load_run_config([preset_path(name)])
        plan = plan_config(config, Asked(), measured=False)
        setting = plan.setting
        table.add_row(
            name,
            setting.architecture.name,
            setting.student.tuning,
            f"{setting.train.workers} × {setting.hardware.title}"
            if setting.hardware.kind == "gpu"
            else setting.hardware.title,
            f"{plan.memory.total / GIB:.1f}",
            f"{plan.memory.capacity / GIB:.1f}",
        )
    console = Console(highlight=False)
    (console if console.is_terminal else Console(width=130)).print(table)


def plan_config(config: RunConfig, asked: Asked, *, measured: bool = True) -> Plan:
    """Plan a run's training; ConfigError for what cannot be planned.

    Without `measured` a CPU's speed is not measured, and the plan's hours mean nothing there.
    """
    train = config.train
    if asked.gpus is not None:
        if asked.gpus < 1 or train.batch_size % asked.gpus:
            raise ConfigError(
                f"--gpus {asked.gpus}: train.batch_size {train.batch_size} must be a multiple of it"
            )
        train = train.model_copy(update={"workers": asked.gpus})
    architecture = read_architecture(config.student.model)
    workload = workload_of(
        config,
        records=asked.records,
        mean_tokens=asked.mean_tokens,
        max_tokens=asked.max_tokens,
        completion_share=asked.completion_share,
    )
    name = asked.hardware or config.cluster.accelerator or "cpu"
    hardware = _this_machine() if name == "cpu" else find_hardware(name)
    told: dict[str, Any] = {"memory_gib": asked.memory_gib, "tflops": asked.tflops}
    told["usd_per_hour"] = asked.usd_per_hour
    if asked.tflops is not None and name == "cpu":
        told |= {"achieved": 1.0, "achieved_source": "as given"}
    hardware = hardware.model_copy(update={k: v for k, v in told.items() if v is not None})
    setting = Setting(config.student, train, architecture, workload, hardware)
    if hardware.kind == "cpu" and measured and asked.tflops is None:
        from jobs.cpu_rate import with_measured_rate

        setting = with_measured_rate(setting)
    return make_plan(setting)


def _this_machine() -> Hardware:
    from jobs.machine import memory_gb

    return Hardware(
        name="cpu",
        title="this machine's CPU",
        kind="cpu",
        memory_gib=memory_gb()[0],
        memory_source="/proc/meminfo and the container's limit",
        tflops=0.1,
        achieved=1.0,
        achieved_source="not measured",
    )


def as_dict(plan: Plan, suggestions: Sequence[Suggestion]) -> dict[str, Any]:
    """Return the plan for a program: bytes, seconds and dollars as they are."""
    setting, memory = plan.setting, plan.memory
    return {
        "fits": plan.fits,
        "student": setting.architecture.name,
        "parameters": setting.architecture.parameters,
        "trained_parameters": setting.trained,
        "hardware": setting.hardware.model_dump(),
        "workers": setting.train.workers,
        "workload": {k: v for k, v in asdict(setting.workload).items() if k != "lengths"},
        "memory": {
            "device": [asdict(part) for part in memory.device],
            "host": [asdict(part) for part in memory.host],
            "total": memory.total,
            "capacity": memory.capacity,
        },
        "speed": asdict(plan.speed),
        "suggestions": [
            {"changes": found.changes, "total": found.plan.memory.total} for found in suggestions
        ],
    }


def render(plan: Plan, console: Console) -> None:
    """Print memory part by part, time and money."""
    setting, memory, speed = plan.setting, plan.memory, plan.speed
    hardware, workload = setting.hardware, setting.workload
    workers = f"{setting.train.workers} worker" + ("s" if setting.train.workers > 1 else "")
    step = " (fused CPU step)" if setting.fused else ""
    console.print(
        f"[bold]{escape(setting.architecture.name)}[/], {setting.train.method}, "
        f"{setting.student.tuning}, {setting.precise.precision}, ZeRO {setting.train.zero_stage}, "
        f"{workers} on {hardware.title}{step}"
    )
    table = Table(box=None, pad_edge=False)
    table.add_column("memory a worker")
    table.add_column("GiB", justify="right")
    table.add_column("")
    for part in memory.device:
        table.add_row(part.name, f"{part.bytes / GIB:.2f}", escape(part.note))
    table.add_row("[bold]peak[/]", f"[bold]{memory.total / GIB:.2f}[/]",
                  f"of {memory.capacity / GIB:.2f} that may be filled")  # fmt: skip
    for part in memory.host:
        table.add_row(f"host: {part.name}", f"{part.bytes / GIB:.2f}", "in the machine's memory")
    console.print(table)
    rows = {
        "data": f"{workload.records:,} records, {workload.mean_tokens:,.0f} tokens on average, "
        f"{workload.max_tokens:,} at most ({workload.source})",
        "speed": f"{speed.tokens_per_s:,.0f} tokens/s; {hardware.tflops:,.4g} TFLOP/s, of which "
        f"{hardware.achieved:.0%} are reached ({hardware.achieved_source})",
        "time": f"{speed.steps:,} steps, {speed.hours:,.2f} hours, set-up and held-out looks apart",
        "dollars": "price not known: give --usd-per-hour"
        if speed.usd is None
        else f"{speed.usd:,.2f} at {hardware.usd_per_hour:.2f} an hour"
        + (f" ({hardware.price_source})" if hardware.price_source else ""),
    }
    if setting.architecture.num_experts and hardware.kind == "gpu":
        rows["caution"] = "no figure for a mixture of experts was found: it may take far longer"
    if setting.train.method == "on_policy":
        rows["not counted"] = "sampling: the engine's own memory and the time it takes"
    for name, text in rows.items():
        console.print(f"{name:<8} {escape(text)}", soft_wrap=True)
