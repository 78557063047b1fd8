"""The import path that RayService and `serve deploy` use."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from cluster.errors import ConfigError
from jobs.serve_app import app

ROOT = Path(__file__).parents[2]


def test_mistakes_in_args_are_listed_all_at_once() -> None:
    with pytest.raises(ConfigError, match="2 problems") as error:
        app({"confg": ["run.toml"]})
    assert "did you mean 'config'?" in str(error.value)
    assert "config: is required" in str(error.value)


def test_a_mistake_in_the_run_is_named_before_anything_is_built(tmp_path: Path) -> None:
    run = tmp_path / "run.toml"
    run.write_text('[task]\nfolder = "reconcile"\n[student]\nmodle = "m"\n')
    with pytest.raises(ConfigError, match="did you mean 'model'"):
        app({"config": [str(run)]})


def test_serve_accepts_it_as_a_builder_of_one_argument() -> None:
    assert len(inspect.signature(app).parameters) == 1
