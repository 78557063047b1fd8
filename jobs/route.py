"""Which prompts are better answered elsewhere? `python -m jobs.route --config FILE`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cluster.difficulty import TEACHER
from cluster.errors import ConfigError, DataError
from cluster.models import model_name
from cluster.storage import Store
from distill.evaluate.report import NONE, share
from distill.evaluate.stage import EVALUATION_FILE, PREDICTIONS_FOLDER
from distill.route.curve import Wish
from distill.route.labels import Logged, held_out, logged
from distill.route.report import JSON_FILE, PAGE_FILE, sentence, shown_points, write_report
from distill.route.route import Subject, route
from jobs.config import load_run_config
from jobs.display import Display
from jobs.entry import parse_arguments
from jobs.guard import guarded
from jobs.monitor import adapter_name, log_window, take_options
from jobs.run import Run

STUDENT = f"{PREDICTIONS_FOLDER}/student.parquet"
SEED = 17
NUMBERS = ("max_usd_per_1k", "min_quality", "teacher_share")
OPTIONS = ("--since", "--until", "--other", *(f"--{n.replace('_', '-')}" for n in NUMBERS))

Row = dict[str, Any]


def route_run(
    files: Sequence[str | Path],
    *,
    overrides: Sequence[str] = (),
    since: str | None = None,
    until: str | None = None,
    other: str | None = None,
    max_usd_per_1k: float | None = None,
    min_quality: float | None = None,
    teacher_share: float | None = None,
    display: Display | None = None,
) -> Row:
    """Learn from a run's held-out predictions, write `routing.json` and `routing.html`, show them.

    `other` is the folder of a second run whose student is the other model; without it the teacher
    is. The three numbers are `distill.route.curve.Wish`.
    """
    wanted = Wish(max_usd_per_1k, min_quality, teacher_share)
    config = load_run_config(files, overrides=overrides)
    run = Run(config, display or Display())
    prompts = run.rows("prompts/test.parquet", stage="generate")
    student = run.rows(STUDENT, stage="evaluate")
    evaluation = run.store.read_json(EVALUATION_FILE)
    answers, other_usd, name = _other(run, evaluation, folder=other)
    held = held_out(prompts, student, answers)
    more = _logged(run, known=held.example_ids, since=since, until=until)
    found = route(
        held,
        more,
        subject=Subject(
            task=run.task.name,
            task_digest=run.task.digest,
            adapter=adapter_name(config),
            base_model=model_name(config.student.model),
            student=run.folder.name,
            other=name,
            student_usd=evaluation["models"]["student"]["usd_per_1k"],
            other_usd=other_usd,
            teacher_is_reference=not any(row["reference"] for row in prompts),
        ),
        wish=wanted,
        samples=config.evaluate.bootstrap_samples,
        seed=SEED,
    )
    write_report(run.store, found)
    _show(run, found)
    return found


def _other(run: Run, evaluation: Row, *, folder: str | None) -> tuple[list[Row], float | None, str]:
    """Return the other model's predictions, its dollars per 1,000 requests and its name."""
    if folder is None:
        rows = run.rows(f"{PREDICTIONS_FOLDER}/teacher.parquet", stage="evaluate")
        return rows, evaluation["models"]["teacher"]["usd_per_1k"], TEACHER
    store = Store(folder)
    for path in (STUDENT, EVALUATION_FILE):
        if not store.exists(path):
            raise DataError(
                f"--other {folder!r} has no {path}: give the folder of a run that was evaluated, "
                "such as runs/large-1a2b3c4d."
            )
    theirs = store.read_json(EVALUATION_FILE)["models"]["student"]["usd_per_1k"]
    name = Path(store.root).resolve().name if store.is_local else Path(store.root).name
    return store.read_rows(STUDENT), theirs, name


def _logged(run: Run, *, known: Sequence[str], since: str | None, until: str | None) -> Logged:
    """Read the log's outcomes; without a log there are none, unless a window was asked for."""
    config = run.config
    uri = config.monitor.log or config.serve.request_log
    if not (since or until) and not (uri and Store(uri).exists()):
        return Logged()
    window = log_window(config, since=since, until=until, max_rows=config.monitor.max_rows)
    return logged(window.rows, known=known)


def _show(run: Run, found: Row) -> None:
    display, figures, labels = run.display, found["worth"], found["labels"]
    display.say(
        f"{labels['held_out']} held-out prompts, {labels['held_out_wrong']} answered wrongly; "
        f"{labels['logged']} checked requests of the log, {labels['logged_wrong']} refused"
        + "".join(f", {count} {reason}" for reason, count in labels["left_out"].items())
    )
    if figures:
        low, high = figures["auc_ci95"] or (0.0, 1.0)
        display.table(
            "P(student wrong | prompt), out of fold",
            ["", "AUC", "p", "Brier", "calibration error"],
            [
                ["predictor", f"{figures['auc']:.3f} [{low:.3f}, {high:.3f}]",
                 f"{figures['p_value']:.3g}", f"{figures['brier']:.4f}", f"{figures['ece']:.4f}"],
                ["constant", "0.500", "", f"{figures['brier_constant']:.4f}",
                 f"{figures['ece_constant']:.4f}"],
            ],
        )  # fmt: skip
    if found["curve"]:
        display.table(
            f"student and {found['to']}",
            ["threshold", "sent", "accuracy", "at random", "gain, points", "$ per 1,000"],
            [_row(point) for point in shown_points(found)],
        )
    for note in found["notes"]:
        display.say(f"  {note}")
    display.say(sentence(found))
    display.say(f"report  {run.shown(PAGE_FILE)}")
    if found["recommended"]:
        to = TEACHER if found["to"] == TEACHER else "NAME of the larger adapter"
        display.say(
            f'serve   [serve.routing.{found["adapter"]}] predictor = "{run.shown(JSON_FILE)}", '
            f'to = "{to}"'
        )


def _row(point: Row) -> list[str]:
    usd = point["usd_per_1k"]
    threshold = "none" if point["threshold"] is None else f"{point['threshold']:.4g}"
    (low, high), (less, more) = point["accuracy_ci95"], point["gain_ci95"]
    return [
        threshold + (" ←" if point["is_picked"] else ""),
        share(point["share"]),
        f"{share(point['accuracy'])} [{100 * low:.1f}, {100 * high:.1f}]",
        share(point["random_accuracy"]),
        f"{100 * point['gain']:+.1f} [{100 * less:+.1f}, {100 * more:+.1f}]",
        NONE if usd is None else f"{usd:.4f}",
    ]


def main() -> None:
    """Entry point of `python -m jobs.route`."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(
            "usage: python -m jobs.route --config FILE [--since 7d] [--until …] [--other RUN] "
            "[--max-usd-per-1k X | --min-quality Q | --teacher-share S] [--section.field value …]"
        )
        raise SystemExit(0)

    def action() -> None:
        rest, options = take_options(sys.argv[1:], OPTIONS)
        files, overrides, _ = parse_arguments(rest)
        options |= {name: _number(name, options[name]) for name in NUMBERS}
        route_run(files, overrides=overrides, **options)

    raise SystemExit(guarded(action))


def _number(name: str, text: str | None) -> float | None:
    try:
        return None if text is None else float(text)
    except ValueError:
        flag = f"--{name.replace('_', '-')}"
        raise ConfigError(f"{flag} {text!r}: give a number, as in {flag} 0.05") from None


if __name__ == "__main__":
    main()
