"""What each method makes of a row, and that it is made once."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest

from cluster.errors import DataError
from distill.train.config import TrainConfig
from distill.train.pairs import (
    asked,
    pairs_from_file,
    pairs_from_scores,
    read_records,
    split_pairs,
)

ROW = {
    "example_id": "a",
    "messages": [{"role": "user", "content": "Bank: ACME 12.50"}],
    "completion": '{"classification": "ROUNDING"}',
    "rationale": "The two differ by one cent.",
    "label": "ROUNDING",
}


@pytest.fixture(scope="module")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def made(tokenizer: Any, rows: list[dict[str, Any]], method: str, **more: Any) -> Any:
    from distill.train.items import make_items

    return make_items(tokenizer, rows, train=TrainConfig(method=method), max_length=512, **more)


@pytest.mark.model
def test_cot_reasons_first_and_knows_where_the_answer_begins(tokenizer: Any) -> None:
    from distill.tasks.task import load_task

    found = made(tokenizer, [ROW, {**ROW, "example_id": "b", "rationale": ""}], "cot")
    assert found.without_rationale == ["b"]
    [sequence] = found.items[0].sequences
    completion = sequence.tokens[sequence.num_prompt :]
    reasoning = tokenizer.decode(completion[: sequence.num_rationale])
    answer = tokenizer.decode(completion[sequence.num_rationale :])
    assert reasoning == "<reasoning>\nThe two differ by one cent.\n</reasoning>\n"
    assert answer.startswith(ROW["completion"])
    assert sequence.kinds == [
        ("rationale", sequence.num_rationale),
        ("answer", len(completion) - sequence.num_rationale),
    ]
    # What such a student says is read like any other answer.
    task = load_task("reconcile")
    fields = {"classification": "ROUNDING", "confidence": 0.9, "standard": "x", "reason": "y"}
    whole = json.dumps(fields | {"action": "z"})
    assert task.parse(f"{reasoning}{whole}").answer == task.parse(whole).answer


@pytest.mark.model
def test_multitask_asks_three_things_of_one_prompt(tokenizer: Any) -> None:
    found = made(
        tokenizer, [ROW, {**ROW, "example_id": "b", "rationale": "", "label": ""}], "multitask"
    )
    first, second = found.items
    assert [s.kind for s in first.sequences] == ["answer", "label", "rationale"]
    assert [s.kind for s in second.sequences] == ["answer"]
    texts = [tokenizer.decode(s.tokens[: s.num_prompt]) for s in first.sequences]
    assert all("Bank: ACME 12.50" in text for text in texts)
    assert "only the label" in texts[1]
    assert "reasoning" in texts[2]


@pytest.mark.model
def test_a_pair_is_two_answers_or_an_error(tokenizer: Any) -> None:
    pair = {k: ROW[k] for k in ("example_id", "messages")}
    found = made(tokenizer, [pair | {"chosen": "yes", "rejected": "no"}], "dpo")
    assert len(found.items[0].sequences) == 2
    with pytest.raises(DataError, match="pair a: chosen and rejected are the same"):
        made(tokenizer, [pair | {"chosen": "yes", "rejected": "yes"}], "dpo")
    with pytest.raises(DataError, match="record a: completion is empty"):
        made(tokenizer, [pair | {"chosen": "yes", "rejected": " "}], "dpo")


@pytest.mark.model
def test_the_tokenizer_runs_once_for_the_same_rows(tokenizer: Any, tmp_path: Path) -> None:
    from distill.train.encoded import encoded_items

    class Counting:
        """A tokenizer that counts its calls."""

        def __init__(self) -> None:
            self.calls = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(tokenizer, name)

        def __call__(self, *args: Any, **kwargs: Any) -> Any:
            self.calls += 1
            return tokenizer(*args, **kwargs)

    rows = [ROW, {**ROW, "example_id": "long", "completion": "no " * 600}]
    counting = Counting()
    told: dict[str, Any] = {"max_length": 512, "cache": tmp_path}
    first = encoded_items(counting, rows, train=TrainConfig(method="multitask"), **told)
    calls = counting.calls
    again = encoded_items(counting, rows, train=TrainConfig(method="multitask"), **told)
    assert calls > 0
    assert counting.calls == calls
    assert again == first
    assert first.too_long == ["long"]
    assert encoded_items(counting, rows, train=TrainConfig(), **told) != first


@pytest.mark.model
def test_another_normaliser_is_another_tokenizer(tokenizer: Any, tmp_path: Path) -> None:
    from tokenizers.normalizers import Lowercase

    from distill.train.encoded import encoded_items

    told: dict[str, Any] = {"train": TrainConfig(), "max_length": 512, "cache": tmp_path}
    loud = [{**ROW, "completion": "YES"}]
    plain = encoded_items(tokenizer, loud, **told)
    lower = copy.deepcopy(tokenizer)
    lower.backend_tokenizer.normalizer = Lowercase()
    assert lower.get_vocab() == tokenizer.get_vocab()
    assert encoded_items(lower, loud, **told) != plain


def answer(name: str, text: str, score: float | None) -> dict[str, Any]:
    return {
        "example_id": name, "messages": ROW["messages"], "completion": text, "score": score,
    }  # fmt: skip


def test_pairs_are_best_against_worst_where_the_jury_tells_them_apart() -> None:
    answers = [
        answer("a", "so-so", 0.5), answer("a", "good", 0.9), answer("a", "bad", 0.2),
        answer("b", "fine", 0.8), answer("b", "fine too", 0.75),
        answer("c", "the only one", None),
    ]  # fmt: skip
    [pair] = pairs_from_scores(answers, min_margin=0.1)
    assert (pair["chosen"], pair["rejected"]) == ("good", "bad")
    assert len(pairs_from_scores(answers, min_margin=0.01)) == 2
    # An answer that nobody could score is in no pair.
    answers[2]["score"] = None
    [pair] = pairs_from_scores(answers, min_margin=0.1)
    assert pair["rejected"] == "so-so"


def test_pairs_come_from_a_file_too(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl"
    path.write_text('{"prompt": "1 + 1?", "chosen": "2", "rejected": "3"}\n' * 2)
    first, _ = pairs_from_file(str(path))
    assert (first["messages"][0]["content"], first["chosen"], first["rejected"]) == (
        "1 + 1?", "2", "3",
    )  # fmt: skip
    path.write_text('{"prompt": "1 + 1?", "completion": "2"}\n')
    with pytest.raises(DataError, match=r"train\.dpo\.pairs: .*row 1 has no rejected"):
        pairs_from_file(str(path))


def parts(*texts: str) -> list[dict[str, str]]:
    return [{"type": "text", "text": text} for text in texts]


def test_a_text_in_parts_is_their_text(tmp_path: Path) -> None:
    path = tmp_path / "data.jsonl"
    turns = [
        {"role": "user", "content": parts("1 + ", "1?")},
        {"role": "assistant", "content": parts("2")},
    ]
    path.write_text(json.dumps({"messages": turns}) + "\n")
    [row] = read_records(str(path), field="train.mix.data")
    assert row["messages"] == [{"role": "user", "content": "1 + 1?"}]
    assert row["completion"] == "2"
    pair = {"prompt": turns[:1], "chosen": "2", "rejected": "3"}
    path.write_text(json.dumps(pair) + "\n")
    [first] = pairs_from_file(str(path))
    assert first["messages"] == [{"role": "user", "content": "1 + 1?"}]


@pytest.mark.parametrize(
    ("turn", "message"),
    [
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]},
            r"line 1: messages\[1\]\.content\[0\]: training has no place for 'image_url'",
        ),
        (
            {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]},
            r"line 1: messages\[1\]\.tool_calls: training has no place for it",
        ),
    ],
)
def test_what_is_no_text_is_refused_with_its_place(
    tmp_path: Path, turn: dict[str, Any], message: str
) -> None:
    path = tmp_path / "data.jsonl"
    user = {"role": "user", "content": "1 + 1?"}
    turns = [user, turn, user, {"role": "assistant", "content": "2"}]
    path.write_text(json.dumps({"messages": turns}) + "\n")
    with pytest.raises(DataError, match=message):
        read_records(str(path), field="train.mix.data")


def pair_about(number: int, name: str) -> dict[str, Any]:
    return {"example_id": name, "messages": [{"role": "user", "content": f"Question {number}"}]}


def test_held_out_pairs_are_spread_over_the_file() -> None:
    pairs = [pair_about(i, str(i)) for i in range(50)]
    training, held_out = split_pairs(pairs, num_validation=5)
    assert len(training) == 45
    assert [int(p["example_id"]) for p in held_out] == [9, 19, 29, 39, 49]


def test_pairs_about_one_prompt_stay_together_whatever_their_ids() -> None:
    pairs = [pair_about(i, f"{i}{answer}") for i in range(20) for answer in "ab"]
    training, held_out = split_pairs(pairs, num_validation=4)
    taught, looked_at = (
        {p["messages"][0]["content"] for p in part} for part in (training, held_out)
    )
    assert len(looked_at) == 4
    assert len(held_out) == 8
    assert not taught & looked_at


def test_pairs_about_a_test_prompt_are_left_out() -> None:
    pairs = [pair_about(i, str(i)) for i in range(10)]
    tested = {asked([{"role": "system", "content": "Be brief."}, *pairs[3]["messages"]])}
    training, held_out = split_pairs(pairs, num_validation=2, tested=tested)
    assert "3" not in {pair["example_id"] for pair in (*training, *held_out)}
    assert len(training) + len(held_out) == 9
