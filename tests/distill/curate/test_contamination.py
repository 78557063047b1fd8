"""Long n-grams that a training record shares with an evaluation prompt or reference."""

import json

import pytest

from cluster.errors import DataError
from distill.curate.config import ContaminationConfig
from distill.curate.contamination import (
    evaluation_file,
    evaluation_texts,
    find_overlaps,
    overlap_report,
)

CONFIG = ContaminationConfig(words=5)
SYSTEM = "You are a helpful clerk who always answers in one sentence."


def record(name, prompt, completion="", reference=""):
    messages = [{"role": "system", "content": SYSTEM}, {"role": "user", "content": prompt}]
    return {
        "example_id": name,
        "messages": messages,
        "completion": completion,
        "reference": reference,
    }


def test_a_shared_n_gram_names_where_it_stands():
    test = [
        record("t1", "Where does the blue ferry land on Sundays?", reference='{"text": "pier"}')
    ]
    train = [
        record("a", "Tell me: where does the BLUE ferry land, please?"),
        record("b", "Where does the red ferry land on Sundays?"),
    ]
    against = list(evaluation_texts(test, source="test"))
    (overlap,) = find_overlaps(train, against, CONFIG)
    assert overlap.example_id == "a"
    assert overlap.words == "where does the blue ferry"
    assert (overlap.source, overlap.name, overlap.part) == ("test", "t1", "prompt")
    # The record has 9 words, so 5 n-grams; two of them are the test prompt's.
    assert (overlap.num_shared, overlap.share) == (2, 2 / 5)
    assert "2 n-gram(s), 40% of the record's, stand in test (prompt of t1)" in overlap.detail


def test_answers_are_compared_with_references():
    reference = json.dumps({"reason": "The ledger line was posted twice on Monday", "n": 3})
    against = list(evaluation_texts([record("t1", "Why?", reference=reference)], source="test"))
    train = [record("a", "Why is that so?", completion="The ledger line was posted by hand.")]
    (overlap,) = find_overlaps(train, against, CONFIG)
    assert overlap.part == "reference"
    assert overlap.words == "the ledger line was posted"


def test_the_teachers_answer_stands_for_a_reference_that_is_missing():
    test = [record("t1", "Why?")]
    train = [record("a", "x", completion="Because the sky is a prism today.")]
    answers = {"t1": "because the sky is a prism."}
    assert find_overlaps(train, list(evaluation_texts(test, source="test")), CONFIG) == []
    against = list(evaluation_texts(test, source="test", answers=answers))
    assert [o.example_id for o in find_overlaps(train, against, CONFIG)] == ["a"]


def test_short_labels_contaminate_nothing():
    test = [record("t1", "Which class?", reference='{"text": "TIMING"}')]
    train = [record("a", "Which class?", completion="TIMING")]
    against = list(evaluation_texts(test, source="test"))
    assert find_overlaps(train, against, CONFIG) == []
    report = overlap_report([], num_records=1, against=against, config=CONFIG)
    assert report["num_too_short"] == 2
    assert report["num_evaluation_texts"] == {}


def test_the_templates_wording_is_no_evidence():
    opening = "Classify this line of the bank statement:"
    test = [record("t1", f"{opening} fees")]
    train = [record(f"a{i}", f"{opening} item {i}") for i in range(11)]
    against = list(evaluation_texts(test, source="test"))
    assert find_overlaps(train, against, CONFIG) == []
    # In ten records it could still be a copy.
    assert len(find_overlaps(train[:10], against, CONFIG)) == 10


def test_no_n_gram_reaches_from_the_prompt_into_the_answer():
    against = list(evaluation_texts([record("t1", "one two three four five six")], source="test"))
    train = [record("a", "one two three", completion="four five six")]
    assert find_overlaps(train, against, CONFIG) == []


def test_a_share_can_be_asked_for():
    against = list(evaluation_texts([record("t1", "one two three four five six")], source="test"))
    train = [record("a", "one two three four five " + " ".join(f"w{i}" for i in range(40)))]
    assert len(find_overlaps(train, against, CONFIG)) == 1
    assert find_overlaps(train, against, ContaminationConfig(words=5, min_share=0.1)) == []


def test_evaluation_files_are_read_at_any_depth(tmp_path):
    file = tmp_path / "bench.jsonl"
    row = {"question": {"stem": "Why is the harbour closed on Monday?"}, "choices": ["a", "b"]}
    file.write_text(json.dumps(row) + "\n")
    against = list(evaluation_file(file))
    (overlap,) = find_overlaps(
        [record("a", "So why is the harbour closed on Monday?")], against, CONFIG
    )
    assert (overlap.source, overlap.name) == ("bench.jsonl", "record 1")
    report = overlap_report([overlap], num_records=1, against=against, config=CONFIG)
    assert report["num_evaluation_texts"] == {"bench.jsonl: text": 1}
    assert report["num_contaminated"] == 1
    with pytest.raises(DataError, match="no such file"):
        list(evaluation_file(tmp_path / "none.jsonl"))


def test_without_anything_to_compare_there_is_no_overlap():
    assert find_overlaps([record("a", "one two three four five")], [], CONFIG) == []
    against = list(evaluation_texts([record("t1", "one two three four five")], source="test"))
    assert find_overlaps([], against, CONFIG) == []
