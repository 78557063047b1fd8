"""From the log to the next dataset: `python -m jobs.relabel --config FILE --budget-usd X`."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cluster.errors import ConfigError
from cluster.storage import Store
from distill.curate.embed import build_embed
from distill.judge.judges import check_jury
from distill.prompts.split import SPLITS
from distill.prompts.stage import prompts_file
from distill.relabel.candidates import Candidates, candidates
from distill.relabel.dataset import NEXT, Parent, append_version, latest, read_version
from distill.relabel.pick import Pick, least_training, pick
from distill.relabel.relabel import Taught, teach, teacher_for
from distill.teach.config import OneTeacher
from distill.teach.files import read_completions
from distill.teach.identity import teacher_name
from distill.teach.stage import check_teacher
from jobs.config import load_run_config
from jobs.entry import connected, opened_run, parse_arguments
from jobs.guard import guarded
from jobs.monitor import adapter_name, log_window, take_options
from jobs.run import Run
from jobs.summary import command_name

OPTIONS = ("--since", "--until", "--budget-usd")


@dataclass(frozen=True)
class Relabelled:
    """What one call did."""

    version: int
    """The newest version afterwards; 0: there is none."""
    added: int
    picked: dict[str, int]


def relabel(
    files: Sequence[str | Path],
    *,
    budget_usd: float,
    overrides: Sequence[str] = (),
    since: str | None = None,
    until: str | None = None,
) -> Relabelled:
    """Pick from the log, ask the teacher within the budget, append a dataset version, say how on.

    The budget is one version's: a call that was killed goes on with what is left of it. What the
    teacher answered is never asked again. Where nothing passes, no version is written.
    """
    if budget_usd <= 0:
        raise ConfigError(f"--budget-usd {budget_usd:g}: give the dollars that may be spent.")
    config = load_run_config(files, overrides=overrides)
    with ExitStack() as stack:
        run = stack.enter_context(opened_run(config))
        teacher = teacher_for(config.relabel.teacher or config.teacher, budget_usd=budget_usd)
        check_teacher(teacher, run.task)
        check_jury(config.jury.judges, run.task)
        datasets = Store(config.relabel.datasets or run.folder.parent / "datasets" / _name(run))
        number = latest(datasets)
        parent = read_version(datasets, number) if number else _of_run(run)
        window = log_window(config, since=since, until=until)
        asked = [*window.rows, *window.routed]
        masking = config.relabel.masking
        known = parent.ids(masking=masking)
        found = candidates(run.task, asked, known=known, masking=masking)
        training = [row for row in parent.prompts if row["split"] == "train"]
        least = least_training(config.relabel)
        if len(training) < least:
            run.display.say(
                f"{len(training)} training prompts are too few to say what is uncovered at "
                f"relabel.coverage {config.relabel.coverage:g}; it takes {least}"
            )
        picks = _picked(run, found, training)
        counts = Counter(one.reason for one in picks)
        _say_picks(run, found, counts, num_rows=len(asked))
        if not picks:
            run.display.say("nothing to relabel: every request is known or was answered well")
            return Relabelled(number, 0, {})
        work = Store(run.folder.parent / f"relabel-{_name(run)}-v{number + 1}")
        stack.enter_context(connected(run))
        with run.display.step("relabel") as progress:
            taught = teach(
                run.task,
                teacher,
                picks,
                curate=config.curate,
                jury=config.jury,
                store=work,
                on_progress=lambda done, total: progress.update(done, total, f"{done}/{total}"),
            )
        _say_taught(run, taught, num_picks=len(picks), teacher=teacher)
        if not taught.accepted:
            run.display.say("no answer passed the checks: no version is written")
            return Relabelled(number, 0, dict(counts))
        reasons = {one.row["example_id"]: one.reason for one in picks}
        manifest = append_version(
            datasets,
            number + 1,
            parent=parent,
            added=taught.accepted,
            facts={
                "reasons": dict(Counter(reasons[row["example_id"]] for row in taught.accepted)),
                "picked": dict(counts),
                "rejected": dict(taught.rejected),
                "not_answered": {"failed": taught.failed, "budget": taught.unasked},
                "left_out": dict(found.left_out),
                "masked": dict(found.masked),
                "usd": taught.usd,
                "teacher": teacher_name(teacher, run.task),
                "task": run.task.name,
                "task_digest": run.task.digest,
                "adapter": _name(run),
                "window": {"since": _iso(window.since), "until": _iso(window.until)},
                "created_at": datetime.now(UTC).isoformat(timespec="seconds"),
            },
            price=teacher.price,
        )
        _say_next(run, datasets, manifest, files=files)
        return Relabelled(number + 1, len(taught.accepted), dict(counts))


def _name(run: Run) -> str:
    return adapter_name(run.config)


def _iso(moment: datetime | None) -> str | None:
    return moment.isoformat() if moment else None


def _of_run(run: Run) -> Parent:
    """The run that trained the student, as the first version's parent."""
    prompts = [row for split in SPLITS for row in run.rows(prompts_file(split), stage="generate")]
    answers = read_completions(prompts, run.config.teacher, store=run.store)
    return Parent.of_rows(run.folder.name, prompts, answers)


def _picked(run: Run, found: Candidates, training: Sequence[Any]) -> list[Pick]:
    return pick(
        run.task,
        run.config.relabel,
        found.rows,
        training=training,
        embed=build_embed(run.config.curate.embeddings),
        min_score=run.config.jury.min_score,
    )


def _say_picks(run: Run, found: Candidates, counts: Counter[str], *, num_rows: int) -> None:
    run.display.say(
        f"{num_rows} requests, {len(found.rows)} new"
        + "".join(f", {count} {reason}" for reason, count in found.left_out.items())
    )
    reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
    run.display.say(f"picked {counts.total()}{': ' if reasons else ''}{reasons}")


def _say_taught(run: Run, taught: Taught, *, num_picks: int, teacher: OneTeacher) -> None:
    name = teacher_name(teacher, run.task)
    answered = num_picks - taught.failed - taught.unasked
    run.display.say(
        f"{name} answered {answered} of {num_picks}, ${taught.usd:.4f}; "
        f"{len(taught.accepted)} passed"
        + "".join(f", {count} {reason}" for reason, count in taught.rejected.most_common())
    )
    if taught.note:
        run.display.say(f"  {taught.note}")


def _say_next(run: Run, datasets: Store, manifest: dict[str, Any], *, files: Sequence[Any]) -> None:
    version = manifest["version"]
    rows = ", ".join(f"{count} {split}" for split, count in manifest["rows"].items())
    run.display.say(f"dataset  {datasets.path(version)}: {rows}; {manifest['added']} added")
    config = run.shown(datasets.path(f"{version}/{NEXT}"))
    run.display.say(f"next     {command_name()} run {' '.join(map(str, files))} {config}")


def main() -> None:
    """Entry point of `python -m jobs.relabel`."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print(
            "usage: python -m jobs.relabel --config FILE --budget-usd X [--since 7d] [--until …] "
            "[--section.field value …]"
        )
        raise SystemExit(0)

    def action() -> None:
        rest, options = take_options(sys.argv[1:], OPTIONS)
        files, overrides, _ = parse_arguments(rest)
        budget = options.pop("budget_usd")
        relabel(files, budget_usd=_dollars(budget), overrides=overrides, **options)

    raise SystemExit(guarded(action))


def _dollars(text: str | None) -> float:
    try:
        return float(text or "")
    except ValueError:
        raise ConfigError(
            f"--budget-usd {text}: give the dollars that may be spent, as in --budget-usd 5"
        ) from None


if __name__ == "__main__":
    main()
