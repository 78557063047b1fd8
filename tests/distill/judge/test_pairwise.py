"""Both orders decide together; what the position decided is told apart from what was better."""

from __future__ import annotations

import pytest

from distill.judge.pairwise import Pair, question, read_choice, settle, summarise, wilson_interval
from distill.judge.schema import UnreadableAnswer

PAIR = Pair("e", [{"role": "user", "content": "Why?"}], first="because", second="no idea")


def row(forward, swapped):
    outcome = settle(forward, swapped) if forward and swapped else "failed"
    return {"forward": forward, "swapped": swapped, "outcome": outcome, "cost_usd": 0.5}


@pytest.mark.parametrize(
    ("forward", "swapped", "outcome"),
    [
        ("A", "B", "first"),
        ("B", "A", "second"),
        ("tie", "tie", "tie"),
        ("A", "A", "inconsistent"),
        ("B", "B", "inconsistent"),
        ("A", "tie", "inconsistent"),
        ("tie", "A", "inconsistent"),
    ],
)
def test_only_the_same_answer_in_both_orders_is_a_win(forward, swapped, outcome):
    assert settle(forward, swapped) == outcome


def test_the_orders_are_swapped():
    forward = question(PAIR, {}, swapped=False)[-1]["content"]
    swapped = question(PAIR, {}, swapped=True)[-1]["content"]
    assert "<answer_A>\nbecause" in forward
    assert "<answer_B>\nbecause" in swapped
    assert "Look at" not in question(PAIR, {}, swapped=False)[0]["content"]
    assert "- right: Is it?" in question(PAIR, {"right": "Is it?"}, swapped=False)[0]["content"]


def test_choices_are_read_with_care():
    assert read_choice('{"reasoning": "x", "winner": "A"}') == ("A", "x")
    assert read_choice('So: {"winner": "TIE"}') == ("tie", "")
    for text in ('{"winner": "C"}', "A is better", '{"reasoning": "A", "winn', '{"winner": null}'):
        with pytest.raises(UnreadableAnswer):
            read_choice(text)


def test_figures_by_hand():
    rows = [row("A", "B")] * 6 + [row("B", "A")] * 2 + [row("tie", "tie")]
    rows += [row("A", "A")] * 2 + [row("A", "")]
    figures = summarise(rows)
    assert figures["win_rate"] == pytest.approx(6 / 8)
    assert figures["not_worse_rate"] == pytest.approx(7 / 11)
    # 8 consistent pairs choose A once each, the 2 biased ones twice; the failed pair not at all.
    assert figures["first_position"] == pytest.approx(12 / 20)
    assert figures["position_bias"] is False
    assert figures["cost_usd"] == pytest.approx(6.0)
    assert summarise([*rows, {**row("A", "B"), "cost_usd": None}])["cost_usd"] is None


def test_wilson_interval_against_published_values():
    # Newcombe 1998, table I: 81 of 263 and 0 of 20, score method without correction.
    assert wilson_interval(81 / 263, num=263) == pytest.approx([0.2553, 0.3662], abs=5e-5)
    assert wilson_interval(0.0, num=20) == pytest.approx([0.0, 0.1611], abs=5e-5)
    assert wilson_interval(None, num=0) is None


def test_nothing_answered_gives_no_rates():
    figures = summarise([row("", "A")])
    assert figures["failed"] == 1
    assert figures["win_rate"] is figures["first_position"] is figures["position_bias"] is None
