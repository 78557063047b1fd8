"""Configuration of the makers of prompts: `[prompts.make]`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from cluster.config import StrictModel
from distill.prompts.logs import LogsConfig
from distill.teach.config import LiteLLMTeacher, VLLMTeacher

Writer = Annotated[LiteLLMTeacher | VLLMTeacher, Field(discriminator="kind")]
Operation = Literal[
    "constrain", "deepen", "reason", "complicate", "require", "concretise", "mutate", "new"
]


class FromTask(StrictModel):
    """The prompts that the task brings: its file, its generator or its grid."""

    kind: Literal["task"] = "task"
    """Chooses this kind; the fields beside it are its own."""


class Grown(StrictModel):
    """What the makers share that let a model write further prompts from the task's own."""

    writer: Writer | None = None
    """The model that writes; without it the `[teacher]`, which must then be a model."""
    fields: tuple[str, ...] = ()
    """Variables of the prompt whose text is written and compared; empty: every one that is text."""
    max_similarity: float = Field(default=0.7, gt=0, le=1)
    """A new prompt whose ROUGE-L F1 to a known one is above this is refused (Self-Instruct takes
    0.7); held-out prompts count as known."""
    max_words: int = Field(default=600, ge=1)
    """Longest prompt kept, in words of its fields."""
    seed: int = Field(default=17, ge=0)
    """Of the choice of examples, parents and operations."""


class SelfInstruct(Grown):
    """Self-Instruct (Wang et al. 2023): new prompts from a growing pool of examples, in rounds."""

    kind: Literal["self_instruct"] = "self_instruct"
    """Chooses this kind; the fields beside it are its own."""
    rounds: int = Field(default=20, ge=1)
    """Most rounds; fewer when `prompts.train` is reached or two rounds bring nothing new."""
    requests: int = Field(default=16, ge=1)
    """Requests of a round."""
    per_request: int = Field(default=8, ge=1, le=50)
    """New prompts asked for in one request."""
    seed_examples: int = Field(default=6, ge=1)
    """Examples of a request that come from the task's own prompts."""
    grown_examples: int = Field(default=2, ge=0)
    """Examples that were written in earlier rounds."""


class EvolInstruct(Grown):
    """Evol-Instruct (Xu et al. 2024): each generation rewrites the prompts, in depth or breadth."""

    kind: Literal["evol_instruct"] = "evol_instruct"
    """Chooses this kind; the fields beside it are its own."""
    generations: int = Field(default=3, ge=1, le=5)
    """Generations; fewer when `prompts.train` is reached."""
    operations: tuple[Operation, ...] = Field(
        default=(
            "constrain", "deepen", "reason", "complicate", "require", "concretise", "mutate", "new",
        ),
        min_length=1,
    )  # fmt: skip
    """In depth: constrain, deepen, reason (more steps of it), complicate (the input), require.
    In breadth: concretise, mutate, new."""
    max_similarity: float = Field(default=0.95, gt=0, le=1)
    """A rewritten prompt may stay close to its parent; above this it brings nothing new."""


class FromDataset(StrictModel):
    """The prompts of a dataset version that `distillery relabel` wrote; they name their splits."""

    kind: Literal["dataset"] = "dataset"
    """Chooses this kind; the fields beside it are its own."""
    folder: str
    """Folder or URI of the version, such as `runs/datasets/reconcile/v2`; its `next.toml` has this
    section and the teacher that replays its answers."""


MakeConfig = Annotated[
    FromTask | SelfInstruct | EvolInstruct | LogsConfig | FromDataset,
    Field(discriminator="kind"),
]
