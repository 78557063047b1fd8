"""A model writes prompts: into the pool comes what is readable, complete and new, nothing else."""

from __future__ import annotations

import json
import random
import re

import pytest

from cluster.errors import ConfigError
from cluster.storage import Store
from distill.config import PromptsConfig
from distill.prompts.config import EvolInstruct, SelfInstruct
from distill.prompts.evol_instruct import OPERATIONS, evol_instruct
from distill.prompts.pool import Pool, read_objects
from distill.prompts.self_instruct import self_instruct
from distill.prompts.stage import make_prompts
from distill.prompts.writer import write_with, writer_of
from distill.tasks.task import load_task
from distill.teach.answer import Answer, journal_row
from distill.teach.ask import cache_folder, request_keys
from distill.teach.config import LiteLLMTeacher, ProgramTeacher
from distill.teach.journal import Journal
from jobs.init import init_task

WORDS = [f"word{number}" for number in range(3000)]
SEEDS = [
    {"product": "lamp", "problem": "dark", "ticket": "The lamp stays dark since this morning."},
    {"product": "kettle", "problem": "leak", "ticket": "Water runs out under my new kettle."},
]


def by_split(prompts):
    return {name: prompts.rows(name) for name in prompts.sizes}


@pytest.fixture
def task(tmp_path):
    init_task(str(tmp_path / "tickets"))
    return load_task(tmp_path / "tickets")


def pool(task, config=None, held_out=()):
    return Pool(task, config or SelfInstruct(), seeds=list(SEEDS), held_out=list(held_out))


def ticket(seed):
    rng = random.Random(seed)
    return {"product": f"p{seed}", "problem": "odd", "ticket": " ".join(rng.sample(WORDS, 12))}


class Writer:
    """Writes tickets nobody has seen, as many as each request asks for."""

    def __init__(self, *, per_answer=4):
        self.asked, self.per_answer = [], per_answer

    def __call__(self, conversations):
        answers = []
        for messages in conversations:
            self.asked.append(messages)
            first = len(self.asked) * 1000
            answers.append(json.dumps([ticket(first + n) for n in range(self.per_answer)]))
        return answers


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"ticket": "The lamp stays dark since this morning!"}, None),
        ({"extra": 1}, "other fields"),
        ({"ticket": 7}, "other types"),
        ({"product": "", "problem": "", "ticket": "Hm."}, "too short"),
        ({"ticket": " ".join(WORDS[:700])}, "too long"),
        ({"ticket": "I'm sorry, but I can't help with that request."}, "refusal"),
        ({"ticket": "Here is the rewritten prompt about a broken fan."}, "talks about itself"),
    ],
)
def test_what_is_no_prompt_of_the_task_is_refused_by_reason(task, change, reason):
    found = pool(task)
    candidate = {"product": "lamp", "problem": "dark", "ticket": "x", **change}
    if reason is None:
        reason = "too similar"
    else:
        candidate = {"product": "fan", "problem": "noise", **{"ticket": "x y z"}, **change}
    assert not found.add(candidate)
    assert found.refused == {reason: 1}


def test_a_prompt_like_a_held_out_one_is_refused(task):
    held_out = [{"product": "fan", "problem": "noise", "ticket": "The fan hums loudly at night."}]
    near = {"product": "fan", "problem": "noise", "ticket": "My fan hums loudly at night."}
    assert pool(task).add(near)
    assert not pool(task, held_out=held_out).add(near)


def test_similarity_is_rouge_l(task):
    """LCS of `a b c d` and `a x c d` is 3: F1 = 2·3 ÷ 8 = 0.75."""
    for limit, taken in ((0.74, False), (0.76, True)):
        found = Pool(
            task,
            SelfInstruct(fields=("ticket",), max_similarity=limit),
            seeds=[{"product": "p", "problem": "q", "ticket": "alpha beta gamma delta"}],
            held_out=[],
        )
        candidate = {"product": "p", "problem": "q", "ticket": "alpha other gamma delta"}
        assert found.add(candidate) is taken


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ('[{"a": 1}, {"a": 2}]', [{"a": 1}, {"a": 2}]),
        ('Sure:\n```json\n[{"a": 1}]\n```', [{"a": 1}]),
        ('{"a": 1}\n{"a": 2}', [{"a": 1}, {"a": 2}]),
        ('[{"a": 1},\n{"a": 2}, {"a"', [None, None]),
        ("I cannot.", [None]),
        ("", [None]),
    ],
)
def test_a_writers_answer_is_read_as_objects_and_garbage_counts(text, found):
    assert read_objects(text) == found


def test_rounds_go_on_until_the_target_and_show_what_was_written(task):
    grown = pool(task)
    writer = Writer()
    rounds = self_instruct(grown, SelfInstruct(requests=3, per_request=4), target=20, ask=writer)
    assert len(grown.grown) == 20
    assert [entry["added"] for entry in rounds] == [12, 8]
    shown = [
        json.loads(line) for line in writer.asked[-1][1]["content"].splitlines() if "{" in line
    ]
    assert sum(entry in SEEDS for entry in shown) == 2
    assert sum(entry in grown.grown for entry in shown) == 2


def test_a_writer_that_repeats_itself_ends_the_rounds(task):
    grown = pool(task)

    def repeat(conversations):
        return [json.dumps([ticket(1)])] * len(conversations)

    rounds = self_instruct(grown, SelfInstruct(rounds=50, requests=2), target=100, ask=repeat)
    assert [entry["added"] for entry in rounds] == [1, 0, 0]
    assert grown.refused == {"too similar": 5}


