"""Names from clients are looked up, never used."""

from __future__ import annotations

import pytest

from cluster.registry import Split
from serve.errors import ApiError
from serve.routes import REFUSED_S, Alias, NotLoaded, RouteTable


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


def table(clock: Clock | None = None) -> RouteTable:
    routes = RouteTable("small-llama", clock=clock or Clock())
    routes.known = {"reconcile": {1: 100, 2: 200, 3: 300}, "draft": {1: 50}}
    routes.wanted = {Alias("reconcile", "prod"): 3, Alias("reconcile", "canary"): 2}
    routes.live = {Alias("reconcile", "prod"): 1, Alias("reconcile", "canary"): 2}
    return routes


@pytest.mark.parametrize(
    ("asked", "answers"),
    [
        ("reconcile", "reconcile@v1"),  # live, not what the registry wants
        ("reconcile@prod", "reconcile@v1"),
        ("reconcile@canary", "reconcile@v2"),
        ("reconcile@v3", "reconcile@v3"),
        ("draft@v1", "draft@v1"),
        ("small-llama", "small-llama"),
    ],
)
def test_a_name_an_alias_and_a_version(asked: str, answers: str) -> None:
    assert table().resolve(asked).served_name == answers


def test_the_base_has_no_adapter() -> None:
    target = table().resolve("small-llama")
    assert target.model_id is None
    assert target.labels == {"adapter": "base", "version": "-"}


@pytest.mark.parametrize(
    "asked",
    [
        "nope",
        "reconcile@v4",
        "reconcile@v01",
        "reconcile@v" + "9" * 5000,
        "reconcile@beta",
        "reconcile@",
        "draft",  # published, but no alias points at it
        "../../etc/passwd",
        "reconcile@../v1",
        "reconcile\x00@v1",
        "Reconcile",
    ],
)
def test_everything_else_is_unknown(asked: str) -> None:
    with pytest.raises(ApiError) as caught:
        table().resolve(asked)
    assert (caught.value.status, caught.value.code) == (404, "model_not_found")


def versions(routes: RouteTable, **asker: str) -> set[str]:
    return {
        routes.route("reconcile", request_id=f"r{number}", **asker).target.version
        for number in range(64)
    }


def test_a_user_stays_with_one_version_and_a_key_in_an_ab_test_alone() -> None:
    routes = table()
    for mode in ("canary", "ab"):
        split = Split(version=2, mode=mode, weight=0.5, since="2026-01-01T00:00:00+00:00")
        routes.splits[Alias("reconcile", "prod")] = split
        assert len(versions(routes, user="ada", key_id="1a2b3c4d")) == 1
        assert versions(routes) == {"v1", "v2"}
        # All requests of a backend come with one key: of a canary one version would see none.
        with_a_key = versions(routes, key_id="1a2b3c4d")
        assert with_a_key == {"v1", "v2"} if mode == "canary" else len(with_a_key) == 1


def test_a_refused_version_says_why() -> None:
    routes = table()
    routes.refuse("reconcile@v2", NotLoaded("rank 64 is above 16"))
    with pytest.raises(ApiError, match="rank 64 is above 16") as caught:
        routes.resolve("reconcile@v2")
    assert caught.value.status == 404


def test_a_refusal_is_forgotten_after_a_while() -> None:
    clock = Clock()
    routes = table(clock)
    routes.refuse("reconcile@v2", NotLoaded("a file was changed"))
    clock.now += REFUSED_S + 1
    assert routes.resolve("reconcile@v2").version == "v2"
    assert "reconcile@v2" in {card["id"] for card in routes.cards(created=1)}
    assert routes.refusals() == {}


def test_what_may_pass_is_shown_and_left_to_the_replicas() -> None:
    routes = table()
    routes.refuse("reconcile@v2", NotLoaded("a replica died", passes=True))
    assert routes.resolve("reconcile@v2").version == "v2"
    assert "reconcile@v2" in {card["id"] for card in routes.cards(created=1)}
    assert routes.refusals() == {"reconcile@v2": "a replica died"}


def test_an_alias_whose_only_version_is_refused_is_not_ready() -> None:
    routes = table()
    routes.wanted[Alias("draft", "prod")] = 1
    routes.refuse("draft@v1", NotLoaded("a file was changed"))
    with pytest.raises(ApiError, match="a file was changed") as caught:
        routes.resolve("draft")
    assert caught.value.status == 503
    assert "Retry-After" in caught.value.headers


def test_models_lists_what_may_be_asked_for() -> None:
    routes = table()
    routes.refuse("reconcile@v3", NotLoaded("rank"))
    cards = {card["id"]: card for card in routes.cards(created=1)}
    assert set(cards) == {
        "small-llama",
        "reconcile",
        "reconcile@canary",
        "reconcile@v1",
        "reconcile@v2",
        "draft@v1",
    }
    assert cards["reconcile"]["root"] == "reconcile@v1"
    assert cards["reconcile"]["parent"] == "small-llama"
    assert cards["reconcile@v2"]["created"] == 200
