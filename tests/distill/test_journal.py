"""What is paid for is on disk when it counts, and nothing half-written is ever read."""

import json

import pytest

from cluster.errors import DataError
from distill.teach.answer import Answer, journal_row
from distill.teach.bill import bill, paid_for
from distill.teach.journal import Journal, read_journal
from distill.teach.shared import Budget


def test_lines_come_back_and_a_half_one_does_not(tmp_path):
    with Journal(tmp_path / "j") as journal:
        for i in range(3):
            journal.add({"request_key": str(i), "completion": "zwei\nZeilen ü"})
    [path] = (tmp_path / "j").iterdir()
    path.write_bytes(path.read_bytes()[:-5])  # killed while it wrote the third
    rows = list(read_journal(tmp_path / "j"))
    assert [row["request_key"] for row in rows] == ["0", "1"]
    assert rows[0]["completion"] == "zwei\nZeilen ü"


def test_half_a_character_does_not_lose_an_answer_that_was_paid_for(tmp_path):
    answer = Answer(completion="good \ud83d", rationale="\ude00 \ud83d\ude00", error="\udc80")
    with Journal(tmp_path) as journal:
        journal.add(
            journal_row({"request_key": "a", "example_id": "e"}, answer, teacher="t", payer="run")
        )
    [row] = read_journal(tmp_path)
    assert (row["completion"], row["rationale"]) == ("good \ufffd", "\ufffd \U0001f600")


def test_processes_write_beside_each_other(tmp_path):
    with Journal(tmp_path) as one, Journal(tmp_path) as two:
        one.add({"request_key": "a"})
        two.add({"request_key": "b"})
        one.add({"request_key": "c"})
    assert {row["request_key"] for row in read_journal(tmp_path)} == {"a", "b", "c"}


def test_a_broken_line_and_another_version_are_named(tmp_path):
    (tmp_path / "1.jsonl").write_text('{"format": 1, "request_key": "a"}\nnonsense\n')
    with pytest.raises(DataError, match=r"1.jsonl, line 2 is no answer"):
        list(read_journal(tmp_path))
    (tmp_path / "1.jsonl").write_text('{"format": 2, "request_key": "a"}\n')
    with pytest.raises(DataError, match=r"line 1 has format 2.*another version"):
        list(read_journal(tmp_path))


def test_a_budget_is_never_passed_and_waits_for_what_is_in_flight():
    budget = Budget(1.00, spent_usd=0.50)
    assert budget.reserve("a", 0.30, worker="w") is True
    # The first may cost less than was set aside.
    assert budget.reserve("b", 0.30, worker="w") is None
    budget.settle("a", 0.10)
    assert budget.reserve("b", 0.30, worker="w") is True
    budget.settle("b", 0.30)
    assert budget.reserve("c", 0.30, worker="w") is False
    assert budget.spent_usd == pytest.approx(0.90)


def line(key, payer="run", **fields):
    row = {
        "request_key": key, "payer": payer, "teacher": "litellm:m", "error": "", "failure": "",
        "requests": 1, "retried": [], "prompt_tokens": 10, "cached_tokens": 4,
        "completion_tokens": 5, "cost_usd": 0.01,
    }  # fmt: skip
    return json.loads(json.dumps({**row, **fields}))


def test_the_bill_tells_reasons_apart_and_what_others_paid():
    rows = [
        line("a", retried=["rate_limit", "timeout"]),
        line("b", error="no", failure="refused", cost_usd=0.0, completion_tokens=0),
        line("c", payer="another"),
        line("d", payer="another"),
    ]
    result = bill(rows, keys={"a", "b", "c"}, payer="run")
    entry = result["models"]["litellm:m"]
    assert (entry["answered"], dict(entry["failed"])) == (1, {"refused": 1})
    assert dict(entry["retried"]) == {"rate_limit": 1, "timeout": 1}
    assert (entry["requests"], entry["cached_tokens"]) == (4, 8)
    assert (result["usd"], result["from_cache"]) == (0.01, 1)


def test_a_budget_that_is_spent_says_no_however_the_fractions_add_up():
    budget = Budget(0.65, spent_usd=0.0)
    for usd in (0.1, 0.2, 0.3):
        assert budget.reserve(str(usd), usd, worker="w")
    assert budget.reserve("more", 0.1, worker="w") is None
    # 0.1 + 0.2 + 0.3 - 0.1 - 0.2 - 0.3 is not 0 in binary fractions.
    for usd in (0.1, 0.2, 0.3):
        budget.settle(str(usd), usd)
    assert budget.reserve("more", 0.1, worker="w") is False


def test_what_a_lost_worker_had_set_aside_comes_back_and_what_it_paid_is_booked(tmp_path):
    budget = Budget(1.00, spent_usd=0.0)
    for request in ("answered", "in flight"):
        assert budget.reserve(request, 0.40, worker="lost")
    assert budget.reserve("other", 0.20, worker="alive")
    assert budget.reserve("next", 0.40, worker="alive") is None
    with Journal(tmp_path) as journal:
        journal.add(line("answered", cost_usd=0.10))
        journal.add(line("in flight", payer="another", cost_usd=0.30))
    # Its successor settles for it, before it asks for anything.
    paid = paid_for(read_journal(tmp_path), requests=budget.held_by("lost"), payer="run")
    assert paid == {"answered": 0.10, "in flight": 0.0}
    for request, usd in paid.items():
        budget.settle(request, usd)
    assert budget.held_by("lost") == []
    assert budget.spent_usd == pytest.approx(0.10)
    assert budget.reserve("next", 0.40, worker="alive") is True
    budget.settle("answered", 0.10)  # heard of late: it is booked already
    assert budget.spent_usd == pytest.approx(0.10)
