"""Vectors, semantic duplicates, clusters with a verdict, and what there is too little of."""

import json
import random

import numpy as np
import pytest

from cluster.errors import ConfigError
from distill.curate.config import DiversityConfig, EmbeddingsConfig
from distill.curate.diversity import (
    diversity,
    num_clusters,
    semantic_duplicates,
    under_represented,
)
from distill.curate.embed import build_embed, normalized, tfidf_embed
from distill.curate.tokens import length_counter

LINES = """
bank: invoice ledger payment vendor amount currency posted account balance
ship: harbour ferry anchor captain tide crew deck sail rope storm
soup: onion carrot simmer stock pepper bowl ladle garlic broth salt
rock: guitar drum chorus stage amplifier singer encore album vinyl riff
"""
TOPICS = {line[:4]: line[5:].split() for line in LINES.split("\n") if line}


def texts(seed=1, **sizes):
    rng = random.Random(seed)
    return [
        " ".join(rng.choices(TOPICS[topic], k=12)) for topic, size in sizes.items()
        for _ in range(size)
    ]  # fmt: skip


def diverse(given, **config):
    keys = [f"id{i}" for i in range(len(given))]
    return diversity(tfidf_embed(given), DiversityConfig(**config), keys=keys, texts=given)


def test_texts_of_one_topic_lie_closer_than_those_of_two():
    vectors = build_embed(EmbeddingsConfig())(texts(bank=20, ship=20))
    assert vectors.dtype == np.float32
    assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(40), abs=1e-5)
    cosines = vectors @ vectors.T
    assert cosines[:20, :20].mean() > 0.5 > 0.1 > cosines[:20, 20:].mean()


@pytest.mark.parametrize("given", [["", "?!"], ["one"], ["one word", "one word"], []])
def test_texts_that_say_little_can_be_embedded(given):
    assert tfidf_embed(given).shape[0] == len(given)


def test_a_folder_that_is_no_model_is_refused(tmp_path):
    with pytest.raises(ConfigError, match=r"curate\.embeddings\.model"):
        build_embed(EmbeddingsConfig(model=str(tmp_path)))


def test_a_semantic_duplicate_names_the_nearest_that_stays():
    # Angles in degrees; neighbours up to 25 apart have a cosine above 0.9.
    angles = np.radians([0, 20, 40, 90, 95, 180])
    vectors = np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)
    found = semantic_duplicates(vectors, threshold=0.9)
    # The row at 40° is only like the one at 20°, which does not stay.
    assert [(d.index, d.kept) for d in found] == [(1, 0), (4, 3)]
    assert found[0].cosine == pytest.approx(np.cos(np.radians(20)), abs=1e-6)


def test_semantic_duplicates_over_many_blocks_are_those_of_the_definition():
    rng = np.random.default_rng(5)
    vectors = normalized(rng.normal(size=(700, 6)))
    stays: list[int] = []
    for i, row in enumerate(vectors):
        if all(row @ vectors[j] <= 0.9 for j in stays):
            stays.append(i)
    found = semantic_duplicates(vectors, threshold=0.9)
    assert 100 < len(found) < 600
    assert sorted({*range(700)} - {d.index for d in found}) == stays


def test_an_even_dataset_is_good():
    result = diverse(texts(bank=50, ship=50, soup=50, rock=50))
    assert result.verdict == "GOOD"
    assert [cluster.size for cluster in result.clusters] == [50, 50, 50, 50]
    assert all(result.keep)
    named = [next(t for t, words in TOPICS.items() if set(c.terms) <= set(words))
             for c in result.clusters]  # fmt: skip
    assert sorted(named) == sorted(TOPICS)
    assert result.coordinates.shape == (200, 2)
    assert 0 < result.explained[1] <= result.explained[0] < 1


def test_a_dominant_cluster_is_risky_and_capped():
    result = diverse(texts(bank=120, ship=30, soup=30, rock=30), examples_per_cluster=50)
    assert result.verdict == "RISKY"
    assert result.reason == ("the largest of 4 clusters holds 57% of the records, above 40%")
    # 38 ÷ (38 + 90) is the largest share up to 30%.
    assert [cluster.kept for cluster in result.clusters] == [38, 30, 30, 30]
    assert sum(result.keep) == 128
    assert all(result.keep[120:])
    assert all(diverse(texts(bank=120, ship=30, soup=30, rock=30), max_share=1).keep)


def test_the_number_of_clusters_follows_the_records():
    config = DiversityConfig()
    assert [num_clusters(n, config) for n in (0, 2, 100, 250, 5000)] == [0, 2, 3, 5, 8]


def test_one_text_over_and_over_is_one_cluster():
    result = diverse(["the same text"] * 60)
    assert (result.verdict, len(result.clusters)) == ("RISKY", 1)
    assert result.note.startswith("1 group(s) cannot all stay")
    assert all(result.keep)


def rows(**sizes):
    return [
        {
            "example_id": f"{name}{i}",
            "stratum": "",
            "variables": json.dumps(dict(zip(("role", "level"), name.split("_"), strict=True))),
        }
        for name, size in sizes.items()
        for i in range(size)
    ]


def test_what_there_is_too_little_of_is_listed_with_how_much_is_missing():
    given = rows(ml_easy=40, ml_hard=40, web_easy=40, ops_easy=10)
    kept = [row for row in given if "ops" not in row["variables"]]
    found = under_represented(kept, given, ["role", "level"], counter=length_counter(""))
    assert [(e["by"], e["group"], e["count"], e["missing"]) for e in found] == [
        ("role", "ops", 0, 40),
        ("role × level", "ops, easy", 0, 20),
        ("role × level", "ops, hard", 0, 20),
        ("role × level", "web, hard", 0, 20),
    ]
    assert under_represented([], [], ["role"], counter=length_counter("")) == []


@pytest.mark.model
@pytest.mark.parametrize("pooling", ["mean", "first"])
def test_a_model_folder_embeds_whatever_stands_beside_a_text(tmp_path, tiny_model, pooling):
    import shutil

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder)
    modules = ["Transformer", "Pooling", "Normalize"]
    (folder / "modules.json").write_text(
        json.dumps(
            [{"type": f"sentence_transformers.models.{m}", "path": f"{i}_{m}" * (i > 0)}
             for i, m in enumerate(modules)]
        )
    )  # fmt: skip
    (folder / "1_Pooling").mkdir()
    mode = {"mean": "pooling_mode_mean_tokens", "first": "pooling_mode_cls_token"}[pooling]
    (folder / "1_Pooling" / "config.json").write_text(json.dumps({"word_embedding_dimension": 1,
                                                                  mode: True}))  # fmt: skip
    embed = build_embed(EmbeddingsConfig(model=str(folder), batch_size=2))
    alone = embed(["a short text"])
    beside = embed(["a much longer text that makes the others be padded", "a short text", "x"])
    # Padding must not change a vector; what is left is the rounding of another batch shape.
    assert beside[1] == pytest.approx(alone[0], abs=1e-4)
    assert np.linalg.norm(beside, axis=1) == pytest.approx(np.ones(3), abs=1e-5)
    (folder / "modules.json").write_text(json.dumps([{"type": "a.b.Dense", "path": "2_Dense"}]))
    with pytest.raises(ConfigError, match="'Dense'"):
        build_embed(EmbeddingsConfig(model=str(folder)))
