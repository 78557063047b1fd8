"""The reference workload: its data hold what they say, questions are read back and executed."""

import json
import tomllib
from collections import Counter
from pathlib import Path

import pytest

from cluster.errors import DataError
from cluster.storage import Store
from distill.config import JudgeParse, JudgeVerify, PromptsConfig
from distill.judge.judges import ParseJudge, VerifyJudge
from distill.prompts.grid import grid_prompts, grid_size
from distill.prompts.split import build_rows
from distill.prompts.stage import make_prompts
from distill.tasks.interview.question import FormError, read_question, read_signature
from distill.tasks.interview.verify import verify
from distill.tasks.sandbox import Limits, check_calls
from distill.tasks.task import load_task
from distill.teach.config import ReplayTeacher
from distill.teach.replay import ReplayTeacherRunner
from jobs.config import load_run_config

ROOT = Path(__file__).parents[3]
FOLDER = ROOT / "distill" / "tasks" / "interview"
TASK = load_task("interview")
ROLES = ["backend", "frontend", "infrastructure", "ml", "security"]


def by_split(prompts):
    return {name: prompts.rows(name) for name in prompts.sizes}


def data(axis):
    return {
        path.stem: tomllib.loads(path.read_text())
        for path in sorted((FOLDER / axis).glob("*.toml"))
    }


PROBLEMS, COMPANIES = data("problems"), data("companies")
COMBINATION = "arrays-ring-buffer-replay/brasswyvern/backend"

GOOD = """
## Title
Catching Up a Spectator of Ashen Causeway

## Problem statement
Brasswyvern's Rewind Box keeps the latest snapshots of a match in Ashen Causeway, so that a \
spectator who joins late can catch up. A session server has room for `room` snapshots. You are \
given its journal in `events`. A number from 0 upwards is a snapshot that is stored; if there is \
no room, the oldest stored snapshot is evicted first. The number -1 says that the spectator \
service has consumed the oldest stored snapshot, which then leaves the store; if the store is \
empty, nothing happens.

Return a list of two lists: the snapshots that are stored after the last event, oldest first, and \
the snapshots that were evicted for lack of room, in the order of their eviction.

## Function signature
def catch_up(room: int, events: list[int]) -> list[list[int]]:

## Constraints
- 1 <= room <= 100000, the snapshots that a session server can hold
- 0 <= len(events) <= 100000
- -1 <= events[i] <= 10^9

## Examples
Example 1
Input: room = 2, events = [5, 6, 7]
Output: [[6, 7], [5]]
Explanation: Snapshot 7 finds no room, so 5 is evicted.

Example 2
Input: room = 3, events = [4, 9, -1, 8, 1]
Output: [[9, 8, 1], []]
Explanation: The spectator consumes 4, and there is room for all others.

Example 3
Input: room = 1, events = []
Output: [[], []]
Explanation: Nothing was stored.

## Follow-ups
- A journal may be delivered twice after a reconnect. How do you make applying it safe to retry?
- Two spectators consume at different speeds from one store. What do you change, and what does it
  cost per event at a tick of 60 Hz?
"""
# What teachers get wrong, each by one change.
WRONG_OUTPUT = GOOD.replace("Output: [[9, 8, 1], []]", "Output: [[9, 8, 1], [4]]")
MISSING_SECTION = GOOD.replace("## Constraints", "## Limits")


@pytest.fixture
def row():
    """The prompt of `COMBINATION`, as the pipeline makes it."""
    axes = {"problem": PROBLEMS, "company": COMPANIES, "role": data("roles")}
    identities = dict(zip(axes, COMBINATION.split("/"), strict=True))
    entries = {axis: axes[axis][identity] for axis, identity in identities.items()}
    (row,) = build_rows(TASK, [{"id": COMBINATION, **entries}])
    return row


def answer(text=GOOD):
    parsed = TASK.parse(text)
    assert parsed.answer is not None, parsed.problem
    return parsed.answer


def problems_of(text):
    with pytest.raises(FormError) as caught:
        read_question(answer(text))
    return caught.value.problems


