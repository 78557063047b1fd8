"""Routing by difficulty, offline: what can be learned is used, what cannot is said."""

from __future__ import annotations

import math
import time
from dataclasses import replace

import numpy as np
import pytest
from routing import SUBJECT, held, learned, questions
from threadpoolctl import threadpool_limits

from cluster.difficulty import Model, Scorer, read_predictor
from cluster.errors import ConfigError
from cluster.prompt_features import BUCKETS, MAX_CHARS, features_of, prompt_of
from cluster.storage import Store
from distill.evaluate.metrics import Bootstrap
from distill.route.curve import Wish, pick
from distill.route.labels import Logged, held_out, logged
from distill.route.learn import learn, platt
from distill.route.regression import fit
from distill.route.report import write_report
from distill.route.worth import area, calibration_error, reliability

pytestmark = pytest.mark.slow


@pytest.fixture(autouse=True)
def _one_thread():
    with threadpool_limits(1):
        yield


@pytest.fixture(scope="module")
def found():
    return learned(questions(500, seed=1))


def test_difficulty_that_can_be_read_beats_as_many_sent_blindly(found):
    assert found["recommended"]
    assert found["worth"]["auc_ci95"][0] > 0.7
    assert found["worth"]["brier"] < found["worth"]["brier_constant"]
    point = found["picked"]
    assert point["gain_ci95"][0] > 0
    assert point["share"] < 0.6
    # Two currencies are a fifth of the prompts and most of the errors.
    fifth = min(found["curve"], key=lambda p: abs(p["share"] - 0.2))
    assert fifth["accuracy"] > fifth["random_accuracy"] + 0.05


def test_the_curve_runs_from_the_student_alone_to_the_other_alone(found):
    first, last = found["curve"][0], found["curve"][-1]
    assert (first["threshold"], first["share"], first["usd_per_1k"]) == (None, 0.0, 0.02)
    assert (last["threshold"], last["share"], last["usd_per_1k"]) == (0.0, 1.0, 1.5)
    assert first["accuracy"] == pytest.approx(1 - found["labels"]["held_out_wrong"] / 500)
    assert last["accuracy"] == 1.0
    shares = [point["share"] for point in found["curve"]]
    assert shares == sorted(shares)
    assert all(p["usd_per_1k"] == pytest.approx(0.02 + 1.48 * p["share"]) for p in found["curve"])


def test_difficulty_that_cannot_be_read_is_said_and_nothing_is_routed():
    verdicts = [learned(questions(300, seed=seed, readable=False)) for seed in range(5)]
    # An interval of 95% is above a half by chance once in forty times.
    silent = [found for found in verdicts if not found["recommended"]]
    assert len(silent) >= 4
    assert "no better than by chance" in silent[0]["reason"]
    assert silent[0]["threshold"] is None


def test_few_wrong_answers_teach_nothing():
    rows = questions(200, seed=3)
    for number, row in enumerate(rows):
        row["wrong"] = number < 7
    found = learned(rows)
    assert (found["recommended"], found["model"], found["curve"]) == (False, None, [])
    assert "7 of 200 held-out prompts wrong; at least 8" in found["reason"]


def test_the_server_gets_bit_for_bit_the_probability_of_the_command(tmp_path, found):
    store = Store(tmp_path)
    write_report(store, found)
    predictor = read_predictor(str(tmp_path / "routing.json"), field="predictor")
    offline = Scorer(Model.model_validate(found["model"]))
    rows = questions(300, seed=9)
    begin = time.perf_counter()
    online = [predictor.probability(row["messages"]) for row in rows]
    seconds = time.perf_counter() - begin
    assert online == [offline.probability(prompt_of(row["messages"])) for row in rows]
    # 0.05 to 0.2 ms; ten times as much on a busy machine is not yet a request's worth.
    assert seconds / len(rows) < 2e-3
    hard, easy = ([p for p, r in zip(online, rows, strict=True) if r["hard"] is h]
                  for h in (True, False))  # fmt: skip
    assert np.mean(hard) > 3 * np.mean(easy)


def test_the_score_is_scikit_learns_own():
    from scipy.sparse import csr_matrix
    from sklearn.linear_model import LogisticRegression

    rows = questions(120, seed=4)
    texts = [prompt_of(row["messages"]) for row in rows]
    labels = np.array([row["wrong"] for row in rows], dtype=int)
    features = [features_of(text) for text in texts]
    model = fit(features, labels)
    table = np.zeros((len(rows), BUCKETS))
    for place, row in enumerate(features):
        table[place, row.buckets] = row.weights
    same = LogisticRegression().fit(csr_matrix(table), labels)
    same.coef_, same.intercept_ = np.array([model.buckets]), np.array([model.intercept])
    counts = np.array([row.counts for row in features]) @ model.counts
    expected = same.decision_function(table) + counts
    assert [Scorer(model).score(text) for text in texts] == pytest.approx(expected, abs=1e-7)


@pytest.mark.parametrize("text", ["", "a", "\ud800", "ß" * 10, "0" * 100_000, "Ω\n" * 9000])
def test_any_text_has_features(text):
    found = features_of(text)
    assert math.fsum(found.weights**2) == pytest.approx(1.0)
    assert all(map(math.isfinite, found.counts))
    assert features_of(text + "x" * MAX_CHARS).counts[0] > found.counts[0]


def test_fixed_features_stay_what_they_are():
    # A changed hash would make every file that is out there say something else.
    found = features_of("Bank: 17.50 EUR")
    assert len(found.buckets) == 58
    assert found.buckets[:4].tolist() == GOLDEN
    assert found.counts == (math.sqrt(15), math.sqrt(3), 1.0, 4 / 15, 4 / 15)