def test_two_runs_of_one_seed_ask_the_same(task):
    first, second = Writer(), Writer()
    for writer in (first, second):
        self_instruct(pool(task), SelfInstruct(requests=3, per_request=4), target=20, ask=writer)
    assert first.asked == second.asked


def test_generations_rewrite_their_parents_and_drop_what_fails(task):
    config = EvolInstruct(generations=2, fields=("ticket",))
    grown = Pool(task, config, seeds=list(SEEDS), held_out=[])
    asked = []

    def rewrite(conversations):
        asked.append([messages[1]["content"] for messages in conversations])
        first, *others = [
            json.dumps({"ticket": f"{ticket(100 * len(asked) + n)['ticket']}"})
            for n in range(len(conversations))
        ]
        return [first, *("no JSON" for _ in others)]

    generations = evol_instruct(grown, config, target=10, ask=rewrite)
    assert [entry["added"] for entry in generations] == [1, 1]
    # The first child is rewritten again; the second seed's failed, so the seed takes part again.
    assert grown.grown[0]["ticket"] in asked[1][0]
    assert SEEDS[1]["ticket"] in asked[1][1]
    assert grown.grown[0]["product"] == SEEDS[0]["product"]
    assert any(text in asked[0][0] for text in OPERATIONS.values())
    assert sum(generations[0]["operations"].values()) == 1


def test_a_rewrite_that_changes_nothing_is_eliminated(task):
    config = EvolInstruct(generations=1, fields=("ticket",))
    grown = Pool(task, config, seeds=list(SEEDS), held_out=[])

    def echo(conversations):
        return [re.search(r"\{.*\}", m[1]["content"])[0] for m in conversations]

    evol_instruct(grown, config, target=2, ask=echo)
    assert grown.refused == {"too similar": 2}


def test_written_prompts_train_and_the_held_out_ones_are_never_shown(task, tmp_path):
    writer = Writer(per_answer=8)
    config = PromptsConfig(train=400, validation=10, test=20, make=SelfInstruct())
    store = Store(tmp_path / "run")
    split = make_prompts(task, config, store=store, ask=writer)
    assert {name: len(rows) for name, rows in by_split(split).items()} == {
        "train": 400, "validation": 10, "test": 20,
    }  # fmt: skip
    shown = "\n".join(messages[1]["content"] for messages in writer.asked)
    for row in (*split.rows("test"), *split.rows("validation")):
        assert json.loads(row["variables"])["ticket"] not in shown
    own = make_prompts(task, config.model_copy(update={"make": PromptsConfig().make}), store=store)
    assert [r["example_id"] for r in own.rows("test")] == [
        r["example_id"] for r in split.rows("test")
    ]


def test_the_report_says_what_was_written_and_refused(task, tmp_path):
    config = PromptsConfig(train=400, validation=10, test=20, make=SelfInstruct(rounds=1))
    store = Store(tmp_path)
    split = make_prompts(task, config, store=store, ask=lambda asked: ["no JSON"] * len(asked))
    made = store.read_json("prompts/made.json")
    assert made["grown"] == 0
    assert made["refused"] == {"unreadable": 16}
    assert "0 of 195 prompts written, from 205 of the task's own" in split.notes[0]


def test_without_a_model_to_write_the_error_says_what_to_set():
    config = PromptsConfig(make=SelfInstruct())
    with pytest.raises(ConfigError, match=r"set \[prompts.make.writer\]"):
        writer_of(config, ProgramTeacher())
    assert writer_of(config, LiteLLMTeacher(model="m")).repair is False
    assert writer_of(PromptsConfig(), ProgramTeacher()) is None


def test_of_a_list_that_was_cut_off_the_whole_lines_are_taken(task, tmp_path):
    config, store = LiteLLMTeacher(model="m", max_tokens=3), Store(tmp_path / "runs/a")
    asked = [{"role": "user", "content": "Write two."}]
    row = {"example_id": "e", "messages": asked, "variables": "", "sample": 0, "stage": "prompts"}
    [key] = request_keys([row], config, task)
    cut = Answer(
        completion=f'[\n{json.dumps(ticket(1))},\n{{"product": "p',
        error="cut off at teacher.max_tokens 3; raise it",
        failure="truncated",
    )
    with Journal(cache_folder(config, store=store)) as journal:
        journal.add(journal_row({**row, "request_key": key}, cut, teacher="t", payer="a"))
    [answer] = write_with(config, task, store=store)([asked])
    assert read_objects(answer) == [ticket(1), None]


def test_a_task_without_text_to_write_is_refused(task):
    with pytest.raises(ConfigError, match="variables that are text"):
        Pool(task, SelfInstruct(fields=("weight",)), seeds=SEEDS, held_out=[])


@pytest.mark.parametrize(
    "answer", ["[]", "", "null", "[[]]", "[" * 100_000, '{"ticket": "It is \\ud800."}']
)
def test_a_rewrite_that_is_no_prompt_is_counted_and_the_others_go_on(task, answer):
    grown = Pool(task, EvolInstruct(generations=1), seeds=list(SEEDS), held_out=[])
    good = json.dumps(ticket(7))
    evol_instruct(grown, EvolInstruct(generations=1), target=2, ask=lambda _: [answer, good])
    assert len(grown.grown) == 1
    assert grown.refused == {"unreadable": 1}


def test_prompts_that_lack_a_field_are_compared_by_what_they_have(task):
    grown = Pool(task, SelfInstruct(), seeds=[*SEEDS, {"ticket": "It hums."}], held_out=[])
    assert grown.add({"product": "fan", "problem": "noise", "ticket": "It rattles at night."})
