"""Make the prompts and have the teacher answer them: `python -m jobs.generate --config …`."""

from __future__ import annotations

from distill.judge.judges import check_jury
from distill.prompts.writer import check_writer, prompts_and_writer
from distill.teach.config import gives_candidates
from distill.teach.identity import teacher_name
from distill.teach.stage import check_teacher, generate
from jobs.display import StepProgress
from jobs.entry import stage_main
from jobs.run import Run, StageResult


def work(run: Run, progress: StepProgress) -> StageResult:
    """Write `prompts/` and `completions/`."""
    teacher = run.config.teacher
    check_teacher(teacher, run.task)
    if gives_candidates(teacher):
        check_jury(run.config.jury.judges, run.task)
    check_writer(run.config.prompts, teacher, run.task)
    prompts = prompts_and_writer(
        run.task,
        run.config.prompts,
        teacher,
        store=run.store,
        on_progress=lambda done, total: progress.update(done, total, f"{done}/{total} prompts"),
    )
    for note in prompts.notes:
        run.display.say(f"  {note}")
    name = teacher_name(teacher, run.task)
    answers = generate(
        run.task,
        teacher,
        prompts=prompts,
        store=run.store,
        jury=run.config.jury,
        on_progress=lambda done, total: progress.update(done, total, f"{done}/{total} from {name}"),
    )
    sizes = ", ".join(f"{prompts.sizes[s]} {s}" for s in ("train", "validation", "test"))
    return StageResult(
        rows_in=prompts.total,
        rows_out=answers.answered,
        note=f"{answers.answered} answers from {name} ({sizes}), ${answers.cost_usd:.2f}",
        figures={"cost_usd": answers.cost_usd, "conflicts_left_out": prompts.conflicts},
    )


if __name__ == "__main__":
    stage_main("generate", work)
