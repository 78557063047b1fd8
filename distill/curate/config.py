"""Configuration of the curation's larger steps; `distill/config.py` puts them under `[curate]`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cluster.config import StrictModel

Part = Literal["record", "prompt", "completion"]


class StructureConfig(StrictModel):
    """What an answer must be made of. The task's own format is checked by its parser (`schema`)."""

    closed_fences: bool = True
    """Reject an answer with a code fence that is never closed (`unclosed_fence`): most often it was
    cut off."""
    sections: tuple[str, ...] = ()
    """Markdown headings that an answer must have, with text below each (`missing_section`)."""
    example_heading: str = "Example"
    """A heading or bold line that begins with this word, and perhaps a number, opens an example."""
    example_parts: tuple[str, ...] = ()
    """Labels, such as `Input` and `Output`, that each example must have with something behind or
    below them (`incomplete_example`)."""
    min_examples: int = Field(default=0, ge=0)
    """Fewer examples are rejected (`incomplete_example`)."""
    consistent: bool = False
    """Reject an answer that mixes bullet marks within one list, or whose examples name their parts
    in different ways or orders (`inconsistent_format`)."""


class NearDuplicatesConfig(StrictModel):
    """Near-duplicates by MinHash and locality-sensitive hashing, confirmed by exact Jaccard.

    Templated prompts share most of their words without saying the same: their near-duplicates are
    wanted, so this is off unless the section is there.
    """

    threshold: float = Field(default=0.8, gt=0, le=1)
    """Least Jaccard similarity of two records' shingles that makes the later one a duplicate."""
    shingle_words: int = Field(default=3, ge=1, le=32)
    """Words a shingle. A changed word takes at most so many shingles away: with 3, about one word
    in 27 may differ at a similarity of 0.8."""
    num_perm: int = Field(default=128, ge=1, le=1024)
    """Length of a MinHash signature."""
    min_recall: float = Field(default=0.98, gt=0, lt=1)
    """Least probability that a pair exactly at the threshold becomes a candidate; it chooses bands
    and rows. Higher finds more and costs more comparisons."""
    of: Part = "record"
    """What is compared: the user's prompt, the completion, or both as one `record`. The system
    message is left out: all records share it."""

    @model_validator(mode="after")
    def _reachable(self) -> NearDuplicatesConfig:
        reached = 1 - (1 - self.threshold) ** self.num_perm
        if reached < self.min_recall:
            raise ValueError(
                f"num_perm {self.num_perm} finds a pair at threshold {self.threshold} with a "
                f"probability of {reached:.2f} at most, below min_recall {self.min_recall}; "
                "raise num_perm or threshold, or lower min_recall"
            )
        return self


class BalanceRule(StrictModel):
    """No group of one kind may take more than its share of the training records."""

    by: str = "stratum"
    """What makes a group: `stratum`, `length` (of the completion, in powers of two), or a dotted
    path of the prompt's variables such as `problem.difficulty`."""
    max_share: float | None = Field(default=None, gt=0, le=1)
    """Largest share that one group may have of what is kept."""
    max_count: int | None = Field(default=None, ge=1)
    """Most records of one group."""

    @model_validator(mode="after")
    def _limits_something(self) -> BalanceRule:
        if self.max_share is None and self.max_count is None:
            raise ValueError("give max_share, max_count, or both")
        return self


class ContaminationConfig(StrictModel):
    """Training records that share long word n-grams with what they will be evaluated on.

    Prompts made from one template share its wording by design, and generated ones share values too;
    `distillery` keeps their splits apart by the task's `disjoint` fields. So this is off unless
    the section is there.
    """

    words: int = Field(default=13, ge=2, le=64)
    """Words an n-gram (13: Brown et al. 2020, appendix C). Shorter texts are not compared."""
    min_share: float = Field(default=0.0, ge=0, le=1)
    """A record is contaminated when more than this share of its n-grams stands in an evaluation
    set. 0: a single one is enough."""
    max_records: int = Field(default=10, ge=1)
    """An n-gram in more training records than this is the template's wording and no evidence."""
    action: Literal["reject", "report"] = "reject"
    """Whether contaminated records are rejected (`contamination`) or only listed."""
    files: tuple[str, ...] = ()
    """Further evaluation sets, JSONL: every text of a line counts, at any depth."""


class EmbeddingsConfig(StrictModel):
    """What stands for a record in semantic duplicates and in the picture of the dataset."""

    model: str = ""
    """Folder of an embedding model in the layout of sentence-transformers, or of a plain encoder
    (then the mean over its tokens). Empty: TF-IDF and truncated SVD, which see words, not
    meaning."""
    of: Part = "record"
    """What is embedded: the user's prompt, the completion, or both."""
    dimensions: int = Field(default=64, ge=2)
    """Components of the truncated SVD; a model has its own size."""
    batch_size: int = Field(default=32, ge=1)
    """Texts that a model embeds at once."""


class SemanticDuplicatesConfig(StrictModel):
    """Records that say the same in other words.

    With TF-IDF vectors records of one template are all alike, whatever their numbers say: use it
    with a model, or on free text.
    """

    threshold: float = Field(default=0.9, gt=0, lt=1)
    """A record whose cosine similarity with an earlier one is above this is rejected
    (`semantic_duplicate`); at 0.8 real answers are lost too."""


class DiversityConfig(StrictModel):
    """Clusters of the training records: is one of them most of the dataset?"""

    examples_per_cluster: int = Field(default=50, ge=1)
    """About so many records make a cluster."""
    max_clusters: int = Field(default=8, ge=3)
    """Most clusters. There are at least three: with fewer one always holds half."""
    risky_share: float = Field(default=0.4, gt=0, le=1)
    """The verdict is RISKY when a cluster holds more than this share."""
    max_share: float = Field(default=0.3, gt=0, le=1)
    """Records of a dominant cluster beyond this share are rejected (`dominant_cluster`); 1 rejects
    none."""
    seed: int = Field(default=17, ge=0)
    """Seed of k-means."""
