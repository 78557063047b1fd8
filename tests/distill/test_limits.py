"""One limit for all workers: shares, back-off, growth, rates; and the gate in front of requests."""

import asyncio
import random
import time

import pytest

from distill.teach.limits import Gate, Limits, Report, Share, SharedLimit


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def shared(**limits):
    clock = Clock()
    return SharedLimit(Limits(**limits), clock=clock), clock


def test_workers_share_the_concurrency_by_what_they_need():
    limit, _ = shared(concurrency=10)
    limit.sync("a", Report(demand=2))
    limit.sync("b", Report(demand=50))
    limit.sync("c", Report(demand=50))
    shares = {
        name: limit.sync(name, Report(demand=demand)).concurrency
        for name, demand in (("a", 2), ("b", 50), ("c", 50))
    }
    assert shares == {"a": 2, "b": 4, "c": 4}


def test_a_worker_that_is_gone_leaves_its_share_to_the_others():
    limit, clock = shared(concurrency=10)
    limit.sync("dead", Report(demand=50))
    # It may still have ten in flight.
    assert limit.sync("a", Report(demand=50)).concurrency == 0
    clock.now = 20
    assert limit.sync("a", Report(demand=50)).concurrency == 10


def test_workers_that_begin_one_after_the_other_never_have_more_in_flight_than_allowed():
    limit, clock = shared(concurrency=12)
    in_flight = {"a": 0, "b": 0, "c": 0}
    for tick in range(30):
        clock.now += 0.25
        for name in list(in_flight)[: 1 + tick // 3]:
            share = limit.sync(name, Report(demand=50, in_flight=in_flight[name]))
            # Of those in flight one ends, and the share is used up.
            in_flight[name] = max(in_flight[name] - 1, share.concurrency)
            assert sum(in_flight.values()) <= 12
    assert in_flight == {"a": 4, "b": 4, "c": 4}


def test_the_first_worker_does_not_get_what_is_for_all_of_them():
    limit, clock = shared(concurrency=256)
    for worker in "abcd":
        limit.configure(limit.limits, workers=4)
        clock.now += 3
        assert limit.sync(worker, Report(demand=256)).concurrency == 64
    # Those that never come are not waited for.
    limit, clock = shared(concurrency=256)
    limit.configure(limit.limits, workers=4)
    assert limit.sync("a", Report(demand=256)).concurrency == 64
    clock.now += 31
    assert limit.sync("a", Report(demand=256, in_flight=64)).concurrency == 256


def test_refusals_shrink_it_pause_it_and_answers_let_it_grow_back():
    limit, clock = shared(concurrency=100)
    clock.now = 1.5
    share = limit.sync("a", Report(started=100, throttled=80, demand=200, retry_after_s=3))
    assert (share.concurrency, share.pause_s, share.requests) == (60, 3, 0)
    clock.now = 5
    assert limit.sync("a", Report(started=60, demand=200)).concurrency == 70
    for second in range(6, 20):
        clock.now = second
        share = limit.sync("a", Report(started=60, demand=200))
    assert share.concurrency == 100


def test_a_refusal_now_and_then_slows_nothing_down():
    limit, clock = shared(concurrency=100)
    for second in range(1, 30):
        clock.now = second
        share = limit.sync("a", Report(started=100, throttled=5, demand=200))
    assert (share.concurrency, share.pause_s) == (100, 0)


def test_refusals_between_two_waves_of_answers_are_measured_by_what_was_sent():
    """Refusals come at once, answers two seconds later: most windows see only one of the two."""
    limit, clock = shared(concurrency=256)
    for second in range(1, 20, 2):
        clock.now = second
        limit.sync("a", Report(started=256, throttled=13, demand=500))
        clock.now = second + 1
        share = limit.sync("a", Report(started=13, throttled=1, demand=500))
    assert share.concurrency == 256


def test_refusals_that_a_busy_client_reads_late_are_measured_by_what_was_in_flight():
    limit, clock = shared(concurrency=256)
    clock.now = 1.5
    limit.sync("a", Report(started=256, demand=500, in_flight=256))
    clock.now = 7
    share = limit.sync("a", Report(started=20, throttled=13, demand=500, in_flight=250))
    assert (share.concurrency, share.pause_s) == (256, 0)
    # Refused are nearly all of few: that is a provider that takes no more.
    clock.now = 8.5
    share = limit.sync("a", Report(started=40, throttled=260, demand=500, in_flight=20))
    assert share.concurrency < 150


@pytest.mark.parametrize(("field", "rate"), [("requests", 120), ("tokens", 6_000)])
def test_a_rate_a_minute_is_kept_over_all_workers(field, rate):
    limit, clock = shared(concurrency=1000, **{f"{field}_per_minute": rate})
    draw = random.Random(1)
    used = 0.0
    left = {name: 0.0 for name in "abc"}
    while clock.now < 60:
        clock.now += 0.25
        for name in "abc":
            share = limit.sync(name, Report(demand=100, **{f"{field}_left": left[name]}))
            granted = getattr(share, field)
            taken = granted if draw.random() < 0.8 else 0.0
            used += taken
            left[name] = granted - taken
    # A minute's rate, and at most the burst of two seconds on top.
    assert 0.9 * rate <= used <= rate * (62 / 60) + 1


def test_the_gate_keeps_to_its_share_and_reports_what_came_of_it():
    async def run():
        limit = SharedLimit(Limits(concurrency=5))
        reports = []

        async def sync(report):
            reports.append(report)
            return limit.sync("me", report)

        running = most = 0

        async def request(gate):
            nonlocal running, most
            async with gate.slot(tokens=10) as slot:
                running += 1
                most = max(most, running)
                await asyncio.sleep(0.01)
                slot.tokens = 14
                running -= 1

        async with Gate(sync, interval_s=0.02) as gate:
            await asyncio.gather(*(request(gate) for _ in range(50)))
        return most, reports

    most, reports = asyncio.run(run())
    assert most == 5
    assert sum(report.started for report in reports) == 50
    assert sum(report.tokens for report in reports) == 50 * 4
    assert reports[-1].demand == 0


def test_nobody_is_overtaken_at_the_gate():
    async def run():
        limit = SharedLimit(Limits(concurrency=3))
        came, begun = [], []

        async def sync(report):
            return limit.sync("me", report)

        async def request(gate, number):
            came.append(number)
            async with gate.slot():
                begun.append(number)
                await asyncio.sleep(0.002)
            if number < 100:
                await request(gate, number + 100)

        async with Gate(sync, interval_s=0.01) as gate:
            await asyncio.gather(*(request(gate, number) for number in range(30)))
        return came, begun

    came, begun = asyncio.run(run())
    assert len(begun) == 60
    assert begun == came


def test_a_limit_that_is_lost_is_an_error_and_no_endless_wait():
    async def run():
        async def sync(report):
            raise ConnectionError("the limit's actor died")

        found = []
        async with Gate(sync, interval_s=0.01) as gate:
            for _ in range(2):  # who waits when it is lost, and who comes later
                with pytest.raises(ConnectionError, match="actor died"):
                    async with gate.slot():
                        found.append("begun")
        return found

    assert asyncio.run(run()) == []


def test_who_was_refused_goes_before_those_who_never_asked():
    async def run():
        async def sync(report):
            return Share(1)

        order = []
        async with Gate(sync, interval_s=0.01) as gate:

            async def ask(name, *, again=False):
                async with gate.slot(again=again):
                    order.append(name)
                    await asyncio.sleep(0)

            waiting = [asyncio.create_task(ask(name)) for name in ("first", "second")]
            waiting.append(asyncio.create_task(ask("refused before", again=True)))
            await asyncio.gather(*waiting)
        return order

    assert asyncio.run(run()) == ["first", "refused before", "second"]


def test_who_stops_waiting_at_the_gate_leaves_his_turn_to_the_next():
    async def run():
        limit = SharedLimit(Limits(concurrency=1))
        begun = []

        async def sync(report):
            return limit.sync("me", report)

        async def request(gate, number):
            async with gate.slot():
                begun.append(number)
                await asyncio.sleep(0.03)

        async with Gate(sync, interval_s=0.01) as gate:
            tasks = [asyncio.create_task(request(gate, number)) for number in range(4)]
            await asyncio.sleep(0.02)
            tasks[1].cancel()  # waits
            tasks[0].cancel()  # has its turn
            await asyncio.gather(*tasks, return_exceptions=True)
        return begun

    assert asyncio.run(run()) == [0, 2, 3]


def test_requests_that_began_together_do_not_stay_together():
    async def run():
        limit = SharedLimit(Limits(concurrency=40))
        begun = []

        async def sync(report):
            return limit.sync("me", report)

        async def request(gate):
            async with gate.slot():
                begun.append(time.monotonic())
                await asyncio.sleep(0.2)

        async def undisturbed():
            started = time.monotonic()
            for _ in range(8):
                await asyncio.sleep(0.2)
            return time.monotonic() - started

        async with Gate(sync) as gate:
            # Beside it: how long eight requests one after the other take on this machine now.
            took, *_ = await asyncio.gather(undisturbed(), *(request(gate) for _ in range(40 * 8)))
        return begun, took

    begun, took = asyncio.run(run())
    # The last waves: 20 begin in no less than a quarter of a request's time, and none for nothing.
    late = begun[40 * 4 :]
    assert min(b - a for a, b in zip(late, late[20:], strict=False)) > 0.05
    assert begun[-1] - begun[0] < took * 2


def test_a_slow_rate_lets_requests_through_one_after_the_other():
    async def run():
        limit = SharedLimit(Limits(concurrency=50, requests_per_minute=600))

        async def sync(report):
            return limit.sync("me", report)

        async def request(gate):
            async with gate.slot():
                pass

        start = time.monotonic()
        async with Gate(sync, interval_s=0.02) as gate:
            await asyncio.gather(*(request(gate) for _ in range(30)))
        return time.monotonic() - start

    # Ten a second after a burst of twenty.
    assert 0.8 < asyncio.run(run()) < 3


def test_a_slow_answer_about_shares_holds_up_nobody_where_no_rate_is_set():
    async def run():
        limit = SharedLimit(Limits(concurrency=4))
        answered = asyncio.Event()
        answered.set()

        async def sync(report):
            await answered.wait()
            return limit.sync("me", report)

        async with Gate(sync, interval_s=0.01) as gate, gate.slot():
            async with gate.slot():
                answered.clear()
                await asyncio.sleep(0.05)  # the next report is on its way
            try:
                async with asyncio.timeout(1), gate.slot():
                    pass
            finally:
                answered.set()

    asyncio.run(run())
