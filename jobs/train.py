"""Fine-tune the student on what was kept: `python -m jobs.train --config …`."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from cluster.errors import DataError
from cluster.models import model_location
from cluster.session import require_memory
from distill.curate.multitask import multitask_records
from distill.judge.stage import accepted
from distill.teach.files import CANDIDATES
from distill.train.deepspeed_settings import DEEPSPEED
from distill.train.pairs import asked, pairs_from_file, pairs_from_scores, split_pairs
from distill.train.stage import train
from jobs.display import StepProgress
from jobs.entry import stage_main
from jobs.preflight import require_answers_for
from jobs.run import Run, StageResult


def work(run: Run, progress: StepProgress) -> StageResult:
    """Write `checkpoints/`, `curves.jsonl`, `findings.jsonl`, `tensorboard/` and `adapter/`."""
    config = run.config
    records, validation = rows_for(run)
    require_memory(config.cluster.min_free_memory_gb, purpose=f"training {config.student.model}")

    run.display.say(
        f"  DeepSpeed's settings: {run.shown(DEEPSPEED)} ([train.deepspeed] is merged over ours)"
    )
    student = config.student.model_copy(update={"model": model_location(config.student.model)})
    result = train(
        student,
        config.train,
        records=records,
        validation=validation,
        run_folder=run.folder,
        accelerator=config.cluster.accelerator,
        on_progress=lambda row: progress.update(*show_training(row)),
        say=lambda text: run.display.say(f"! {text}"),
    )
    trouble = "".join(
        f", {f['kind'].replace('_', ' ')} (step {f['step']})" for f in result.findings
    )
    figures = {k: v for k, v in asdict(result).items() if isinstance(v, (int, float))}
    return StageResult(
        rows_in=len(records),
        rows_out=len(records) - result.dropped_train,
        note=(
            f"held-out loss {result.base_validation_loss:.3f} → {result.best_validation_loss:.3f} "
            f"in {result.steps} steps, {result.tokens_per_s:.0f} tokens/s{trouble}"
        ),
        figures=figures,
    )


def show_training(row: dict[str, Any]) -> tuple[float, float, str, float | None]:
    """Return what `StepProgress.update` takes of a row of `curves.jsonl`."""
    note = f"loss {row['loss']:.3f}" if row.get("loss") is not None else "loading"
    if row.get("validation_loss") is not None:
        note += f", held-out {row['validation_loss']:.3f}"
    if row.get("tokens_per_s"):
        note += f", {row['tokens_per_s']:.0f} tokens/s"
    return row.get("step", 0), row.get("total_steps", 0), note, row.get("eta_s")


def rows_for(run: Run) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Training and validation rows as `train.method` takes them."""
    method = run.config.train.method
    if method == "dpo":
        return _pairs(run)
    rows = [training_records(run, split) for split in ("train", "validation")]
    if method == "multitask":
        labelled = [multitask_records(part, task=run.task) for part in rows]
        rows = [[{**row, "completion": row["response"]} for row in part] for part in labelled]
    return rows[0], rows[1]


def training_records(run: Run, split: str) -> list[dict[str, Any]]:
    """Curated records of a split that the jury accepted."""
    curated = run.rows(f"curated/{split}.parquet", stage="curate")
    return accepted(curated, run.config.jury, store=run.store)


def _pairs(run: Run) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Preference pairs: of a file, or of what this run's teachers answered and the jury scored."""
    config = run.config
    if config.train.dpo.pairs:
        pairs = pairs_from_file(config.train.dpo.pairs)
        test = "prompts/test.parquet"
        prompts = run.store.read_rows(test) if run.store.exists(test) else []
        tested = {asked(row["messages"]) for row in prompts}
        training, held_out = split_pairs(
            pairs, num_validation=config.prompts.validation, tested=tested
        )
        if left_out := len(pairs) - len(training) - len(held_out):
            run.display.say(
                f"! {left_out} of {len(pairs)} pairs of {config.train.dpo.pairs} are about prompts "
                "of the test split and were left out"
            )
        if not training:
            raise DataError(
                f"train.dpo.pairs: all {len(pairs)} pairs of {config.train.dpo.pairs} are about "
                "prompts of the test split; give pairs about others"
            )
        return training, held_out
    require_answers_for(config)
    answers = run.store.read_rows(CANDIDATES)
    pairs = pairs_from_scores(answers, min_margin=config.train.dpo.min_margin)
    kept = {
        split: {row["example_id"] for row in run.rows(f"curated/{split}.parquet", stage="curate")}
        for split in ("train", "validation")
    }
    parts = [
        [pair for pair in pairs if pair["example_id"] in kept[split]]
        for split in ("train", "validation")
    ]
    if not parts[0]:
        raise DataError(
            f"train.method 'dpo': no two answers to a prompt differ by train.dpo.min_margin "
            f"{config.train.dpo.min_margin:g} in the jury's score ({len(answers)} answers); lower "
            "it, ask for more samples at a higher temperature, or add judges that tell them apart"
        )
    return parts[0], parts[1]


if __name__ == "__main__":
    stage_main("train", work)
