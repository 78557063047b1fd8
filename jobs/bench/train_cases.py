"""The cases of the training benchmark, each a function from the bench to its figures."""

from __future__ import annotations

import json
import statistics

from distill.train.batches import plan_epoch
from distill.train.config import TrainConfig
from distill.train.pairs import pairs_from_file
from jobs.bench.lora import ratios
from jobs.bench.report import Case, at_least, at_most, for_comparison
from jobs.bench.train_data import interview_records, mixed_records, preference_pairs, run_records
from jobs.bench.train_ours import Trained, run_ours
from jobs.bench.train_sides import Bench, Rows, our_turn, say, settings_for, take_turns

HELD_OUT = 0.1
WORKERS_STEPS = 8
"""Of the comparison of workers: in their first steps they still touch memory for the first time."""
MORE_STEPS = 1.2
"""Ours may take more steps than TRL to the same loss: what is compared is time."""


def speed(bench: Bench) -> list[Case]:
    """Useful tokens a second on mixed lengths, against TRL unpacked and packed."""
    settings = settings_for()
    records = mixed_records(bench.corpus, bench.steps * settings.batch_size, seed=0)
    with bench.peer() as peer:
        runs = take_turns(
            {
                "ours": lambda: our_turn(bench, settings, records),
                "TRL unpacked": lambda: peer.train("sft", settings, records=records),
                "TRL packed": lambda: peer.train("packed", settings, records=records),
            },
            rounds=bench.rounds,
            once={"TRL unpacked"},
        )
    return [
        *_rates("mixed lengths", runs),
        _faster("mixed lengths", runs, than="TRL unpacked", target=4.0),
        _faster("mixed lengths", runs, than="TRL packed", target=1.5),
        *_whole_runs(f"whole run of {bench.steps} steps", runs),
    ]


def interview(bench: Bench) -> list[Case]:
    """Useful tokens a second where half of each record is a prefix shared by 20 others."""
    settings = settings_for(batch_size=14, micro_batch_size=7, prefix_group=7)
    # 42 records, three steps of 14: whole groups only, a cut one would share with fewer.
    records = interview_records(bench.corpus, 2, seed=0)
    with bench.peer() as peer:
        runs = take_turns(
            {
                "ours": lambda: our_turn(bench, settings, records),
                "TRL packed": lambda: peer.train("packed", settings, records=records),
            },
            rounds=bench.rounds,
        )
    return [
        *_rates("shared prefixes", runs),
        _faster("shared prefixes", runs, than="TRL packed", target=1.8),
    ]


def dpo(bench: Bench) -> list[Case]:
    """Preference pairs a second."""
    file = bench.folder / "pairs.jsonl"
    settings = settings_for(
        method="dpo",
        # A pair at a time: the two answers have one length, so TRL pads nothing.
        batch_size=2,
        micro_batch_size=1,
        learning_rate=5e-5,
    )
    pairs = preference_pairs(bench.corpus, bench.steps * settings.batch_size, seed=0)
    file.write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    ours = pairs_from_file(str(file))
    with bench.peer() as peer:
        runs = take_turns(
            {
                "ours": lambda: our_turn(bench, settings, ours, ours[:2]),
                "TRL": lambda: peer.train("dpo", settings, records=pairs),
            },
            rounds=bench.rounds,
        )
    rates = {
        name: [run.steps_per_s * settings.batch_size for run in of] for name, of in runs.items()
    }
    return [
        *(
            for_comparison(f"dpo: {name}", statistics.median(of), unit="pairs/s")
            for name, of in rates.items()
        ),
        at_least("dpo: ours / TRL", ratios(rates["ours"], rates["TRL"]), unit="ratio", target=1.6),
    ]


def workers(bench: Bench) -> list[Case]:
    """Two workers against one, one thread each, the same records a step."""
    two = settings_for()
    one = two.model_copy(update={"workers": 1})
    steps = max(bench.steps, WORKERS_STEPS)
    records = mixed_records(bench.corpus, steps * two.batch_size, seed=0)
    runs = take_turns(
        {
            "two workers": lambda: our_turn(bench, two, records),
            "one worker": lambda: our_turn(bench, one, records),
        },
        rounds=bench.rounds,
    )
    quotient = ratios(
        *([run.tokens_per_s for run in runs[name]] for name in ("two workers", "one worker"))
    )
    return [
        *_rates("mixed lengths", runs),
        at_least("two workers / one", quotient, unit="ratio", target=1.7),
    ]


