"""A Ray that the commands of a module join."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from local_ray import local_ray


@pytest.fixture(scope="module")
def _module_ray() -> Iterator[str]:
    with local_ray() as address:
        yield address


@pytest.fixture
def joined_ray(_module_ray: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands that the test runs join one Ray, as on a cluster, and start none of their own."""
    monkeypatch.setenv("RAY_ADDRESS", _module_ray)
