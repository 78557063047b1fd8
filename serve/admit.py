"""Who may ask what, and how much: API keys, their scopes, limits and daily quotas."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field

from cluster.prices import TokenPrice, api_price
from cluster.storage import Store
from serve.config import ServeConfig
from serve.errors import (
    forbidden,
    quota_held,
    quota_used_up,
    rate_limited,
    unauthorized,
    unknown_model,
)
from serve.keys import Key, KeyFile, Keyring, parse_keys
from serve.limits import KeyLimits
from serve.observe import Usage
from serve.quota import DailyUsage, Spent
from serve.requests import ApiRequest

log = logging.getLogger("ray.serve")

CHARS_PER_TOKEN = 4
"""OpenAI's rule of thumb for English; an estimate only until the engine has counted."""


def price_of(config: ServeConfig, base_name: str) -> TokenPrice | None:
    """What a token costs: `serve.price`, or the list price of the base model's name if known."""
    if config.price is None:
        return api_price(base_name) if config.keys else None
    given = config.price
    return TokenPrice(given.input_usd_per_mtok, given.output_usd_per_mtok, "serve.price")


@dataclass(slots=True)
class Admission:
    """One request that was let in: what was set aside for it until its real usage is known."""

    key: Key | None = None
    prompt_tokens: int = 0
    """Estimated; charged when a client leaves before the engine has said its count."""
    reserved_tokens: int = 0
    """Taken from the minute's limit."""
    held: Spent = field(default_factory=Spent)
    """Most that it may use, held back from the day's quota."""
    headers: dict[str, str] = field(default_factory=dict)
    settled: bool = False
    used: Usage = field(default_factory=Usage)
    """Tokens of all answers that replicas gave for it, those that were refused included."""
    teacher_tokens: int = 0
    teacher_usd: float = 0.0

    def count(self, usage: Usage) -> None:
        """Count a replica's answer."""
        self.used.prompt_tokens += usage.prompt_tokens
        self.used.completion_tokens += usage.completion_tokens

    def count_teacher(self, *, tokens: int, usd: float) -> None:
        """Count what a teacher was paid in its place."""
        self.teacher_tokens += tokens
        self.teacher_usd += usd

    @property
    def key_id(self) -> str:
        """The key's public id, or nothing without keys."""
        return self.key.id if self.key else ""


