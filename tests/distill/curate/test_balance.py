"""Caps by group: exact shares, the same records whatever their order, nothing dropped in vain."""

import json
import random
from collections import Counter

import pytest
from pydantic import ValidationError

from distill.curate.balance import balance, cap, group_of, length_group
from distill.curate.config import BalanceRule
from distill.curate.tokens import length_counter

WORDS = length_counter("")


def rows(**sizes):
    return [
        {
            "example_id": f"{name}-{i}",
            "stratum": name,
            "completion": "word " * (3 if i % 2 else 100),
            "variables": json.dumps({"problem": {"difficulty": "easy" if i % 3 else "hard"}}),
        }
        for name, size in sizes.items()
        for i in range(size)
    ]


def test_a_dominant_group_is_cut_to_its_share_of_what_is_kept():
    kept, rejected, notes = balance(
        rows(a=900, b=100, c=100, d=100, e=50), [BalanceRule(max_share=0.3)], counter=WORDS
    )
    # 150 ÷ (150 + 350) is exactly 30%.
    assert Counter(r["stratum"] for r in kept) == {"a": 150, "b": 100, "c": 100, "d": 100, "e": 50}
    assert {r["reason"] for r in rejected} == {"balance"}
    assert rejected[0]["detail"] == "stratum 'a' held 72% of the records; 150 of 900 stay"
    assert notes == []


def test_several_groups_over_the_share_are_cut_to_one_size():
    result = cap(["a"] * 50 + ["b"] * 40 + ["c"] * 10, keys=[str(i) for i in range(100)],
                 max_share=0.4)  # fmt: skip
    assert result.groups == {"a": (50, 20), "b": (40, 20), "c": (10, 10)}
    assert result.limit == 20


@pytest.mark.parametrize("share", [0.25, 0.3, 0.34, 0.5])
def test_the_cap_holds_and_one_more_would_break_it(share):
    rng = random.Random(7)
    for _ in range(50):
        sizes = {name: rng.randrange(1, 60) for name in "abcde"}
        groups = [name for name, size in sizes.items() for _ in range(size)]
        result = cap(groups, keys=[str(i) for i in range(len(groups))], max_share=share)
        after = [kept for _, kept in result.groups.values()]
        assert max(after) <= share * sum(after) + 1e-9
        assert sum(after) == sum(result.keep)
        if result.limit is not None:
            more = [min(size, result.limit + 1) for size in sizes.values()]
            assert max(more) > share * sum(more)


def test_a_share_that_cannot_be_met_costs_no_record():
    kept, rejected, (note,) = balance(rows(a=90, b=10), [BalanceRule(max_share=0.3)], counter=WORDS)
    assert len(kept) == 100
    assert rejected == []
    assert note.startswith("stratum: 2 group(s) cannot all stay at or below 30%")


def test_the_same_records_stay_in_any_order():
    given = rows(a=60, b=20, c=20, d=20)
    shuffled = random.Random(3).sample(given, len(given))
    rules = [BalanceRule(max_share=0.3), BalanceRule(by="problem.difficulty", max_count=30)]
    one, other = (balance(r, rules, counter=WORDS)[0] for r in (given, shuffled))
    assert {r["example_id"] for r in one} == {r["example_id"] for r in other}
    assert [r for r in given if r in one] == one
    assert max(Counter(r["variables"] for r in one).values()) <= 30


def test_a_sample_of_a_group_is_a_fair_one():
    given = rows(a=1000, b=100)
    kept, _, _ = balance(given, [BalanceRule(max_count=300)], counter=WORDS)
    places = [int(r["example_id"][2:]) for r in kept if r["stratum"] == "a"]
    assert len(places) == 300
    # Uniform on 0–999: the mean's standard error is 1000 / sqrt(12 · 300) = 17.
    assert abs(sum(places) / 300 - 500) < 60


def test_groups_by_length_and_by_variable():
    row = rows(a=1)[0]
    assert group_of(row, "length", counter=WORDS) == "64–127 words"
    assert group_of(row, "problem.difficulty", counter=WORDS) == "hard"
    assert group_of(row, "problem.none", counter=WORDS) == "(none)"
    assert group_of({**row, "stratum": ""}, "stratum", counter=WORDS) == "(none)"
    labels = [length_group(size, unit="tokens") for size in (0, 1, 2, 3, 4, 127, 128)]
    assert labels == ["0 tokens", "1 tokens", "2–3 tokens", "2–3 tokens", "4–7 tokens",
                      "64–127 tokens", "128–255 tokens"]  # fmt: skip


def test_a_rule_limits_something():
    with pytest.raises(ValidationError, match="give max_share, max_count, or both"):
        BalanceRule(by="stratum")
