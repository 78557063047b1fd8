"""A grid is sampled: no combination twice, even strata, same by seed, held-out entries apart."""

import json
import random
from collections import Counter
from math import prod

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cluster.errors import ConfigError, DataError
from cluster.storage import Store
from distill.config import PromptsConfig
from distill.prompts.grid import Sampler, diagonal, grid_prompts, grid_size
from distill.prompts.stage import make_prompts
from distill.tasks.checklist import PromptSample
from distill.tasks.checkup import check_up
from distill.tasks.task import load_task

TASK = """
name = "letters"
[prompt]
user = "A {{ tone.id }} letter of a {{ sender.trade }} ({{ sender.id }}) on {{ topic.id }}."
[output]
format = "text"
[prompts]
disjoint = DISJOINT
[prompts.grid]
strata = ["topic.level", "tone.id"]
axes = { topic = "topics", sender = "senders.jsonl", tone = "tones.toml" }
"""
SIZES = {"train": 150, "validation": 12, "test": 30}


def by_split(prompts):
    return {name: prompts.rows(name) for name in prompts.sizes}


@pytest.fixture
def folder(tmp_path):
    """30 topics of three levels, 6 senders, 4 tones: 720 combinations."""
    (tmp_path / "topics").mkdir()
    for number in range(30):
        level = ["easy", "medium", "hard"][number % 3]
        path = tmp_path / "topics" / f"t{number:02}"
        if number % 2:
            path.with_suffix(".toml").write_text(f'id = "t{number:02}"\nlevel = "{level}"\n')
        else:
            path.with_suffix(".json").write_text(
                json.dumps({"id": f"t{number:02}", "level": level})
            )
    senders = [{"id": f"s{number}", "trade": "baker"} for number in range(6)]
    (tmp_path / "senders.jsonl").write_text("\n".join(map(json.dumps, senders)))
    tones = "".join(f'[[tone]]\nid = "{tone}"\n' for tone in ("dry", "warm", "curt", "gay"))
    (tmp_path / "tones.toml").write_text(tones)
    (tmp_path / "task.toml").write_text(TASK.replace("DISJOINT", "[]"))
    return tmp_path


def disjoint(folder, combinations):
    (folder / "task.toml").write_text(TASK.replace("DISJOINT", json.dumps(combinations)))
    return load_task(folder)


def of(prompts, split):
    return [prompt for prompt in prompts if prompt["split"] == split]


def spread(counts):
    return max(counts.values()) - min(counts.values())


@given(st.lists(st.integers(1, 7), min_size=1, max_size=4), st.data())
def test_the_walk_visits_each_cell_once_and_is_even_at_every_moment(sizes, data):
    cells = [diagonal(position, sizes) for position in range(prod(sizes))]
    assert len(set(cells)) == prod(sizes)
    stop = data.draw(st.integers(0, len(cells)))
    for axis, size in enumerate(sizes):
        counts = Counter({index: 0 for index in range(size)})
        counts.update(cell[axis] for cell in cells[:stop])
        assert spread(counts) <= 1


@st.composite
def grids(draw):
    """Blocks of items with a field `kind`, some strata, and counts of three draws that fit."""
    blocks = [
        [{f"axis{n}": {"id": str(i), "kind": str(i % kinds)}} for i in range(size)]
        for n, (size, kinds) in enumerate(
            draw(st.lists(st.tuples(st.integers(1, 9), st.integers(1, 3)), min_size=1, max_size=3))
        )
    ]
    fields = [f"axis{n}.{field}" for n in range(len(blocks)) for field in ("id", "kind")]
    strata = draw(st.lists(st.sampled_from(fields), unique=True))
    cells = prod(len(block) for block in blocks)
    first = draw(st.integers(0, cells))
    second = draw(st.integers(0, cells - first))
    return (
        blocks,
        strata,
        [first, second, cells - first - second],
        draw(st.integers()),
    )


def strata_of(cells, strata):
    """Counts by crossed values, those that could occur but did not included."""

    def label(cell):
        return tuple(cell[f.split(".")[0]][f.split(".")[1]] for f in strata)

    return Counter(label(cell) for cell in cells)


@settings(deadline=None)
@given(grids())
def test_draws_share_no_cell_and_end_when_every_cell_was_drawn(grid):
    blocks, strata, counts, seed = grid
    rng = random.Random(seed)
    sampler = Sampler(blocks, strata, rng=rng)
    draws = [sampler.draw(count, rng=rng) for count in counts]
    assert [len(cells) for cells in draws] == counts
    drawn = [tuple(sorted((k, v["id"]) for k, v in cell.items())) for d in draws for cell in d]
    assert len(set(drawn)) == len(drawn) == prod(len(block) for block in blocks)
    assert sampler.left == 0
    again = random.Random(seed)
    sampler = Sampler(blocks, strata, rng=again)
    assert [sampler.draw(count, rng=again) for count in counts] == draws


