"""The fenced swap on a real registry, with replicas that confirm or refuse."""

from __future__ import annotations

import asyncio
import fcntl
import shutil
from pathlib import Path

import pytest

from cluster.registry import AdapterManifest, Registry, Split
from serve.routes import Alias, NotLoaded, RouteTable
from serve.split.running import Splits
from serve.watcher import RegistryWatcher

PROD = Alias("reconcile", "prod")


def publish(registry: Registry, folder: Path, text: str) -> int:
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    (folder / "adapter_model.safetensors").write_text(text)
    manifest = AdapterManifest(
        name="reconcile",
        base_model="base",
        base_digest="b" * 64,
        rank=8,
        alpha=16,
        target_modules=["q_proj"],
        task="reconcile",
        task_digest="t" * 64,
        dataset_digest="d" * 64,
        teacher="rules",
        train={},
        gates=[],
    )
    return registry.publish(folder, manifest).version


class Replicas:
    """Two replicas; `refuse` maps a model id to what the second one says."""

    def __init__(self, table: RouteTable) -> None:
        self.table = table
        self.refuse: dict[str, str] = {}
        self.asked: list[tuple[str, int | None]] = []

    async def load(self, model_id: str) -> list[NotLoaded | None]:
        self.asked.append((model_id, self.table.live.get(PROD)))
        reason = self.refuse.get(model_id)
        return [None, NotLoaded(reason) if reason else None]


@pytest.fixture
def registry(tmp_path: Path) -> Registry:
    made = Registry(str(tmp_path / "registry"))
    for text in ("one", "two", "three"):
        publish(made, tmp_path / "adapter", text)
    made.promote("reconcile", 1)
    return made


def follow(registry: Registry) -> tuple[RegistryWatcher, Replicas]:
    table = RouteTable("base")
    replicas = Replicas(table)
    return RegistryWatcher(registry, table=table, load=replicas.load), replicas


async def step(watcher: RegistryWatcher) -> None:
    await watcher.refresh(max_age_s=0.0)
    await watcher.swap()


def test_a_route_moves_only_after_every_replica_confirmed(registry: Registry) -> None:
    watcher, replicas = follow(registry)
    asyncio.run(step(watcher))
    registry.promote("reconcile", 2)
    asyncio.run(step(watcher))
    assert watcher.table.live[PROD] == 2
    # While v2 was being loaded, requests still went to v1.
    assert replicas.asked == [("reconcile@v1", None), ("reconcile@v2", 1)]


def test_one_replica_that_refuses_keeps_the_route(registry: Registry) -> None:
    watcher, replicas = follow(registry)
    asyncio.run(step(watcher))
    replicas.refuse["reconcile@v2"] = "a file was changed"
    registry.promote("reconcile", 2)
    asyncio.run(step(watcher))
    assert watcher.table.live[PROD] == 1
    assert watcher.status()["routes"] == {"reconcile": "reconcile@v1"}
    assert watcher.status()["pending"] == {"reconcile": "reconcile@v2"}
    assert watcher.status()["refused"] == {"reconcile@v2": "a file was changed"}
    # It is not asked again at every poll, and going back ends the matter.
    asyncio.run(step(watcher))
    assert [m for m, _ in replicas.asked] == ["reconcile@v1", "reconcile@v2"]
    assert registry.rollback("reconcile") == 1
    asyncio.run(step(watcher))
    assert watcher.status()["pending"] == {}


def test_a_replica_that_dies_while_loading_keeps_the_route(registry: Registry) -> None:
    watcher, _ = follow(registry)
    asyncio.run(step(watcher))

    async def die(model_id: str) -> list[NotLoaded | None]:
        raise ConnectionError("gone")

    watcher._load = die
    registry.promote("reconcile", 3)
    asyncio.run(step(watcher))
    assert watcher.table.live[PROD] == 1
    assert "ConnectionError" in watcher.status()["refused"]["reconcile@v3"]
    # Whoever asks for the version itself may find a replica that lives.
    assert watcher.table.resolve("reconcile@v3").version == "v3"


def test_no_replica_confirms_nothing(registry: Registry) -> None:
    watcher, _ = follow(registry)

    async def nobody(model_id: str) -> list[NotLoaded | None]:
        return []

    watcher._load = nobody
    asyncio.run(step(watcher))
    assert PROD not in watcher.table.live


def test_while_no_replica_runs_a_request_goes_where_the_registry_points(
    registry: Registry,
) -> None:
    watcher, replicas = follow(registry)
    table = watcher.table

    async def nobody(model_id: str) -> list[NotLoaded | None]:
        return []

    def answers() -> str:
        return table.route("reconcile").target.version

    watcher._load = nobody
    asyncio.run(step(watcher))
    assert answers() == "v1"
    assert table.resolve("reconcile@v1").version == "v1"
    assert "reconcile" in {card["id"] for card in table.cards(created=1)}
    assert watcher.status()["refused"] == {}
    # The replica that such a request wakes has checked what it loads.
    watcher._load = replicas.load
    asyncio.run(step(watcher))
    assert table.live[PROD] == 1

    watcher._load = nobody
    registry.promote("reconcile", 2)
    asyncio.run(step(watcher))
    assert (answers(), table.live[PROD]) == ("v2", 1)
    replicas.refuse["reconcile@v2"] = "a file was changed"
    watcher._load = replicas.load
    asyncio.run(step(watcher))
    assert answers() == "v1"
    # With replicas again, a move waits for all of them again.
    registry.promote("reconcile", 3)
    asyncio.run(watcher.refresh(max_age_s=0.0))
    assert answers() == "v1"


