"""What records share at their beginning is found, and never reaches into what is predicted."""

from __future__ import annotations

import random

from hypothesis import given
from hypothesis import strategies as st

from distill.train.encode import Encoded
from distill.train.prefix import MIN_SHARED, Group, group_by_prefix


def test_a_common_system_prompt_and_one_stranger() -> None:
    system = list(range(100, 150))
    records = [
        Encoded("a", [*system, 1, 2, 3, 4], 52),
        Encoded("stranger", [7, 8, 9, 10, 11], 2),
        Encoded("b", [*system, 5, 6, 3, 4], 52),
    ]
    assert group_by_prefix(records) == [Group(0, [1]), Group(50, [0, 2])]


def test_two_answers_to_one_prompt_share_all_but_its_last_token() -> None:
    prompt = list(range(40))
    chosen, rejected = Encoded("a", [*prompt, 91, 92], 40), Encoded("a", [*prompt, 81], 40)
    assert group_by_prefix([chosen, rejected]) == [Group(39, [1, 0])]


def test_a_longer_context_of_fewer_records_is_kept_apart_when_that_saves_more() -> None:
    system = list(range(20))
    company = [*system, *range(200, 300)]
    records = [
        Encoded("a", [*company, 1, 2], 121),
        Encoded("b", [*company, 3, 2], 121),
        Encoded("c", [*system, 900, 4, 2], 22),
    ]
    # Three at 20 tokens save 40; two at 120 and one alone save 120.
    assert group_by_prefix(records) == [Group(120, [0, 1]), Group(0, [2])]


@given(st.integers(0, 10_000))
def test_every_record_is_in_one_group_and_begins_with_what_it_shares(seed: int) -> None:
    draw = random.Random(seed)
    openings = [[draw.randrange(3) for _ in range(draw.randrange(60))] for _ in range(3)]
    records = []
    for i in range(draw.randrange(1, 12)):
        prompt = draw.choice(openings) + [draw.randrange(3) for _ in range(draw.randrange(1, 9))]
        records.append(Encoded(str(i), [*prompt, 1, 2], len(prompt)))
    groups = group_by_prefix(records)
    assert sorted(i for group in groups for i in group.members) == list(range(len(records)))
    for group in groups:
        assert group.shared == 0 or (group.shared >= MIN_SHARED and len(group.members) > 1)
        first = records[group.members[0]].tokens[: group.shared]
        for i in group.members:
            assert records[i].tokens[: group.shared] == first
            assert group.shared < records[i].num_prompt
