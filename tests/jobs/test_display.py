"""What a job's log shows of a step: a line now and then, with how much is left."""

import io

import pytest
from rich.console import Console

from jobs import display
from jobs.display import Display, time_left
from jobs.train import show_training


@pytest.fixture
def lines(monkeypatch):
    """Call it with (second, done, total, note[, left_s]); returns what was printed."""
    clock = [0.0]
    monkeypatch.setattr(display.time, "monotonic", lambda: clock[0])

    def printed(*updates):
        out = io.StringIO()
        with Display(Console(file=out, width=200)).step("train") as progress:
            start = clock[0]
            for second, *told in updates:
                clock[0] = start + second
                progress.update(*told)
        return [line.strip() for line in out.getvalue().splitlines()]

    return printed


def test_a_line_says_how_much_time_is_left(lines):
    told = [(1, 0, 100, "a"), (11, 20, 100, "b"), (12, 22, 100, "c"), (31, 60, 100, "d")]
    assert lines(*told) == ["train  20% b, 40 s left", "train  60% d, 20 s left"]


def test_what_was_done_before_the_first_report_is_no_rate(lines):
    assert lines((1, 900, 1000, "a"), (11, 920, 1000, "b")) == ["train  92% b, 40 s left"]


def test_another_phase_is_measured_by_itself(lines):
    told = [(0, 50, 100, "a"), (10, 100, 100, "a"), (20, 10, 60, "b"), (30, 20, 60, "b")]
    assert lines(*told) == ["train 100% a", "train  17% b", "train  33% b, 40 s left"]


def test_nothing_is_said_of_time_where_nothing_is_known(lines):
    assert lines((10, 0, 0, "loading"), (20, 0, 9, "x"), (30, 0, 9, "x")) == [
        "train  loading",
        "train   0% x",
        "train   0% x",
    ]


def test_a_count_without_an_end_has_no_time_left(lines):
    assert lines((1, 3, 0, "3 settings"), (11, 9, 0, "9 settings")) == ["train  9 settings"]


def test_training_shows_its_rate_and_its_own_time_left(lines):
    row = {
        "step": 20, "total_steps": 400, "loss": 0.5, "tokens_per_s": 1234.4,
        "eta_s": 5400.0, "validation_loss": 0.25,
    }  # fmt: skip
    assert show_training({"step": 0, "total_steps": 400, "validation_loss": 2.0}) == (
        0,
        400,
        "loading, held-out 2.000",
        None,
    )
    assert lines((10, *show_training(row))) == [
        "train   5% loss 0.500, held-out 0.250, 1234 tokens/s, 1.5 h left"
    ]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [(0.4, "0 s"), (89, "89 s"), (90, "2 min"), (3599, "60 min"), (5400, "1.5 h")],
)
def test_time_left_has_the_unit_that_fits(seconds, expected):
    assert time_left(seconds) == f"{expected} left"