GOLDEN = [237, 267, 369, 396]


def test_what_is_picked(found):
    curve = found["curve"]
    best = max(point["accuracy"] for point in curve)
    default, _ = pick(curve, Wish())
    assert default["accuracy"] >= best - 0.01
    assert all(p["usd_per_1k"] >= default["usd_per_1k"] for p in curve
               if p["accuracy"] >= best - 0.01)  # fmt: skip
    cheap, _ = pick(curve, Wish(max_usd_per_1k=0.2))
    assert cheap["usd_per_1k"] <= 0.2
    good, _ = pick(curve, Wish(min_quality=0.95))
    assert good["accuracy"] >= 0.95
    assert good["usd_per_1k"] < default["usd_per_1k"]
    few, _ = pick(curve, Wish(teacher_share=0.05))
    assert few["share"] <= 0.05


def test_wishes_that_cannot_be_granted_say_what_could(found):
    with pytest.raises(
        ConfigError, match=r"--max-usd-per-1k 0\.001: .* the cheapest costs \$0\.02"
    ):
        pick(found["curve"], Wish(max_usd_per_1k=0.001))
    weak = learned(questions(500, seed=1), other=lambda row: not row["hard"])
    with pytest.raises(ConfigError, match=r"--min-quality 0\.999: no threshold reaches it"):
        pick(weak["curve"], Wish(min_quality=0.999))
    with pytest.raises(ConfigError, match="--min-quality, --teacher-share: give one of them"):
        Wish(min_quality=0.9, teacher_share=0.1)
    with pytest.raises(ConfigError, match="--teacher-share 5: give a share from 0 to 1"):
        Wish(teacher_share=5)
    unpriced = learned(questions(500, seed=1), subject=replace(SUBJECT, other_usd=None))
    assert unpriced["picked"]["usd_per_1k"] is None
    with pytest.raises(ConfigError, match=r"teacher\.price"):
        pick(unpriced["curve"], Wish(max_usd_per_1k=1))


def test_a_student_that_is_as_good_keeps_everything():
    found = learned(questions(500, seed=1), other=lambda row: not row["wrong"])
    assert not found["recommended"]
    assert found["reason"].startswith("the student alone is the cheapest")


def test_a_larger_adapter_counts_where_it_answered():
    rows = questions(500, seed=1)
    known = {row["example_id"] for row in rows[:400]}
    found = learned(
        rows,
        subject=replace(SUBJECT, other="large-1"),
        other=lambda row: not row["wrong"] or row["hard"] if row["example_id"] in known else None,
    )
    assert any("100 prompts have no prediction of large-1" in note for note in found["notes"])
    assert found["curve"][-1]["accuracy"] < 1


def test_platt_finds_the_rate_and_never_turns_scores_round():
    rng = np.random.default_rng(0)
    raw = rng.normal(size=4000)
    labels = (rng.random(4000) < 1 / (1 + np.exp(-(2 * raw - 1)))).astype(int)
    found = platt(raw, labels)
    assert (found.slope, found.offset) == pytest.approx((2, -1), abs=0.2)
    assert platt(-raw, labels).slope == 0.0


def test_the_area_is_the_share_of_pairs_in_order():
    scores, wrong = np.array([0.1, 0.4, 0.4, 0.8]), np.array([0.0, 1.0, 0.0, 1.0])
    auc, _ = area(scores, wrong, Bootstrap(4, samples=50, seed=0))
    assert auc == pytest.approx(3.5 / 4)
    assert calibration_error(reliability(wrong, wrong)) == 0


def log_of(rows, **fields):
    return [{"quality": "passed", **row, **fields} for row in rows]


def test_checked_requests_of_the_log_are_labels_for_fitting_only():
    rows = questions(40, seed=5)
    email = [{"role": "user", "content": "Mail <EMAIL_1>"}]
    taken = logged(
        [
            *log_of(rows[:10]),
            *log_of(rows[10:13], quality="form"),
            *log_of(rows[13:15], quality="confidence"),
            *log_of(rows[15:17], quality=None),
            *log_of(rows[:2]),
            *log_of(rows[30:31], messages=email),
        ],
        known=[rows[9]["example_id"]],
    )
    assert len(taken.rows) == 12
    assert sum(label for _, label in taken.rows) == 3
    assert taken.left_out == {"unchecked": 4, "known": 3, "masked": 1}
    held_rows = held(questions(300, seed=6))
    without = learn(held_rows.texts, held_rows.wrong, more=[], seed=1)
    more = [(row["messages"][1]["content"], row["wrong"]) for row in questions(600, seed=7)]
    with_log = learn(held_rows.texts, held_rows.wrong, more=more, seed=1)
    assert len(with_log.probabilities) == len(without.probabilities) == 300


def test_predictions_are_joined_by_example():
    rows = questions(3, seed=8)
    student = [{"example_id": r["example_id"], "correct": not r["wrong"]} for r in rows]
    found = held_out(rows[:2], student, [{"example_id": rows[0]["example_id"], "correct": True}])
    assert found.other_right == [True, None]
    assert found.texts == [row["messages"][1]["content"] for row in rows[:2]]


def test_the_page_is_one_file_with_the_curve(tmp_path, found):
    store = Store(tmp_path)
    write_report(store, found)
    page = (tmp_path / "routing.html").read_text()
    assert page.count("<svg") >= 2
    assert "as many at random" in page
    assert "http" not in page
    more = Logged([("x", True)])
    write_report(store, learned(questions(30, seed=1), more=more))
    assert "no routing" in (tmp_path / "routing.html").read_text()