@settings(deadline=None)
@given(grids())
def test_strata_are_even_unless_they_are_used_up(grid):
    blocks, strata, (count, *_), seed = grid
    rng = random.Random(seed)
    capacity = strata_of(
        Sampler(blocks, strata, rng=rng).draw(prod(map(len, blocks)), rng=rng), strata
    )
    shares = strata_of(Sampler(blocks, strata, rng=rng).draw(count, rng=rng), strata)
    most = max(shares.values(), default=0)
    for stratum, held in capacity.items():
        # A stratum has its even share, or all that it holds.
        assert shares[stratum] >= min(most - 1, held)


def test_every_stratum_field_and_entry_of_a_split_is_even(folder):
    prompts = grid_prompts(load_task(folder), sizes=SIZES, seed=3)
    for split, size in SIZES.items():
        own = of(prompts, split)
        assert len(own) == size
        crossed = Counter((p["topic"]["level"], p["tone"]["id"]) for p in own)
        assert len(crossed) == 12
        assert spread(crossed) <= 1
        assert spread(Counter(p["topic"]["level"] for p in own)) <= 1
        assert spread(Counter(p["tone"]["id"] for p in own)) <= 1
    # Fields that nobody named are even as well: 30 test prompts, 30 topics, 6 senders.
    assert set(Counter(p["topic"]["id"] for p in of(prompts, "test")).values()) == {1}
    assert set(Counter(p["sender"]["id"] for p in of(prompts, "test")).values()) == {5}
    assert len({p["id"] for p in prompts}) == sum(SIZES.values())


def test_the_seed_decides_and_the_test_prompts_do_not_depend_on_the_training_set(folder):
    task = load_task(folder)
    assert grid_prompts(task, sizes=SIZES, seed=3) == grid_prompts(task, sizes=SIZES, seed=3)
    other = {p["id"] for p in of(grid_prompts(task, sizes=SIZES, seed=4), "test")}
    for combinations in ([], [["topic.id"]]):
        task = disjoint(folder, combinations)
        few = grid_prompts(task, sizes=SIZES, seed=3)
        more = grid_prompts(task, sizes={**SIZES, "train": 400}, seed=3)
        assert of(few, "test") == of(more, "test")
        assert {p["id"] for p in of(few, "test")} != other


@pytest.mark.parametrize(
    "combinations",
    [
        [["topic.id"]],
        [["topic.id", "sender.id"]],
        [["topic.id"], ["sender.id"]],
        # Each pair ties all that belongs to one topic together.
        [["topic.id", "sender.id"], ["topic.id", "tone.id"]],
    ],
)
def test_what_the_task_keeps_apart_is_in_one_split_and_no_prompt_is_lost(
    folder, tmp_path, combinations
):
    task = disjoint(folder, combinations)
    config = PromptsConfig(train=120, validation=4, test=8, seed=9)
    split = make_prompts(task, config, store=Store(tmp_path / "run"))
    assert split.conflicts == split.duplicates == 0
    assert split.notes == []
    for paths in combinations:
        seen = {}
        for name, rows in by_split(split).items():
            for row in rows:
                variables = json.loads(row["variables"])
                key = tuple(variables[path.split(".")[0]]["id"] for path in paths)
                assert seen.setdefault(key, name) == name
    assert [len(split.rows(name)) for name in ("train", "validation", "test")] == [120, 4, 8]


def test_a_tenth_of_the_topics_is_held_out_and_has_every_level(folder):
    prompts = grid_prompts(
        disjoint(folder, [["topic.id"]]), sizes={"test": 72, "validation": 24, "train": 600}, seed=1
    )
    topics = {s: {p["topic"]["id"] for p in of(prompts, s)} for s in SIZES}
    assert {s: len(found) for s, found in topics.items()} == {
        "test": 3, "validation": 2, "train": 25,
    }  # fmt: skip
    assert {p["topic"]["level"] for p in of(prompts, "test")} == {"easy", "medium", "hard"}