class Door:
    """Checks every request of one gateway process; without `serve.keys` it is open."""

    def __init__(self, config: ServeConfig, *, price: TokenPrice | None):
        self._config = config
        self._price = price
        self._ring = Keyring()
        self._limits: dict[str, KeyLimits] = {}
        self._held: dict[str, Spent] = {}
        self._file: KeyFile | None = None
        self._usage: DailyUsage | None = None
        if config.keys:
            self._file = KeyFile(config.keys)
            apart = config.key_usage
            self._usage = DailyUsage(Store(apart) if apart else Store(config.keys) / "usage")
        self._read: bytes | None = None
        self._problem: str | None = None
        self._following: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Read keys and today's usage, then follow both."""
        if self._file is None:
            return
        await self._poll()
        self._following = asyncio.create_task(self._follow())

    async def close(self) -> None:
        """Stop following and write what was counted."""
        if self._following is not None:
            self._following.cancel()
            with suppress(asyncio.CancelledError):
                await self._following
        if self._usage is not None:
            await self._usage.sync()

    def authenticate(self, headers: Mapping[str, str]) -> Key | None:
        """Return the caller's key, `None` when no keys are used; ApiError (401) otherwise."""
        if self._file is None:
            return None
        scheme, _, token = headers.get("authorization", "").partition(" ")
        key = self._ring.find(token.strip()) if scheme.lower() == "bearer" else None
        if key is None:
            raise unauthorized()
        return key

    def require_admin(self, headers: Mapping[str, str]) -> Key | None:
        """Like `authenticate`, for what changes the server (403 without the admin flag).

        Without keys whoever reaches a loopback address is the operator, anybody else is not.
        """
        key = self.authenticate(headers)
        allowed = key.admin if key else self._config.is_loopback
        if not allowed:
            raise forbidden("This needs an API key that was created with --admin.")
        return key

    def may_see(self, key: Key | None, model: str) -> bool:
        """Whether a model is listed for this caller."""
        return key is None or key.may_use(model)

    def admit(self, key: Key | None, request: ApiRequest) -> Admission:
        """Let a request in or raise ApiError: 404 outside the key's scope, 429 over a limit."""
        if key is None:
            return Admission()
        if not key.may_use(request.model):
            raise unknown_model(request.model)
        prompt_tokens = -(-request.prompt_chars // CHARS_PER_TOKEN)
        most = self._most(request, prompt_tokens=prompt_tokens)
        limits = self._limits_of(key)
        reserved = 0
        if limits.tokens is not None:
            reserved = min(most.tokens, int(limits.tokens.per_minute))
            if wait_s := limits.tokens.wait_s(reserved):
                limit = limits.tokens.per_minute
                raise rate_limited("tokens", limit=limit, wait_s=wait_s)
        if limits.requests is not None and (wait_s := limits.requests.wait_s(1)):
            raise rate_limited("requests", limit=limits.requests.per_minute, wait_s=wait_s)
        self._check_quota(key)
        if limits.requests is not None:
            limits.requests.take(1)
        if limits.tokens is not None:
            limits.tokens.take(reserved)
        self._held.setdefault(key.id, Spent()).add(most)
        return Admission(
            key=key,
            prompt_tokens=prompt_tokens,
            reserved_tokens=reserved,
            held=most,
            headers=limits.headers(),
        )

    def charge(self, admission: Admission) -> None:
        """Count what a request used, whatever became of it; what was set aside is given back."""
        used = admission.used
        usd = admission.teacher_usd
        if self._price is not None:
            usd += self._price.request_usd(
                prompt_tokens=used.prompt_tokens, completion_tokens=used.completion_tokens
            )
        tokens = used.prompt_tokens + used.completion_tokens + admission.teacher_tokens
        self._settle(admission, Spent(requests=1, tokens=tokens, usd=usd))

    def charge_left(self, admission: Admission, *, num_events: int) -> None:
        """Count a request whose client left: its prompt, estimated, and a token a streamed event.

        The engine's own count is lost with the answer, and leaving early must not be free.
        """
        admission.count(Usage(prompt_tokens=admission.prompt_tokens, completion_tokens=num_events))
        self.charge(admission)

    def _settle(self, admission: Admission, spent: Spent) -> None:
        if admission.key is None or admission.settled:
            return
        admission.settled = True
        limits = self._limits_of(admission.key)
        if limits.tokens is not None:
            limits.tokens.take(spent.tokens - admission.reserved_tokens)
        self._release(admission.key, admission.held)
        if self._usage is not None:
            self._usage.add(admission.key.id, spent)

    def _most(self, request: ApiRequest, *, prompt_tokens: int) -> Spent:
        """What a request may use at most, its prompt estimated."""
        longest = self._config.max_model_len
        completion_tokens = min(request.max_tokens or longest, longest) * request.choices
        usd = 0.0
        if self._price is not None:
            usd = self._price.request_usd(
                prompt_tokens=prompt_tokens, completion_tokens=completion_tokens
            )
        return Spent(requests=1, tokens=prompt_tokens + completion_tokens, usd=usd)

    def _release(self, key: Key, held: Spent) -> None:
        left = self._held[key.id]
        left.add(Spent(-held.requests, -held.tokens, -held.usd))
        if not left.requests:
            # Nor does anything remain of rounding.
            del self._held[key.id]

    def _check_quota(self, key: Key) -> None:
        """Refuse once the day is used up, by requests under way too: one may pass it, not many."""
        if self._usage is None or (key.tokens_per_day is None and key.usd_per_day is None):
            return
        spent = self._usage.spent(key.id)
        held = self._held.get(key.id, Spent())
        wait_s = self._usage.seconds_left()
        if key.usd_per_day is not None and self._price is None:
            # Fail closed: a limit that cannot be counted must not be taken for none.
            raise quota_used_up(
                "it is in dollars and the server has no price to count by (serve.price).",
                kind="quota_usd",
                wait_s=wait_s,
            )
        for limit, unit, kind, used, under_way in (
            (key.tokens_per_day, "tokens", "quota_tokens", spent.tokens, held.tokens),
            (key.usd_per_day, "dollars", "quota_usd", spent.usd, held.usd),
        ):
            if limit is None or used + under_way < limit:
                continue
            what = f"{limit:.12g} {unit} a day."
            if used >= limit:
                raise quota_used_up(what, kind=kind, wait_s=wait_s)
            raise quota_held(what, kind=kind)

    def _limits_of(self, key: Key) -> KeyLimits:
        limits = self._limits.get(key.id)
        if limits is None or limits.of != (key.requests_per_minute, key.tokens_per_minute):
            limits = self._limits[key.id] = KeyLimits(key)
        return limits

    async def _follow(self) -> None:
        while True:
            await asyncio.sleep(self._config.keys_poll_s)
            await self._poll()

    async def _poll(self) -> None:
        """Read the keys again if they changed; a vanished or broken file keeps the last good."""
        assert self._file is not None
        assert self._usage is not None
        try:
            data = await asyncio.to_thread(self._file.read_bytes)
            if data != self._read:
                self._ring = Keyring(parse_keys(data))
                self._read = data
                log.info("%d API keys", len(self._ring.keys))
            problem = None
        except Exception as error:
            problem = f"{type(error).__name__}: {error}"
            if problem != self._problem:
                known = len(self._ring.keys)
                log.error("API keys cannot be read, going on with the last %d: %s", known, problem)
        self._problem = problem
        await self._usage.sync()
