"""Configuration of the monitor: `[monitor]`."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from cluster.config import StrictModel


class MonitorConfig(StrictModel):
    """When production counts as unlike the evaluation set.

    A signal has drifted when two things hold: its test's p-value, corrected for the number of
    signals (Benjamini and Hochberg 1995), is at most `alpha`, and its population stability index
    is at least `psi_moderate`. The first keeps chance out, the second what is real and too small
    to matter.
    """

    log: str = ""
    """Request log, a folder or URI; empty takes `serve.request_log`."""
    adapter: str = ""
    """Adapter whose requests count, all its versions; empty: the name the run publishes under."""
    min_rows: int = Field(default=100, ge=20)
    """Fewer requests in the window, or fewer held-out prompts, give no verdict."""
    max_rows: int = Field(default=5000, ge=100)
    """Of more requests in the window so many are drawn at random."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Share of false alarms among the signals called drifted (false discovery rate)."""
    psi_moderate: float = Field(default=0.1, gt=0)
    """PSI of a moderate change; below 0.1 is none (Siddiqi 2006, Credit Risk Scorecards)."""
    psi_major: float = Field(default=0.25, gt=0)
    """PSI of a major change, 0.25 in the same source."""
    fail_at: Literal["moderate", "major"] = "moderate"
    """The change from which the exit code is 4."""
    bins: int = Field(default=10, ge=2, le=100)
    """Bins of a number's PSI, at the quantiles of the evaluation set."""
    max_categories: int = Field(default=20, ge=2)
    """A field with more different values than this is text and has no signal of its own."""
    clusters: int = Field(default=8, ge=2)
    """Clusters of the embeddings (k-means) whose shares the PSI compares."""
    permutations: int = Field(default=999, ge=99)
    """Permutations of the embeddings' test: the smallest p-value is 1 / (permutations + 1)."""
    seed: int = Field(default=17, ge=0)
    """Of the draw, the clusters and the permutations."""

    @model_validator(mode="after")
    def _thresholds_ordered(self) -> MonitorConfig:
        if self.psi_moderate > self.psi_major:
            raise ValueError(
                f"psi_moderate {self.psi_moderate} is above psi_major {self.psi_major}; "
                "0.1 and 0.25 are usual"
            )
        return self
