"""Compare base, student and teacher on the held-out prompts: `python -m jobs.evaluate …`."""

from __future__ import annotations

from cluster.errors import StageError
from cluster.models import model_location
from cluster.session import require_memory
from distill.evaluate.predict import predict
from distill.evaluate.stage import evaluate
from distill.teach.config import ProgramTeacher
from distill.teach.files import read_completions
from jobs.display import StepProgress
from jobs.entry import stage_main
from jobs.run import Run, StageResult


def work(run: Run, progress: StepProgress) -> StageResult:
    """Write `predictions/`, `evaluation.json`, `evaluation.md` and `report.html`."""
    config = run.config
    prompts = run.rows("prompts/test.parquet", stage="generate")
    adapter = run.folder / "adapter"
    if run.finished("train") is None:
        raise StageError(
            f"{adapter} is not trained for this configuration yet: run the stage 'train' first."
        )
    require_memory(config.cluster.min_free_memory_gb, purpose=f"loading {config.student.model}")
    model = model_location(config.student.model)
    answers = predict(
        model=model,
        adapter=adapter,
        rank=config.student.rank,
        prompts=prompts,
        config=config.evaluate,
        accelerator=config.cluster.accelerator,
        max_model_len=config.serve.max_model_len,
        on_progress=lambda phase, done, total: progress.update(
            done, total, "starting the engine" if phase == "engine" else f"{phase}, {done}/{total}"
        ),
    )
    report = evaluate(
        run.store,
        prompts=prompts,
        answers=answers,
        teacher_rows=read_completions(prompts, config.teacher, store=run.store),
        score=run.task.score_row,
        teacher=config.teacher,
        config=config.evaluate,
        model=model,
        # A program is the truth of its task; any other teacher's answers stand in for a reference.
        teacher_is_reference=isinstance(config.teacher, ProgramTeacher),
        seed=config.prompts.seed,
    )
    base, student = report["models"]["base"], report["models"]["student"]
    return StageResult(
        rows_in=len(prompts),
        rows_out=report["num_prompts"],
        note=(
            f"right: base {base['accuracy']:.1%} → student {student['accuracy']:.1%}; "
            f"valid: {base['schema_valid']:.1%} → {student['schema_valid']:.1%}"
        ),
    )


if __name__ == "__main__":
    stage_main("evaluate", work)
