"""Configuration of the relabelling: `[relabel]`."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from cluster.config import StrictModel
from cluster.masking import MaskingConfig
from distill.teach.config import OneTeacher


class RelabelConfig(StrictModel):
    """Which requests of the log the teacher answers again, and where the dataset grows."""

    teacher: Annotated[OneTeacher, Field(discriminator="kind")] | None = None
    """Who is asked, as it would stand under `[teacher]`; without it the run's own teacher."""
    max_rows: int = Field(default=500, ge=1)
    """Most requests picked: failures first, then low confidence, then what is uncovered."""
    min_mean_logprob: float = Field(default=-0.2, le=0)
    """Mean log-probability of the answer's tokens, nats, below which confidence is low, where the
    log has it; -0.2 is a geometric mean probability of 0.82."""
    confidence_field: str = "confidence"
    """Field of the answer that says how sure it is, 0 to 1; used where no log-probability is."""
    min_confidence: float = Field(default=0.7, ge=0, le=1)
    """Confidence below which an answer is picked by that field."""
    coverage: float = Field(default=0.99, gt=0, lt=1)
    """A prompt is uncovered when it lies further from every cluster of the training prompts than
    this share of training prompts that were kept out of the clusters; so about 1 - coverage is
    picked of usual traffic."""
    clusters: int = Field(default=16, ge=1)
    """Clusters of the training prompts (k-means); at most one for ten prompts."""
    datasets: str = ""
    """Folder of the dataset versions; empty: `datasets/<adapter>` beside the run folders."""
    masking: MaskingConfig = MaskingConfig()
    """What is masked before a teacher sees a request, whatever the server had masked."""
    seed: int = Field(default=17, ge=0)
    """Of the clusters."""
