"""A replica's adapters: never more than fit, never one taken away while it answers."""

from __future__ import annotations

import asyncio

import pytest

from serve.residents import NoFreeSlot, Residents


class Engine:
    """Counts what is loaded, as the engine would see it."""

    def __init__(self, *, broken: frozenset[str] = frozenset()) -> None:
        self.loaded: list[str] = []
        self.most = 0
        self.broken = broken

    async def load(self, model_id: str) -> None:
        await asyncio.sleep(0)
        if model_id in self.broken:
            raise ValueError(f"{model_id} is broken")
        self.loaded.append(model_id)
        self.most = max(self.most, len(self.loaded))

    async def unload(self, model_id: str) -> None:
        await asyncio.sleep(0)
        self.loaded.remove(model_id)


def residents(engine: Engine, limit: int) -> Residents:
    return Residents(limit=limit, load=engine.load, unload=engine.unload)


def test_least_recently_used_leaves_first() -> None:
    async def scenario() -> None:
        engine = Engine()
        held = residents(engine, 2)
        for model_id in ("a@v1", "b@v1", "a@v1", "c@v1"):
            async with held.hold(model_id):
                pass
        assert held.ids == ["a@v1", "c@v1"]
        assert sorted(engine.loaded) == ["a@v1", "c@v1"]

    asyncio.run(scenario())


def test_fifty_adapters_through_four_slots_under_load() -> None:
    async def scenario() -> Engine:
        engine = Engine()
        held = residents(engine, 4)

        async def request(number: int) -> None:
            model_id = f"a{number * 7 % 50}@v1"
            async with held.hold(model_id):
                await asyncio.sleep(0.0005 * (number % 3))
                assert model_id in engine.loaded

        await asyncio.gather(*(request(number) for number in range(400)))
        return engine

    assert asyncio.run(scenario()).most == 4


def test_an_adapter_in_use_is_drained_not_dropped() -> None:
    async def scenario() -> None:
        engine = Engine()
        held = residents(engine, 1)
        async with held.hold("old@v1"):
            waiting = asyncio.create_task(_use(held, "new@v1"))
            await asyncio.sleep(0.01)
            assert engine.loaded == ["old@v1"]
        await waiting
        assert engine.loaded == ["new@v1"]

    asyncio.run(scenario())


def test_nobody_waits_for_a_busy_adapter_while_an_idle_one_could_leave() -> None:
    async def scenario() -> None:
        engine = Engine()
        held = residents(engine, 3)
        async with held.hold("busy@v1"):
            for model_id in ("pinned@v1", "idle@v1"):
                await _use(held, model_id)
            held.pinned = frozenset({"pinned@v1"})
            await asyncio.wait_for(_use(held, "new@v1"), timeout=1)
            assert held.ids == ["busy@v1", "pinned@v1", "new@v1"]

    asyncio.run(scenario())


def test_one_load_serves_everyone_who_waits() -> None:
    async def scenario() -> None:
        engine = Engine()
        held = residents(engine, 2)
        await asyncio.gather(*(_use(held, "a@v1") for _ in range(20)))
        assert engine.loaded == ["a@v1"]

    asyncio.run(scenario())


def test_a_client_that_gives_up_leaves_the_busy_adapter_resident() -> None:
    async def scenario() -> None:
        engine = Engine()
        held = residents(engine, 1)
        async with held.hold("old@v1"):
            waiting = asyncio.create_task(_use(held, "new@v1"))
            await asyncio.sleep(0.01)
            waiting.cancel()
            with pytest.raises(asyncio.CancelledError):
                await waiting
            assert held.ids == ["old@v1"]
        await asyncio.wait_for(_use(held, "old@v1"), timeout=1)
        assert engine.loaded == ["old@v1"]

    asyncio.run(scenario())


def test_a_failed_load_is_the_callers_and_holds_no_slot() -> None:
    async def scenario() -> None:
        engine = Engine(broken=frozenset({"bad@v1"}))
        held = residents(engine, 1)
        with pytest.raises(ValueError, match="broken"):
            await _use(held, "bad@v1")
        await asyncio.wait_for(_use(held, "good@v1"), timeout=1)
        assert held.ids == ["good@v1"]

    asyncio.run(scenario())


def test_slots_that_are_all_pinned_are_said_to_be() -> None:
    async def scenario() -> None:
        held = residents(Engine(), 1)
        await _use(held, "pinned@v1")
        held.pinned = frozenset({"pinned@v1"})
        with pytest.raises(NoFreeSlot, match=r"all 1 slots hold pinned adapters; unpin one"):
            await _use(held, "new@v1")
        held.pinned = frozenset()
        await _use(held, "new@v1")

    asyncio.run(scenario())


async def _use(held: Residents, model_id: str) -> None:
    async with held.hold(model_id):
        await asyncio.sleep(0)