def test_a_registry_that_vanishes_changes_nothing(registry: Registry) -> None:
    watcher, _ = follow(registry)
    asyncio.run(step(watcher))
    shutil.rmtree(registry.store.root)
    asyncio.run(step(watcher))
    assert watcher.table.resolve("reconcile").served_name == "reconcile@v1"
    assert watcher.table.resolve("reconcile@v3").served_name == "reconcile@v3"


def test_a_damaged_alias_file_is_shown_and_changes_nothing(registry: Registry) -> None:
    watcher, _ = follow(registry)
    asyncio.run(step(watcher))
    Path(registry.store.path("reconcile/aliases.json")).write_text("{half")
    asyncio.run(step(watcher))
    assert watcher.table.resolve("reconcile").served_name == "reconcile@v1"
    assert watcher.status()["registry"] != "ok"


def test_versions_published_later_are_found(registry: Registry, tmp_path: Path) -> None:
    watcher, _ = follow(registry)
    asyncio.run(step(watcher))
    version = publish(registry, tmp_path / "adapter", "four")
    asyncio.run(watcher.refresh(max_age_s=0.0))
    assert watcher.table.resolve(f"reconcile@v{version}").version == "v4"


def test_a_swap_is_timed_from_its_being_seen_to_its_going_live(registry: Registry) -> None:
    table = RouteTable("base")
    replicas = Replicas(table)
    swapped: list[tuple[str, float]] = []
    watcher = RegistryWatcher(
        registry,
        table=table,
        load=replicas.load,
        on_swap=lambda name, seconds: swapped.append((name, seconds)),
    )
    # The first version is no swap: nothing was served before it.
    asyncio.run(step(watcher))
    assert swapped == []
    registry.promote("reconcile", 2)

    async def slow(model_id: str) -> list[NotLoaded | None]:
        await asyncio.sleep(0.2)
        return [None]

    watcher._load = slow
    asyncio.run(step(watcher))
    assert [name for name, _ in swapped] == ["reconcile"]
    assert 0.2 <= swapped[0][1] < 5


def test_a_canary_goes_live_when_every_replica_has_it_and_leaves_with_its_adapter(
    registry: Registry,
) -> None:
    table = RouteTable("base")
    replicas, unloaded = Replicas(table), []

    async def unload(model_id: str) -> None:
        unloaded.append(model_id)

    watcher = RegistryWatcher(registry, table=table, load=replicas.load, unload=unload)

    async def poll() -> None:
        await watcher.refresh(max_age_s=0.0)
        await watcher.swap()
        await watcher.swap_splits()
        await asyncio.sleep(0.01)

    async def story() -> None:
        await poll()
        split = registry.start_split("reconcile", Split(version=2, weight=1 - 1e-12))
        replicas.refuse["reconcile@v2"] = "out of memory"
        await poll()
        assert table.route("reconcile", user="a").target.version == "v1"
        replicas.refuse.clear()
        watcher._retry_at.clear()
        await poll()
        assert table.route("reconcile", user="a").target.version == "v2"
        assert not unloaded
        # The gateway takes it out of the routes at once, the registry follows.
        table.splits.pop(PROD)
        registry.end_split("reconcile", promote=False, expected=split)
        await poll()
        assert table.route("reconcile", user="a").target.version == "v1"
        assert unloaded == ["reconcile@v2"]

    asyncio.run(story())


async def poll(watcher: RegistryWatcher) -> None:
    await step(watcher)
    await watcher.swap_splits()


async def failing_canary(registry: Registry) -> tuple[RegistryWatcher, Splits]:
    """A live canary of v2 that has answered nothing but errors."""
    watcher, _ = follow(registry)
    await poll(watcher)
    registry.start_split("reconcile", Split(version=2))
    await poll(watcher)
    splits = Splits(registry, watcher.table)
    for _ in range(60):
        splits.observe_version(
            PROD, watcher.table.splits[PROD], second=True, latency_s=0.1, error_kind="internal"
        )
    return watcher, splits


def test_a_canary_that_was_rolled_back_stays_away_while_the_registry_is_slow(
    registry: Registry,
) -> None:
    async def story() -> None:
        watcher, splits = await failing_canary(registry)
        with open(registry.store.path("reconcile/.lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            looking = asyncio.create_task(splits.look())
            await asyncio.sleep(0.05)
            await poll(watcher)
            assert not looking.done()
            assert watcher.table.splits == {}
        await looking
        assert registry.splits("reconcile") == {}
        await poll(watcher)
        # Another canary is another matter, of the same version too.
        registry.start_split("reconcile", Split(version=2))
        await poll(watcher)
        assert watcher.table.splits[PROD].version == 2

    asyncio.run(story())


def test_a_rollback_that_cannot_be_written_is_tried_again(registry: Registry) -> None:
    async def story() -> None:
        watcher, splits = await failing_canary(registry)
        lock = Path(registry.store.path("reconcile/.lock"))
        lock.unlink()
        lock.mkdir()  # whoever wants to write gets an OSError
        for _ in range(2):
            await splits.look()
            await poll(watcher)
            assert watcher.table.splits == {}
        assert registry.splits("reconcile")
        lock.rmdir()
        await splits.look()
        move = registry.history("reconcile", "prod")[-1]
        assert (move["action"], move["figures"]["requests"]) == ("end-canary", 60)
        await splits.look()
        assert registry.history("reconcile", "prod")[-1] == move

    asyncio.run(story())