def test_every_entry_has_its_fields():
    assert list(data("roles")) == ROLES
    assert len(COMPANIES) == 15
    for name, company in COMPANIES.items():
        assert company["id"] == name
        assert set(company["pain_points"]) == set(ROLES)
        assert all(len(points) >= 3 for points in company["pain_points"].values())
    for name, role in data("roles").items():
        assert role["id"] == name
        assert min(len(role[field]) for field in ("focus", "vocabulary", "signals")) >= 3
    for name, problem in PROBLEMS.items():
        assert problem["id"] == name
        assert name.startswith(problem["topic"])
        assert problem["difficulty"] in ("easy", "medium", "hard")
        assert 60 <= len(problem["statement"].split()) <= 160
        assert len(problem["examples"]) >= 3
        assert len(problem["tests"]) >= 8
        assert len(problem["constraints"]) >= 3
    titles = [problem["title"].casefold() for problem in PROBLEMS.values()]
    assert len(set(titles)) == len(titles)


def test_a_hundred_problems_of_twenty_topics_make_7500_combinations():
    assert len(PROBLEMS) == 100
    assert set(Counter(p["topic"] for p in PROBLEMS.values()).values()) == {5}
    difficulties = Counter(p["difficulty"] for p in PROBLEMS.values())
    assert all(30 <= count <= 37 for count in difficulties.values())
    assert grid_size(TASK) == 7500


@pytest.mark.slow
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_reference_solution_passes_its_examples_and_tests(name):
    problem = PROBLEMS[name]
    function = read_signature(problem["signature"]).function
    cases = [(case["args"], case["expected"]) for case in problem["examples"] + problem["tests"]]
    outcomes = check_calls(problem["solution"], function, cases)
    assert [(n, o.detail) for n, o in enumerate(outcomes, start=1) if o.kind != "ok"] == []


def test_a_prompt_shows_what_matters_for_the_role_and_keeps_the_solution(row):
    system, user = (message["content"] for message in row["messages"])
    for section in TASK.spec.output.sections:
        assert f"## {section}" in system
    company, problem = COMPANIES["brasswyvern"], PROBLEMS["arrays-ring-buffer-replay"]
    assert company["pain_points"]["backend"][0] in user
    for other in ROLES:
        shown = company["pain_points"][other][0] in user
        assert shown == (other == "backend")
    assert "Input: capacity = 2, operations = [5, 6, 7]\nOutput: [[6, 7], [5]]" in user
    assert "slots = [0] * capacity" in problem["solution"]
    assert "slots = [0] * capacity" not in system + user


@pytest.mark.parametrize("name", PROBLEMS)
def test_the_prompt_writes_examples_in_the_format_that_it_asks_for(name):
    """The examples of every prompt are read by the parser and are those of the problem."""
    problem = PROBLEMS[name]
    entries = {"company": COMPANIES["tarnstack"], "role": data("roles")["ml"], "problem": problem}
    user = TASK.messages(entries)[-1]["content"]
    examples = user[user.index("Example 1\n") :]
    sections = {**answer(), "Examples": examples, "Function signature": problem["signature"]}
    question = read_question(sections)
    assert [(e.arguments, e.output) for e in question.examples] == [
        (e["args"], e["expected"]) for e in problem["examples"]
    ]


def test_a_question_is_read_back():
    question = read_question(answer())
    assert question.title == "Catching Up a Spectator of Ashen Causeway"
    assert question.signature.function == "catch_up"
    assert question.signature.parameters == ("room", "events")
    assert len(question.constraints) == 3
    assert [example.arguments for example in question.examples] == [
        [2, [5, 6, 7]], [3, [4, 9, -1, 8, 1]], [1, []],
    ]  # fmt: skip
    assert question.examples[2].output == [[], []]
    assert question.examples[1].explanation.startswith("The spectator consumes 4")
    assert question.follow_ups[1].endswith("what does it cost per event at a tick of 60 Hz?")


