"""The serving application as an import path: `jobs.serve_app:app` in a Ray Serve config file.

KubeRay's RayService and `serve deploy` start applications that way; `jobs.deploy` needs it not.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pydantic import Field

from cluster.config import StrictModel, validate
from jobs.config import load_run_config

if TYPE_CHECKING:
    from ray.serve import Application


class ServeArgs(StrictModel):
    """What stands under `args` in the Serve config file."""

    config: list[str] = Field(min_length=1)
    """Paths of the run's TOML files on the cluster's nodes; later ones win."""
    overrides: list[str] = Field(default_factory=list)
    """`--section.field value`, as on the command line, one word an entry."""


def app(args: dict[str, Any]) -> Application:
    """Build the application of a run's configuration; ConfigError lists every problem."""
    given = validate(ServeArgs, args, source="args of the Serve application")
    config = load_run_config(given.config, overrides=given.overrides)
    from jobs.quality import quality_parts
    from jobs.routing import routing_parts
    from serve.app import build_app

    return build_app(
        config.serve,
        base_model=config.student.model,
        registry_uri=config.registry.uri,
        accelerator=config.cluster.accelerator,
        quality=quality_parts(config),
        routing=routing_parts(config),
    )
