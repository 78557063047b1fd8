"""Keep the good answers: hard checks, then the jury: `python -m jobs.curate --config …`."""

from __future__ import annotations

from distill.curate.stage import curate
from distill.judge.agreement import agreement_note
from distill.judge.judges import check_jury
from distill.judge.stage import AGREEMENT_FILE, judge
from distill.teach.stage import read_completions
from jobs.display import StepProgress
from jobs.entry import stage_main
from jobs.run import Run, StageResult


def work(run: Run, progress: StepProgress) -> StageResult:
    """Write `curated/`, `rejected/`, `yield.json`, `verdicts/` and `agreement.json`."""
    config = run.config
    check_jury(config.jury.judges, run.task)
    prompts = [
        row
        for split in ("train", "validation")
        for row in run.rows(f"prompts/{split}.parquet", stage="generate")
    ]
    answers = read_completions(prompts, config.teacher, store=run.store)
    curated = curate(answers, config.curate, task=run.task, store=run.store)
    kept = judge(
        run.task,
        config.jury,
        records=curated.kept,
        store=run.store,
        on_progress=lambda done, total: progress.update(done, total, f"judged {done}/{total}"),
    )
    ids = {row["example_id"] for row in kept}
    report = run.read_json("yield.json")
    for split, part in report.items():
        before = [row for row in curated.kept if row["split"] == split]
        after = [row for row in before if row["example_id"] in ids]
        step = {"check": "jury", "rows_in": len(before), "rows_out": len(after)}
        part["steps"].append({**step, "share": round(len(after) / len(before), 4)})
        part["rows_out"] = len(after)
        if len(before) > len(after):
            part["rejected"]["jury"] = len(before) - len(after)
    run.store.write_json("yield.json", report)
    heard = agreement_note(run.read_json(AGREEMENT_FILE))
    return StageResult(
        rows_in=len(answers),
        rows_out=len(kept),
        note="; ".join(filter(None, [f"{len(kept)} of {len(answers)} answers kept", heard])),
    )


if __name__ == "__main__":
    stage_main("curate", work)