def quality(bench: Bench) -> list[Case]:
    """Held-out loss after the same records in the same order; the mean over seeds counts."""
    taught, asked = bench.corpus.parts(held_out=HELD_OUT)
    validation = mixed_records(asked, 24, seed=-2, longest=300)
    found: dict[str, list[float]] = {"before": [], "ours": [], "TRL": []}
    with bench.peer() as peer:
        for seed in range(bench.seeds):
            settings = settings_for(seed=seed, learning_rate=1e-3)
            count = bench.quality_steps * settings.batch_size
            records = mixed_records(taught, count, seed=seed, longest=300)
            ours = our_turn(bench, settings, records, validation)
            in_order = _as_ours_takes_them(records, settings, steps=bench.quality_steps)
            trl = peer.train("sft", settings, records=in_order, validation=validation)
            found["before"].append(ours.losses[0])
            found["ours"].append(ours.losses[len(ours.seconds)])
            found["TRL"].append(trl.losses[len(trl.seconds)])
            say("quality", {name: values[-1] for name, values in found.items()})
    means = {name: statistics.fmean(values) for name, values in found.items()}
    return [
        *(
            for_comparison(f"held-out loss, {name}", mean, unit="nats/token")
            for name, mean in means.items()
        ),
        at_most(
            "held-out loss, ours from TRL's",
            abs(means["ours"] / means["TRL"] - 1) * 100,
            unit="%",
            target=1.0,
        ),
    ]


def demo(bench: Bench) -> list[Case]:
    """Seconds in steps until TRL's final held-out loss, on the records of the demo."""
    from jobs.config import load_run_config

    config = load_run_config([bench.demo_run])
    records, validation = run_records(bench.demo_run, bench.folder / "demo")
    student = config.student.model_copy(update={"model": str(bench.model)})
    told = {"epochs": 1, "max_steps": bench.demo_steps}
    theirs = config.train.for_hardware(None).model_copy(update=told)
    mine = theirs.model_copy(
        update={
            "epochs": 2,
            "max_steps": round(MORE_STEPS * bench.demo_steps),
            "eval_every": 5,
            "patience": 1_000_000,
        }
    )
    in_order = _as_ours_takes_them(records, theirs, steps=bench.demo_steps)
    with bench.peer() as peer:
        trl = peer.train(
            "sft",
            theirs,
            records=in_order,
            validation=validation,
            max_length=config.student.max_length,
        )
    goal = trl.losses[len(trl.seconds)]
    say("demo, TRL", {"loss": goal, "seconds": sum(trl.seconds)})
    ours = run_ours(student, mine, records=records, validation=validation)
    say("demo, ours", {str(step): loss for step, loss in ours.losses.items()})
    return [
        for_comparison(
            f"demo: TRL's held-out loss after {len(trl.seconds)} steps", goal, unit="nats/token"
        ),
        for_comparison("demo: TRL's time in steps", sum(trl.seconds), unit="s"),
        *time_to(ours, goal=goal, theirs_s=sum(trl.seconds)),
    ]


def time_to(ours: Trained, *, goal: float, theirs_s: float) -> list[Case]:
    """Our time to a loss, and what it is of theirs; a loss never reached misses the target."""
    reached = ours.seconds_to(goal)
    spent = sum(ours.seconds) if reached is None else reached
    lowest = for_comparison(
        "demo: our lowest held-out loss", min(ours.losses.values()), unit="nats/token"
    )
    if reached is None:
        return [
            lowest,
            Case(
                case="demo: TRL's loss was not reached; all our steps / TRL's time",
                figure=spent / theirs_s,
                unit="ratio",
                target="reached",
                ok=False,
            ),
        ]
    return [
        lowest,
        for_comparison("demo: our time in steps to TRL's loss", spent, unit="s"),
        at_most("demo: time to TRL's loss, ours / TRL", spent / theirs_s, unit="ratio", target=0.6),
    ]


def _as_ours_takes_them(records: Rows, settings: TrainConfig, *, steps: int) -> Rows:
    """Return the records of the first epoch's steps in the order in which our loop draws them."""
    plan = plan_epoch(
        [1] * len(records),
        seed=settings.seed,
        epoch=0,
        batch_size=settings.batch_size,
        workers=settings.workers,
        micro_batch_size=settings.micro_batch_size,
    )
    return [records[i] for step in plan[:steps] for worker in step for part in worker for i in part]


def _rates(what: str, runs: dict[str, list[Trained]]) -> list[Case]:
    return [
        for_comparison(
            f"{what}: {name}", statistics.median(run.tokens_per_s for run in of), unit="tok/s"
        )
        for name, of in runs.items()
    ]


def _faster(what: str, runs: dict[str, list[Trained]], *, than: str, target: float) -> Case:
    theirs = [run.tokens_per_s for run in runs[than]]
    mine = [run.tokens_per_s for run in runs["ours"][: len(theirs)]]
    return at_least(f"{what}: ours / {than}", ratios(mine, theirs), unit="ratio", target=target)


def _whole_runs(what: str, runs: dict[str, list[Trained]]) -> list[Case]:
    return [
        for_comparison(f"{what}: {name}", statistics.median(run.wall_s for run in of), unit="s")
        for name, of in runs.items()
    ]