def test_arguments_follow_the_signature_whatever_their_order_in_the_input(row):
    text = GOOD.replace("room = 2, events = [5, 6, 7]", "events = [5, 6, 7], room = 2")
    assert read_question(answer(text)).examples[0].arguments == [2, [5, 6, 7]]
    assert verify(json.loads(row["variables"]), answer(text)) == (1.0, "")


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        ("Ashen Causeway\n\n##", "Ashen\nCauseway\n\n##", "Title: it must be one line."),
        ("def catch_up(", "catch_up(", "'catch_up(room: int, events: list[int]) -> list"),
        ("-> list[list[int]]:", "-> list[list[int]]: return []", "must have no body"),
        ("events: list[int])", "events: list[int] = 3)", "defaults and decorators are not allowed"),
        ("room: int,", "*room: int,", "without * and /"),
        ("def catch_up", "import re\ndef catch_up", "one def line and nothing else"),
        ("- 0 <= len(events)", "0 <= len(events)", "Constraints: '0 <= len(events) <= 100000'"),
        ("Output: [[6, 7], [5]]\n", "", "Example 1: Output must follow on one line."),
        ("Input: room = 2, events = [5, 6, 7]\n", "", "Example 1: Input must follow on one line."),
        ("room = 2, events", "capacity = 2, events", "Input names capacity, events"),
        ("room = 2, events", "2, events", "is not name = value"),
        ("room = 2, events", "room = 2, **events", "is not name = value"),
        ("events = [5, 6, 7]", "events = range(5, 8)", "'range(5, 8)' is no Python literal"),
        ("events = [5, 6, 7]", "events = (5, 6, 7)", "(tuple), which JSON does not"),
        ("Output: [[6, 7], [5]]", "Output: {1}", "Output holds {1} (set)"),
        ("Output: [[6, 7], [5]]", "Output: [[6, 7], [1e999]]", "Output holds inf (float)"),
        ("Output: [[6, 7], [5]]", "Output: {1: 2}", "Output holds the key 1"),
        ("Output: [[6, 7], [5]]", "Output: see above", "'see above' is no Python literal"),
        ("Output: [[6, 7], [5]]", "Output: [[6, 7], [5]]\nOutput: 1", "Output stands twice"),
        ("Example 3\nInput: room = 1, events = []",
         "Example 3\nInput: room = 2, events = [5, 6, 7]", "same input as example 1"),
        ("Example 2\n", "The second one.\n", ""),
        ("Example 1\n", "As follows.\n", "'As follows.' is not Input:, Output: or Explanation:"),
        ("- A journal may", "A journal may", "Follow-ups: 1 item, at least 2 are needed."),
    ],
)  # fmt: skip
def test_each_fault_of_form_is_a_sentence(old, new, problem):
    text = GOOD.replace(old, new, 1)
    assert text != GOOD
    if not problem:  # A line below an explanation belongs to it.
        assert read_question(answer(text)).examples[0].explanation.endswith("The second one.")
        return
    sentences = problems_of(text)
    assert any(problem in sentence for sentence in sentences)
    assert all(sentence.endswith(".") for sentence in sentences)


def test_all_faults_are_listed_at_once():
    text = GOOD.replace("- A journal", "A journal").replace("events = []", "events = None")
    assert problems_of(text) == [
        "Example 3: events holds None (NoneType), which JSON does not.",
        "Follow-ups: 'A journal may be delivered twice after a reconnect. How do you make applying "
        "it …' is no list item; begin each with '- '.",
        "Follow-ups: 1 item, at least 2 are needed.",
    ]  # fmt: skip


def test_the_share_of_examples_that_hold_and_the_first_that_does_not(row):
    variables = json.loads(row["variables"])
    assert verify(variables, answer()) == (1.0, "")
    score, reason = verify(variables, answer(WRONG_OUTPUT))
    assert score == pytest.approx(2 / 3)
    assert reason == (
        "Example 2: Output is [[9, 8, 1], [4]], the reference solution returns [[9, 8, 1], []]."
    )


def test_two_examples_or_another_number_of_parameters_score_nothing(row):
    variables = json.loads(row["variables"])
    two = GOOD[: GOOD.index("Example 3")] + GOOD[GOOD.index("## Follow-ups") :]
    assert verify(variables, answer(two)) == (
        0.0, "Examples: 2 examples, at least 3 are needed.",
    )  # fmt: skip
    wider = GOOD.replace("(room: int,", "(room: int, tick: int,").replace(
        "room =", "tick = 1, room ="
    )
    assert verify(variables, answer(wider)) == (
        0.0,
        "Function signature: it has 3 parameters (room, tick, events), the problem's has 2 "
        "(capacity, operations).",
    )


