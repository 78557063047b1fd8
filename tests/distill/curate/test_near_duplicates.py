"""MinHash and banding find pairs above the threshold; exact Jaccard keeps out what lies below."""

import random

import numpy as np
import pyarrow as pa
import pytest
from pydantic import ValidationError

from distill.curate.config import NearDuplicatesConfig
from distill.curate.near import (
    Banding,
    band_keys,
    choose_banding,
    jaccard,
    near_duplicates,
)
from distill.curate.shingles import shingles
from jobs.bench.near_duplicates import quality, synthetic

CONFIG = NearDuplicatesConfig()


def words(count, seed):
    rng = random.Random(seed)
    return [f"w{rng.randrange(10_000)}" for _ in range(count)]


def sets(texts, size):
    return [set(grams.tolist()) for grams in shingles(texts, size=size).sets()]


def test_words_are_what_is_left_of_case_punctuation_and_width():
    plain, other, wide = sets(["Pay the bill, twice!", "pay -- the BILL (twice)", "ＰＡＹ"], 2)
    assert plain == other
    assert len(plain) == 3
    assert wide == sets(["pay"], 2)[0]


def test_scripts_without_spaces_have_a_word_a_character():
    assert [len(grams) for grams in sets(["銀行取引明細", "bank 取引"], 2)] == [5, 2]


def test_a_short_text_is_one_shingle_and_an_empty_one_none():
    grams = shingles(["two words", "", " ?! ", "two words"], size=3)
    assert grams.offsets.tolist() == [0, 1, 1, 1, 2]
    assert grams.hashes[0] == grams.hashes[1]


def test_a_text_keeps_its_shingles_in_any_company():
    alone = shingles(["one two three four"], size=3)
    among = shingles(pa.array(["", "four three", "one two three four", "x"]), size=3)
    assert among.hashes[among.offsets[2] : among.offsets[3]].tolist() == alone.hashes.tolist()


def test_different_words_have_different_hashes():
    letters = "abcdefghijklmnopqrstuvwxyz"
    every = [a + b + c for a in letters for b in letters for c in ["", *letters]]
    every += [str(n) for n in range(100_000)] + ["a" * n for n in range(4, 400)]
    assert len(set(shingles([" ".join(every)], size=1).hashes.tolist())) == len(every)


def test_jaccard_is_the_sets_quotient():
    texts = ["a b c d", "a b c x", "y z q w", ""]
    pairs = np.array([[0, 1], [0, 2], [0, 0], [2, 3], [3, 3]])
    assert jaccard(texts, pairs, shingle_words=3).tolist() == [1 / 3, 0, 1, 0, 0]


def test_the_banding_finds_what_lies_on_the_threshold():
    for threshold in (0.5, 0.7, 0.8, 0.9, 1.0):
        config = NearDuplicatesConfig(threshold=threshold)
        banding = choose_banding(config)
        assert banding.bands * banding.rows <= config.num_perm
        assert banding.recall(threshold) >= config.min_recall
        stricter = Banding(bands=config.num_perm // (banding.rows + 1), rows=banding.rows + 1)
        assert threshold == 1.0 or stricter.recall(threshold) < config.min_recall
    assert choose_banding(CONFIG) == Banding(bands=18, rows=7)
    assert choose_banding(CONFIG).midpoint == pytest.approx((1 / 18) ** (1 / 7))


def test_a_threshold_that_cannot_be_reached_is_refused():
    with pytest.raises(ValidationError, match=r"raise num_perm or threshold"):
        NearDuplicatesConfig(threshold=0.02)


def test_the_first_of_a_cluster_stays_and_the_others_name_it():
    text = words(60, seed=1)
    changed = [*text[:30], "other", *text[31:]]
    texts = [" ".join(words(60, seed=2)), " ".join(text), " ".join(changed), " ".join(text).upper()]
    found = near_duplicates(texts, CONFIG)
    assert [(d.index, d.kept) for d in found] == [(2, 1), (3, 1)]
    # Of 58 shingles each three differ: 55 / 61.
    assert found[0].similarity == pytest.approx(55 / 61)
    assert found[1].similarity == 1.0


def test_a_chain_is_one_cluster_and_says_how_it_hangs_together():
    first = words(100, seed=3)
    second = [*first[:94], *words(6, seed=4)]
    third = [*words(6, seed=5), *second[6:]]
    found = near_duplicates([" ".join(t) for t in (first, second, third)], CONFIG)
    assert [(d.index, d.kept) for d in found] == [(1, 0), (2, 0)]
    assert found[0].similarity >= CONFIG.threshold
    assert found[1].nearest == 1
    assert found[1].similarity < CONFIG.threshold <= found[1].nearest_similarity


def test_texts_without_words_are_no_duplicates():
    assert near_duplicates(["", "?!", "...", ""], CONFIG) == []
    assert near_duplicates([], CONFIG) == []


def test_many_copies_of_one_text_are_one_cluster():
    texts = [f"{' '.join(words(40, seed=6))}{'.' * i}" for i in range(300)]
    found = near_duplicates(texts, CONFIG)
    assert [d.index for d in found] == list(range(1, 300))
    assert {d.kept for d in found} == {0}


def test_keys_made_in_parts_are_the_keys_of_the_whole():
    texts = [" ".join(words(30, seed=i)) for i in range(50)]
    whole = band_keys(texts, CONFIG)
    parts = np.concatenate([band_keys(texts[:20], CONFIG), band_keys(texts[20:], CONFIG)])
    assert (whole == parts).all()
    assert near_duplicates(texts, CONFIG, keys=parts) == near_duplicates(texts, CONFIG)


def test_planted_copies_have_the_similarity_they_claim():
    documents = synthetic(400, config=CONFIG)
    texts = documents.texts.to_pylist()
    for (a, b), similarity in zip(documents.pairs, documents.similarities, strict=True):
        one, other = (
            {tuple(text[i : i + 3]) for i in range(len(text) - 2)}
            for text in (texts[a].split(), texts[b].split())
        )
        # A random text may say the same three words twice, which is one shingle.
        assert len(one & other) / len(one | other) == pytest.approx(similarity, abs=0.02)


def test_recall_and_precision_on_planted_copies():
    documents = synthetic(4000, config=CONFIG)
    found = near_duplicates(documents.texts, CONFIG)
    recall, hardest, precision = quality(found, documents, threshold=CONFIG.threshold)
    # By the banding 0.986 of the pairs right at the threshold are found; 200 of them are drawn.
    assert recall >= 0.97
    assert hardest >= 0.95
    assert precision >= 0.99
