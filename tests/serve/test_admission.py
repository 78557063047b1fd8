"""Who gets in: keys that change, limits by the minute, quotas by the day, clocks that jump."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from s3_server import s3_server

from cluster.prices import TokenPrice
from cluster.storage import Store
from serve.admit import Door
from serve.config import ServeConfig
from serve.errors import ApiError
from serve.keys import KeyFile, new_key
from serve.limits import TokenBucket
from serve.observe import Usage
from serve.quota import DailyUsage, Spent
from serve.requests import ApiRequest

PRICE = TokenPrice(1.0, 2.0, "test")


class Clock:
    def __init__(self, at: float = 0.0):
        self.at = at

    def __call__(self) -> float:
        return self.at


def request(model: str = "reconcile", **fields: Any) -> ApiRequest:
    payload = {"model": model, "messages": [{"role": "user", "content": "x" * 400}], **fields}
    return ApiRequest(model, stream=False, payload=payload)


def bearer(token: str) -> dict[str, str]:
    return {"authorization": f"Bearer {token}"}


def with_door(
    folder: Path | str,
    check: Callable[[Door], Any],
    *,
    price: TokenPrice | None = PRICE,
    **fields: Any,
) -> None:
    """Open a door on keys in `folder`, run `check`, close it as the gateway does."""

    async def run() -> None:
        door = Door(ServeConfig(keys=str(folder), keys_poll_s=0.02, **fields), price=price)
        await door.start()
        try:
            if asyncio.iscoroutine(result := check(door)):
                await result
        finally:
            await door.close()

    asyncio.run(run())


def refusal(action: Callable[[], Any]) -> ApiError:
    with pytest.raises(ApiError) as caught:
        action()
    return caught.value


def test_without_keys_everybody_gets_in_and_is_the_operator_on_loopback() -> None:
    door = Door(ServeConfig(), price=None)
    assert door.authenticate({}) is None
    assert door.require_admin({}) is None
    assert door.admit(None, request()).key is None
    exposed = Door(ServeConfig(host="0.0.0.0", allow_without_keys=True), price=None)
    assert exposed.authenticate({}) is None
    assert refusal(lambda: exposed.require_admin({})).status == 403


def test_every_wrong_key_gets_the_same_words(tmp_path: Path) -> None:
    token, key = new_key("team a")
    old, revoked = new_key("team b", revoked=True)
    for each in (key, revoked):
        KeyFile(str(tmp_path)).add(each)

    def check(door: Door) -> None:
        assert door.authenticate(bearer(token)) == key
        assert door.authenticate({"authorization": f"bearer  {token}"}) == key
        wrong = [
            {},
            bearer(""),
            bearer(token[:-1] + "~"),
            bearer(old),
            {"authorization": token},
            {"authorization": f"Basic {token}"},
            bearer("\udcff\x00"),
        ]
        errors = [refusal(lambda h=h: door.authenticate(h)) for h in wrong]  # type: ignore[misc]
        assert {json.dumps(e.body) for e in errors} == {json.dumps(errors[0].body)}
        assert errors[0].status == 401
        assert errors[0].body["error"]["code"] == "invalid_api_key"
        assert errors[0].headers["WWW-Authenticate"] == "Bearer"

    with_door(tmp_path, check)


def test_a_model_outside_the_scope_does_not_exist(tmp_path: Path) -> None:
    _, key = new_key("team a", models=["reconcile"])
    KeyFile(str(tmp_path)).add(key)

    def check(door: Door) -> None:
        door.admit(key, request("reconcile@v2"))
        error = refusal(lambda: door.admit(key, request("secret")))
        assert (error.status, error.code) == (404, "model_not_found")
        assert [m for m in ("reconcile", "secret") if door.may_see(key, m)] == ["reconcile"]

    with_door(tmp_path, check)


def test_admin_is_a_flag_of_the_key(tmp_path: Path) -> None:
    user, plain = new_key("user")
    boss, admin = new_key("boss", admin=True)
    for key in (plain, admin):
        KeyFile(str(tmp_path)).add(key)

    def check(door: Door) -> None:
        assert door.require_admin(bearer(boss)) == admin
        assert refusal(lambda: door.require_admin(bearer(user))).status == 403
        assert refusal(lambda: door.require_admin({})).status == 401

    with_door(tmp_path, check)


def test_requests_a_minute_are_refused_with_the_time_to_wait(tmp_path: Path) -> None:
    _, key = new_key("team a", requests_per_minute=3)
    KeyFile(str(tmp_path)).add(key)

    def check(door: Door) -> None:
        left = [door.admit(key, request()).headers for _ in range(3)]
        assert left[-1]["x-ratelimit-limit-requests"] == "3"
        assert left[-1]["x-ratelimit-remaining-requests"] == "0"
        error = refusal(lambda: door.admit(key, request()))
        assert (error.status, error.code, error.kind) == (
            429, "rate_limit_exceeded", "rate_limit_requests"
        )  # fmt: skip
        assert error.body["error"]["type"] == "requests"
        assert 1 <= int(error.headers["Retry-After"]) <= 20

    with_door(tmp_path, check)


def test_tokens_a_minute_are_set_aside_and_settled_by_what_was_used(tmp_path: Path) -> None:
    _, key = new_key("team a", tokens_per_minute=1000)
    KeyFile(str(tmp_path)).add(key)

    def remaining(headers: dict[str, str]) -> int:
        return int(headers["x-ratelimit-remaining-tokens"])

    def check(door: Door) -> None:
        # 400 characters are about 100 tokens, and 700 may come.
        first = door.admit(key, request(max_tokens=700))
        assert remaining(first.headers) == pytest.approx(200, abs=5)
        assert refusal(lambda: door.admit(key, request(max_tokens=700))).kind == "rate_limit_tokens"
        first.count(Usage(prompt_tokens=90, completion_tokens=10))
        door.charge(first)
        second = door.admit(key, request(max_tokens=700))
        assert remaining(second.headers) == pytest.approx(100, abs=5)
        door.charge(second)  # it got no answer
        assert remaining(door.admit(key, request(max_tokens=1)).headers) > 700
        # More than a minute's worth is let in when nothing else is.
        _, fresh = new_key("team b", tokens_per_minute=1000)
        whole = door.admit(fresh, request(max_tokens=900_000))
        assert remaining(whole.headers) == 0

    with_door(tmp_path, check)


def test_the_daily_quota_counts_real_usage_and_survives_a_restart(tmp_path: Path) -> None:
    _, key = new_key("team a", tokens_per_day=1000)
    KeyFile(str(tmp_path)).add(key)

    def use(door: Door) -> None:
        admitted = door.admit(key, request())
        admitted.count(Usage(prompt_tokens=500, completion_tokens=100))
        door.charge(admitted)
        door.charge(admitted)  # counts once

    def check_last(door: Door) -> None:
        error = refusal(lambda: door.admit(key, request()))
        assert (error.status, error.code) == (429, "insufficient_quota")
        assert error.body["error"]["type"] == "insufficient_quota"
        assert 1 <= int(error.headers["Retry-After"]) <= 86_400

    with_door(tmp_path, use)
    with_door(tmp_path, use)
    with_door(tmp_path, check_last)


@pytest.mark.parametrize(
    ("limit", "kind"),
    [({"tokens_per_day": 1000}, "quota_tokens"), ({"usd_per_day": 0.002}, "quota_usd")],
)
def test_requests_under_way_count_by_what_they_may_use(
    tmp_path: Path, limit: dict[str, Any], kind: str
) -> None:
    _, key = new_key("team a", **limit)
    KeyFile(str(tmp_path)).add(key)

    def check(door: Door) -> None:
        # 400 characters are about 100 tokens, and 500 may come: 600 tokens, 0.0011 dollars.
        under_way = [door.admit(key, request(max_tokens=500)) for _ in range(2)]
        error = refusal(lambda: door.admit(key, request(max_tokens=500)))
        assert (error.status, error.kind, error.code) == (429, kind, "rate_limit_exceeded")
        assert "under way" in error.message
        assert error.headers["Retry-After"] == "1"
        for each in under_way:
            each.count(Usage(prompt_tokens=90, completion_tokens=10))
            door.charge(each)
            door.charge(each)  # is released once
        for _ in range(2):
            # No more can be generated than the model's length.
            door.charge(door.admit(key, request(max_tokens=900_000)))
        used_up = door.admit(key, request())
        used_up.count(Usage(prompt_tokens=1000, completion_tokens=1000))
        door.charge(used_up)
        assert refusal(lambda: door.admit(key, request())).code == "insufficient_quota"

    with_door(tmp_path, check)


@pytest.mark.slow
def test_keys_and_usage_on_an_object_store(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    token, key = new_key("team a", tokens_per_day=1000)

    def use(door: Door) -> None:
        admitted = door.admit(door.authenticate(bearer(token)), request())
        admitted.count(Usage(prompt_tokens=1000))
        door.charge(admitted)

    with s3_server() as server:
        uri = f"s3://bucket/keys?{server.query}"
        KeyFile(uri).add(key)
        with_door(uri, use)
        assert [name for name in server.objects if name.startswith("bucket/keys/usage/20")]
        with_door(uri, lambda door: refusal(lambda: use(door)))


def test_dollars_are_counted_by_the_price_and_refused_without_one(tmp_path: Path) -> None:
    _, key = new_key("team a", usd_per_day=0.001)
    KeyFile(str(tmp_path)).add(key)

    def check(door: Door) -> None:
        admitted = door.admit(key, request())
        # 200 tokens at 1 dollar and 400 at 2 dollars a million.
        admitted.count(Usage(prompt_tokens=200, completion_tokens=400))
        door.charge(admitted)
        assert refusal(lambda: door.admit(key, request())).kind == "quota_usd"

    with_door(tmp_path, check)
    with_door(
        tmp_path,
        lambda door: refusal(lambda: door.admit(key, request())).message.index("serve.price"),
        price=None,
    )


def test_answers_that_were_refused_and_the_teachers_dollars_are_paid_too(tmp_path: Path) -> None:
    _, key = new_key("team a", usd_per_day=0.01, tokens_per_day=1000)
    KeyFile(str(tmp_path)).add(key)

    def check(door: Door) -> None:
        repaired = door.admit(key, request())
        repaired.count(Usage(prompt_tokens=200, completion_tokens=100))
        repaired.count(Usage(prompt_tokens=300, completion_tokens=100))
        door.charge(repaired)
        taught = door.admit(key, request())
        taught.count(Usage(prompt_tokens=100, completion_tokens=50))
        taught.count_teacher(tokens=100, usd=0.009)
        door.charge(taught)
        # 950 of 1,000 tokens; 600 at 1 dollar and 250 at 2 a million are another 0.0011 dollars.
        assert refusal(lambda: door.admit(key, request())).kind == "quota_usd"

    with_door(tmp_path, check)


def test_a_client_that_leaves_early_pays_for_what_it_saw(tmp_path: Path) -> None:
    _, key = new_key("team a", tokens_per_day=150)
    KeyFile(str(tmp_path)).add(key)

    def check(door: Door) -> None:
        door.charge_left(door.admit(key, request()), num_events=60)
        assert refusal(lambda: door.admit(key, request())).kind == "quota_tokens"

    with_door(tmp_path, check)


def test_keys_are_read_again_and_a_broken_file_keeps_the_last_good(tmp_path: Path) -> None:
    token, key = new_key("team a")
    file = KeyFile(str(tmp_path))
    file.add(key)

    async def eventually(condition: Callable[[], bool]) -> None:
        async with asyncio.timeout(5):
            while not condition():
                await asyncio.sleep(0.01)

    def known(door: Door, token: str) -> bool:
        try:
            return door.authenticate(bearer(token)) is not None
        except ApiError:
            return False

    async def check(door: Door) -> None:
        assert known(door, token)
        whole = (tmp_path / "keys.json").read_bytes()
        for broken in (whole[: len(whole) // 2], b""):
            (tmp_path / "keys.json").write_bytes(broken)
            await asyncio.sleep(0.1)
            assert known(door, token)
        (tmp_path / "keys.json").unlink()
        await asyncio.sleep(0.1)
        assert known(door, token)
        (tmp_path / "keys.json").write_bytes(whole)
        another, more = new_key("team b")
        file.add(more)
        await eventually(lambda: known(door, another))
        file.revoke(key.id)
        await eventually(lambda: not known(door, token))

    with_door(tmp_path, check)


def test_no_file_of_keys_lets_nobody_in(tmp_path: Path) -> None:
    token, _ = new_key("team a")
    with_door(tmp_path, lambda door: refusal(lambda: door.authenticate(bearer(token))))


def test_a_bucket_refills_with_the_monotonic_clock_only() -> None:
    clock = Clock(100.0)
    bucket = TokenBucket(60, clock=clock)
    bucket.take(60)
    assert bucket.wait_s(1) == pytest.approx(1.0)
    clock.at = 90.0  # cannot happen; if it does, nothing is handed out twice
    assert bucket.level == 0
    clock.at = 100.0
    assert bucket.level == pytest.approx(10)  # ten seconds did pass since 90
    clock.at = 10_000.0
    assert bucket.level == 60
    bucket.take(90)
    assert bucket.wait_s(1) == pytest.approx(31.0)


def test_a_jumping_clock_opens_no_day_twice(tmp_path: Path) -> None:
    clock = Clock(1_000_000.0)
    usage = DailyUsage(Store(tmp_path), now=clock)
    usage.add("k", Spent(tokens=10))
    today = clock.at
    clock.at += 86_400  # forward: tomorrow's quota opens early, once
    assert usage.spent("k").tokens == 0
    usage.add("k", Spent(tokens=7))
    clock.at = today  # back: today's is where it was
    assert usage.spent("k").tokens == 10
    asyncio.run(usage.sync())
    clock.at += 86_400  # tomorrow comes: what was used early counts, after a restart too
    assert usage.spent("k").tokens == 7
    again = DailyUsage(Store(tmp_path), now=clock)
    asyncio.run(again.sync())
    assert again.spent("k").tokens == 7
    assert 0 < again.seconds_left() <= 86_400


def test_two_gateways_add_up_and_a_store_that_is_away_costs_no_answer(tmp_path: Path) -> None:
    one, two = (DailyUsage(Store(tmp_path / "usage")) for _ in range(2))
    one.add("k", Spent(requests=1, tokens=10, usd=0.5))
    two.add("k", Spent(requests=1, tokens=5))

    async def exchange() -> None:
        for usage in (one, two, one):
            await usage.sync()

    asyncio.run(exchange())
    assert one.spent("k") == two.spent("k") == Spent(requests=2, tokens=15, usd=0.5)
    (tmp_path / "file").write_text("")
    away = DailyUsage(Store(tmp_path / "file" / "usage"))
    away.add("k", Spent(tokens=3))
    asyncio.run(away.sync())
    assert away.spent("k").tokens == 3
