"""Decide whether the student may ship: `python -m jobs.gate --config …` (exit code 3 if not)."""

from __future__ import annotations

from cluster.errors import StageError
from distill.evaluate.report import write_report
from distill.gate import require_passed, run_gates, write_gates
from distill.records import by_id
from jobs.display import StepProgress
from jobs.entry import stage_main
from jobs.run import Run, StageResult


def work(run: Run, progress: StepProgress) -> StageResult:
    """Print each gate's figure, threshold and verdict; write `gates.json`."""
    if run.finished("evaluate") is None:
        raise StageError("nothing was evaluated yet: run the stage 'evaluate' first.")
    trained = run.finished("train")
    loss = trained.figures.get("best_validation_loss") if trained else None
    results = run_gates(run.config.gates, run.read_json("evaluation.json"), loss)
    write_gates(run.store, results)
    write_report(run.store, prompts=by_id(run.rows("prompts/test.parquet", stage="generate")))
    run.display.table(
        "gates",
        ["gate", "figure", "threshold", "verdict"],
        [
            [
                gate.name,
                "not measured" if gate.figure is None else f"{gate.figure:.4g}",
                f"{gate.comparison} {gate.threshold:g}",
                "passed" if gate.passed else "FAILED",
            ]
            for gate in results
        ],
    )
    require_passed(results)
    return StageResult(len(results), len(results), note=f"{len(results)} of {len(results)} passed")


if __name__ == "__main__":
    stage_main("gate", work, needs_ray=False)
