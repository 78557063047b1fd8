"""Which model's hard prompts go where."""

from __future__ import annotations

from pydantic import Field

from cluster.config import StrictModel
from cluster.difficulty import TEACHER


class RoutingConfig(StrictModel):
    """One section a model name: `[serve.routing.reconcile]`. It covers whoever asks by an alias."""

    predictor: str
    """Path or URI of the `routing.json` that `distillery route` wrote. `runs/latest` moves with the
    next run: a server that stays up is better given the run's own folder."""
    to: str = Field(min_length=1, max_length=129)
    """`teacher` (that of `[serve.quality.<name>]`, within its rate and budget), or the name of
    another adapter: `reconcile-large`, `reconcile-large@v2`."""
    threshold: float | None = Field(default=None, gt=0, le=1)
    """Probability of a wrong answer from which a prompt goes there; `None` takes the file's."""

    @property
    def is_teacher(self) -> bool:
        """Whether the destination is the teacher."""
        return self.to == TEACHER