def test_more_than_the_grid_holds_names_both_numbers(folder):
    task = load_task(folder)
    assert grid_size(task) == 720
    with pytest.raises(ConfigError, match=r"721 prompts are asked for .*holds 720 combinations"):
        grid_prompts(task, sizes={"train": 700, "validation": 11, "test": 10}, seed=1)
    everything = grid_prompts(task, sizes={"train": 700, "validation": 10, "test": 10}, seed=1)
    assert len({p["id"] for p in everything}) == 720
    with pytest.raises(ConfigError, match=r"prompts.test 73: .*but 72 for test.*no topic.id"):
        grid_prompts(disjoint(folder, [["topic.id"]]), sizes={"test": 73}, seed=1)


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        ("topics/t05.toml", 'id = "t04"\nlevel = "hard"', r"t05.toml: the id 't04' stands twice"),
        (
            "topics/t05.toml",
            'level = "hard"',
            r"t05.toml: an entry of axis 'topic' has the id None",
        ),
        ("topics/t05.toml", 'id = "t05"', r"t05.toml: 't05' has no topic.level"),
        ("topics/t05.toml", 'id = "t05', r"t05.toml is not valid TOML"),
        ("topics/t05.toml", 'id = "t05"\nlevel = 2025-01-01', r"t05.toml: .*dates and times"),
        ("topics/t04.json", '{"id": ', r"t04.json is not valid JSON"),
        ("topics/t04.json", "[]", r"t04.json holds a list"),
        ("senders.jsonl", '{"id": "s"}\n{"id": "s"}', r"senders.jsonl: the id 's' stands twice"),
        ("senders.jsonl", "", r"senders.jsonl holds nothing"),
        ("tones.toml", "", r"tones.toml must hold one array of tables.*nothing"),
        ("tones.toml", 'name = "x"', r"tones.toml must hold one array of tables.*name"),
    ],
)
def test_a_broken_entry_is_named_with_its_file(folder, file, text, words):
    (folder / file).write_text(text)
    with pytest.raises((DataError, ConfigError), match=words):
        grid_prompts(load_task(folder), sizes=SIZES, seed=1)


def test_an_empty_axis_a_missing_one_and_an_unknown_field_are_named(folder):
    for file in (folder / "topics").iterdir():
        file.unlink()
    with pytest.raises(DataError, match=r"topics: axis 'topic' is empty"):
        grid_prompts(load_task(folder), sizes=SIZES, seed=1)
    (folder / "topics").rmdir()
    with pytest.raises(DataError, match=r"topics: no such file or folder.*axis 'topic'"):
        grid_prompts(load_task(folder), sizes=SIZES, seed=1)
    task = disjoint(folder, [["theme.id"]])
    (folder / "topics").mkdir()
    (folder / "topics" / "one.toml").write_text('id = "one"\nlevel = "hard"\n')
    with pytest.raises(DataError, match=r"'theme.id', but 'theme' is no axis"):
        grid_prompts(task, sizes=SIZES, seed=1)
    with pytest.raises(DataError, match=r"topic.level leaves 1 group"):
        grid_prompts(disjoint(folder, [["topic.level"]]), sizes={"train": 1}, seed=1)


def test_two_axes_with_the_same_values_cannot_be_kept_apart(folder):
    text = TASK.replace("DISJOINT", '[["sender.id"], ["tone.id"]]')
    (folder / "task.toml").write_text(text.replace("tones.toml", "senders.jsonl"))
    with pytest.raises(DataError, match=r'\["s0"\] in common'):
        grid_prompts(load_task(folder), sizes=SIZES, seed=1)


def test_a_task_has_exactly_one_source_of_prompts(folder):
    text = (folder / "task.toml").read_text()
    (folder / "task.toml").write_text(text.replace("disjoint", 'file = "p.jsonl"\ndisjoint'))
    with pytest.raises(ConfigError, match="exactly one of file, generator and grid"):
        load_task(folder)
    (folder / "task.toml").write_text(text.replace("tone =", "split ="))
    with pytest.raises(ConfigError, match="axis 'split': take a name"):
        load_task(folder)


def test_a_sample_of_a_huge_grid_costs_what_the_sample_costs(folder):
    senders = "\n".join(json.dumps({"id": f"s{number}", "trade": "x"}) for number in range(20_000))
    (folder / "senders.jsonl").write_text(senders)
    (folder / "tones.toml").write_text(
        "".join(f'[[tone]]\nid = "{number}"\n' for number in range(2_000))
    )
    task = load_task(folder)
    assert grid_size(task) == 1_200_000_000
    prompts = grid_prompts(task, sizes={"train": 9_000}, seed=1)
    assert len({p["id"] for p in prompts}) == 9_000
    assert spread(Counter(p["tone"]["id"] for p in prompts)) <= 1
    assert spread(Counter(p["sender"]["id"] for p in prompts) | Counter({"s-": 0})) <= 1


def test_the_check_up_reads_a_grid(folder):
    task = disjoint(folder, [["topic.id"]])
    prompts = grid_prompts(task, sizes={"train": 500}, seed=0)
    checkup = check_up(task, PromptSample(prompts=prompts, total=grid_size(task)))
    verdicts = {item.id: item.verdict for item in checkup.items}
    assert verdicts["input.prompts"] == verdicts["edge.splits"] == "pass"
