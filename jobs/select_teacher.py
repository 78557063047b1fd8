"""Which candidate should teach: `python -m jobs.select_teacher --config FILE [--dry-run]`.

Asked now, on the run's own prompts and with its jury:

    [task]
    folder = "interview"
    [[select.candidates]]             # each as it would stand under [teacher]
    kind = "litellm"
    model = "deepseek/deepseek-chat"
    [[jury.judges]]
    …

or from what was asked elsewhere, and then nothing is asked:

    [select]
    answers = ["exports/answers"]     # JSONL or Parquet: example_id, candidate, completion, …
    verdicts = ["exports/verdicts"]   # example_id, candidate, judge, dimension, score, issues
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from pydantic import model_validator

from cluster.config import ClusterConfig, StrictModel, load_config
from cluster.errors import DataError
from cluster.storage import Store, digest_of
from distill.config import JudgeLiteLLM, JuryConfig, PromptsConfig, SelectConfig, TaskConfig
from distill.tasks.task import Task, load_task
from distill.teach.bill import FILE as BILL_FILE
from jobs.config import RunFolderConfig
from jobs.display import Display, engine_output_to
from jobs.entry import errors_to_log, parse_arguments
from jobs.guard import guarded
from jobs.summary import bill_sentence

ASKED_PROMPTS = 50
"""Prompts that candidates are asked where `select.sample` does not say."""

Row = dict[str, Any]


class SelectionConfig(StrictModel):
    """TOML files for `distillery select-teacher`; all but `select` is for candidates asked now."""

    select: SelectConfig
    run: RunFolderConfig = RunFolderConfig()
    task: TaskConfig | None = None
    prompts: PromptsConfig = PromptsConfig()
    jury: JuryConfig = JuryConfig()
    cluster: ClusterConfig = ClusterConfig()

    @model_validator(mode="after")
    def _candidates_need_a_task(self) -> SelectionConfig:
        if self.select.candidates and self.task is None:
            raise ValueError(
                "select.candidates are asked a task's prompts: give [task] folder, and [prompts] "
                "and [jury] as the run will have them"
            )
        return self


class Questioning:
    """Candidates asked now, in a folder beside the runs, whose answers the run then finds."""

    def __init__(self, config: SelectionConfig):
        """Check what can fail later: keys, prices, permissions, the jury, the task itself."""
        from distill.judge.client import JudgeClient
        from distill.judge.judges import check_jury
        from distill.prompts.writer import check_writer
        from distill.teach.candidates import candidate_names
        from distill.teach.stage import check_teacher

        assert config.task is not None
        self.config = config
        self.task: Task = load_task(config.task.folder)
        self.candidates = config.select.candidates
        self.names = candidate_names(self.candidates, self.task)
        for candidate in self.candidates:
            check_teacher(candidate, self.task)
        check_writer(config.prompts, self.candidates[0], self.task)
        check_jury(config.jury.judges, self.task)
        for judge in config.select.pairwise:
            JudgeClient(judge)
        # One folder for the same prompts: other candidates and judges find what is known.
        made_from = digest_of([self.task.digest, config.prompts.model_dump(mode="json")])
        root = Path(config.run.root).expanduser().absolute()
        self.store = Store(root / f"select-{made_from[:8]}")

    def sample(self, rows: Sequence[Row]) -> list[Row]:
        """Return the training prompts that are asked, the same for every candidate."""
        from distill.judge.selection import sample_ids

        select = self.config.select
        ids = [row["example_id"] for row in rows]
        inside = set(sample_ids(ids, size=select.sample or ASKED_PROMPTS, seed=select.seed))
        return [row for row in rows if row["example_id"] in inside]

    def ask(self) -> tuple[list[Row], list[Row]]:
        """Return (answers, verdicts) of all candidates, on Ray, with progress."""
        from cluster.session import ray_session
        from distill.prompts.writer import prompts_and_writer
        from distill.teach.candidates import ask_candidates

        logs = Path(self.store.root) / "logs"
        with (
            engine_output_to(logs / "driver.log") as display,
            errors_to_log(logs / "driver.log"),
            ray_session(self.config.cluster, log_folder=logs / "ray"),
            display.step("select") as progress,
        ):
            prompts = prompts_and_writer(
                self.task, self.config.prompts, self.candidates[0], store=self.store
            )
            return ask_candidates(
                self.task,
                self.candidates,
                prompts=self.sample(prompts.rows("train")),
                jury=self.config.jury,
                store=self.store,
                on_progress=lambda what, done, total: progress.update(done, total, what),
            )


def select_teacher(
    files: Sequence[str | Path],
    *,
    overrides: Sequence[str] = (),
    display: Display | None = None,
    dry_run: bool = False,
) -> Row:
    """Compare the candidates, write the scorecard, show it; returns what `selection.json` holds.

    `dry_run` prints what asking the candidates would cost and returns nothing.
    """
    from distill.judge.exports import read_answers, read_verdicts
    from distill.judge.scorecard import PAGE_FILE, pairwise_sentence, table, write_selection
    from distill.judge.selection import score_candidates

    whole = load_config(SelectionConfig, files, overrides=overrides)
    config = whole.select
    display = display or Display()
    questioning = Questioning(whole) if config.candidates else None
    if questioning is not None:
        if dry_run:
            print_cost(questioning)
            return {}
        answers, verdicts = questioning.ask()
    else:
        if dry_run:
            display.say("exported answers are compared: nothing is asked and it costs nothing.")
            return {}
        answers, inline = read_answers(config.answers)
        verdicts = [*inline, *read_verdicts(config.verdicts)]
    selection = score_candidates(
        answers,
        verdicts,
        # Candidates were asked no more than the sample.
        sample=None if config.candidates else config.sample,
        seed=config.seed,
        bootstrap_samples=config.bootstrap_samples,
    )
    out = Store(config.out)
    if config.pairwise:
        selection["pairwise"] = compare_first_two(selection, answers, config.pairwise, out=out)
    write_selection(out, selection)
    titles, rows = table(selection)
    # A column a candidate: there are few of them and many figures.
    _, *figures = zip(titles, *rows, strict=True)
    display.table("teacher selection", ["", *selection["candidates"]], figures)
    display.say(selection["verdict"])
    for judge, pairs in selection.get("pairwise", {}).items():
        display.say(pairwise_sentence(selection, judge, pairs))
    for note in selection["notes"]:
        display.say(f"  {note}")
    if questioning is not None:
        paid = bill_sentence(
            questioning.store.read_json(BILL_FILE), file=questioning.store.path(BILL_FILE)
        )
        if paid:
            display.say(paid)
    display.say(out.path(PAGE_FILE))
    return selection


def print_cost(questioning: Questioning) -> None:
    """Print what asking each candidate would take."""
    from jobs.estimate import estimate_teacher, print_estimates, task_prompts

    rows = questioning.sample(task_prompts(questioning.task, questioning.config.prompts))
    print_estimates(
        (name, estimate_teacher(questioning.task, candidate, rows, store=questioning.store))
        for name, candidate in zip(questioning.names, questioning.candidates, strict=True)
    )


def compare_first_two(
    selection: Row, answers: Sequence[Row], judges: Sequence[JudgeLiteLLM], *, out: Store
) -> dict[str, Row]:
    """Ask judges which of the first two's answers is better, in both orders: judge -> figures.

    What was answered lies in `pairwise/` and is not asked again. A prompt that one of the two left
    unanswered is not compared. DataError when the answers came without their prompts.
    """
    import pyarrow as pa

    from distill.judge.pairwise import Pair, compare, summarise
    from distill.judge.stage import NEUTRAL

    first, second = selection["winner"], selection["runner_up"]
    known = {(row["candidate"], row["example_id"]): row for row in answers if not row["error"]}
    pairs = []
    for key in selection["sample"]["ids"]:
        ours, theirs = known.get((first, key)), known.get((second, key))
        if ours is None or theirs is None:
            continue
        messages = ours["messages"] or theirs["messages"]
        if not messages:
            raise DataError(
                f"select.pairwise: the answers to {key} have no `messages`, so the judge cannot "
                "be shown the prompt; export it (role and content of each message)."
            )
        pairs.append(
            Pair(
                example_id=key,
                messages=messages,
                first=ours["completion"],
                second=theirs["completion"],
            )
        )
    figures = {}
    for judge in judges:
        asked = [judge.model_dump(exclude=NEUTRAL), [asdict(pair) for pair in pairs]]
        path = f"pairwise/{digest_of(asked)[:12]}.parquet"
        rows = out.read_rows(path) if out.exists(path) else []
        rows = [row for row in rows if row["outcome"] != "failed"]
        done = {row["example_id"] for row in rows}
        missing = [pair for pair in pairs if pair.example_id not in done]
        if missing:
            rows += compare(judge, missing)
            out.write_table(path, pa.Table.from_pylist(rows))
        figures[judge.name or judge.model] = summarise(rows)
    return figures


def main() -> None:
    """Entry point of `python -m jobs.select_teacher`."""
    if {"-h", "--help"} & set(sys.argv[1:]):
        print("usage: python -m jobs.select_teacher --config FILE [--dry-run] [--select.field …]")
        raise SystemExit(0)

    def action() -> None:
        arguments = [argument for argument in sys.argv[1:] if argument != "--dry-run"]
        files, overrides, _ = parse_arguments(arguments)
        select_teacher(files, overrides=overrides, dry_run="--dry-run" in sys.argv[1:])

    raise SystemExit(guarded(action))


if __name__ == "__main__":
    main()
