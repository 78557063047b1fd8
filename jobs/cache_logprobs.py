"""Keep the teacher's distributions for `kd`: `python -m jobs.cache_logprobs --config …`."""

from __future__ import annotations

import sys

from cluster.errors import ConfigError
from cluster.models import model_location
from cluster.session import require_memory
from distill.train.cache_logprobs import CacheResult, cache_logprobs
from jobs.config import RunConfig, load_run_config
from jobs.display import StepProgress
from jobs.entry import connected, opened_run, parse_arguments
from jobs.guard import guarded
from jobs.run import Run
from jobs.train import training_records


def work(run: Run, progress: StepProgress) -> CacheResult:
    """Write `<train.kd.cache>/<digest>` from the run's curated records."""
    config = run.config
    records = {split: training_records(run, split) for split in ("train", "validation")}
    kd = config.train.kd
    teacher = model_location(kd.teacher, field="train.kd.teacher")
    require_memory(config.cluster.min_free_memory_gb, purpose=f"the teacher {kd.teacher}")

    def show(done: int, total: int, seconds: float) -> None:
        rate = done / max(seconds, 1e-9)
        left = (total - done) / rate if rate else 0.0
        progress.update(done, total, f"{done:,}/{total:,} tokens, {rate:,.0f} tokens/s", left)

    return cache_logprobs(
        config.student.model_copy(update={"model": model_location(config.student.model)}),
        config.train.model_copy(update={"kd": kd.model_copy(update={"teacher": teacher})}),
        records=records["train"],
        validation=records["validation"],
        accelerator=config.cluster.accelerator,
        on_progress=show,
    )


def require_cached_kd(config: RunConfig) -> None:
    """Raise ConfigError unless the run's training reads a cache."""
    train = config.train
    if train.method != "kd" or train.kd.source != "cache":
        raise ConfigError(
            f"train.method {train.method!r} with train.kd.source {train.kd.source!r} reads no "
            'cache; set method = "kd" and, in [train.kd], source = "cache"'
        )


def main() -> None:
    """Entry point: nothing is asked again that the cache has."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print("usage: python -m jobs.cache_logprobs --config FILE [--section.field value …]")
        raise SystemExit(0)

    def action() -> None:
        files, overrides, _ = parse_arguments(sys.argv[1:])
        config = load_run_config(files, overrides=overrides)
        require_cached_kd(config)
        with opened_run(config) as run, connected(run):
            with run.display.step("logprobs") as progress:
                result = work(run, progress)
            run.display.say(sentence(result))

    raise SystemExit(guarded(action))


def sentence(result: CacheResult) -> str:
    """What was kept, how large it is, and where it lies."""
    per_token = result.num_bytes / max(1, result.num_tokens)
    asked = (
        f"{result.asked_tokens / max(result.seconds, 1e-9):,.0f} tokens/s, {result.seconds:.0f} s"
        if result.asked_tokens
        else "all there before"
    )
    lines = [
        f"✓ logprobs  {result.num_tokens:,} tokens of {result.num_records:,} records, "
        f"{per_token:.0f} bytes each, in {result.folder} ({asked})"
    ]
    if result.dropped:
        lines.append(f"  {len(result.dropped)} records above student.max_length are left out")
    if result.note:
        lines.append(f"  {result.note}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
