"""Which candidate should teach: `python -m jobs.select_teacher --config FILE`.

The file has one section:

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

from cluster.config import StrictModel, load_config
from cluster.errors import DataError
from cluster.storage import Store, digest_of
from distill.config import JudgeLiteLLM, SelectConfig
from jobs.display import Display
from jobs.entry import parse_arguments
from jobs.guard import guarded

Row = dict[str, Any]


class SelectionConfig(StrictModel):
    """A TOML file for `distillery select-teacher`."""

    select: SelectConfig


def select_teacher(
    files: Sequence[str | Path], *, overrides: Sequence[str] = (), display: Display | None = None
) -> Row:
    """Compare the candidates, write the scorecard, show it; returns what `selection.json` holds."""
    from distill.judge.exports import read_answers, read_verdicts
    from distill.judge.scorecard import PAGE_FILE, pairwise_sentence, table, write_selection
    from distill.judge.selection import score_candidates

    config = load_config(SelectionConfig, files, overrides=overrides).select
    display = display or Display()
    answers, inline = read_answers(config.answers)
    selection = score_candidates(
        answers,
        [*inline, *read_verdicts(config.verdicts)],
        sample=config.sample,
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
    display.say(out.path(PAGE_FILE))
    return selection


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
        print("usage: python -m jobs.select_teacher --config FILE [--select.field value …]")
        raise SystemExit(0)

    def action() -> None:
        files, overrides, _ = parse_arguments(sys.argv[1:])
        select_teacher(files, overrides=overrides)

    raise SystemExit(guarded(action))


if __name__ == "__main__":
    main()