def test_an_input_that_breaks_the_constraints_is_the_questions_fault(row):
    text = GOOD.replace("room = 1, events = []", "room = 0, events = [1]")
    score, reason = verify(json.loads(row["variables"]), answer(text))
    assert score == pytest.approx(2 / 3)
    assert reason.startswith("Example 3: the reference solution fails on this input (exception:")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("solution", "words"),
    [
        ("def replay_buffer(c, o):\n    while True: pass", "own example 1 .timeout: stopped after"),
        ("def replay_buffer(c, o): return open('/etc/passwd').read()", "own example 1 .refused"),
        ("def other(c, o): return []", "defines no function 'replay_buffer'"),
    ],
)
def test_a_broken_reference_solution_is_no_fault_of_the_answer(row, solution, words, monkeypatch):
    monkeypatch.setattr("distill.tasks.interview.verify.LIMITS", Limits(cpu_s=1, wall_s=60))
    variables = json.loads(row["variables"])
    variables["problem"]["solution"] = solution
    with pytest.raises(DataError, match=words):
        verify(variables, answer())


def test_recorded_answers_are_replayed_and_judged_by_execution(row, tmp_path):
    recording = tmp_path / "answers.jsonl"
    scores = {}
    for name, text in (("good", GOOD), ("wrong", WRONG_OUTPUT), ("missing", MISSING_SECTION)):
        recording.write_text(json.dumps({"id": COMBINATION, "completion": text}))
        teacher = ReplayTeacherRunner(ReplayTeacher(file=str(recording)), TASK, name="recorded")
        (found,) = teacher.answer([row])
        judged = {**row, "completion": found.completion, "teacher": "recorded"}
        judges = [
            VerifyJudge(JudgeVerify(dimension="algorithmic_correctness"), TASK),
            ParseJudge(JudgeParse(dimension="parsing_quality"), TASK),
        ]
        verdicts = [verdict for judge in judges for verdict in judge.judge([judged])]
        assert all(not verdict["error"] for verdict in verdicts)
        scores[name] = [round(verdict["score"], 3) for verdict in verdicts]
    assert scores == {"good": [1.0, 1.0], "wrong": [0.667, 1.0], "missing": [0.0, 0.0]}
    assert TASK.parse(MISSING_SECTION).problem == "sections missing or empty: Constraints"


def test_prompts_of_a_run_are_even_and_hold_problems_out(tmp_path):
    split = make_prompts(
        TASK, PromptsConfig(train=450, validation=30, test=90), store=Store(tmp_path)
    )
    assert [len(split.rows(name)) for name in ("train", "validation", "test")] == [450, 30, 90]
    assert split.conflicts == split.duplicates == 0
    ids = {
        name: [row["prompt_id"].split("/") for row in rows]
        for name, rows in by_split(split).items()
    }
    problems = {name: {problem for problem, *_ in own} for name, own in ids.items()}
    assert not problems["test"] & problems["train"]
    assert not problems["test"] & problems["validation"]
    assert not problems["validation"] & problems["train"]
    for own in ids.values():
        roles = Counter(role for *_, role in own)
        companies = Counter(company for _, company, _ in own)
        assert set(roles.values()) == {len(own) // 5}
        assert set(companies.values()) == {len(own) // 15}
    assert Counter(row["stratum"] for row in split.rows("train")) == {
        "easy": 150, "medium": 150, "hard": 150,
    }  # fmt: skip


def test_the_shipped_run_fits_the_grid():
    run = load_run_config([ROOT / "jobs/runs/interview.toml"])
    sizes = {name: getattr(run.prompts, name) for name in ("train", "validation", "test")}
    prompts = grid_prompts(TASK, sizes=sizes, seed=run.prompts.seed)
    assert len({prompt["id"] for prompt in prompts}) == sum(sizes.values())
    dimensions = {getattr(judge, "dimension", None) for judge in run.jury.judges}
    assert dimensions - {None} <= set(TASK.spec.rubric)
