"""Which model a client may ask for, and which immutable version answers: the gateway's allow-list.

A name from a client is only ever looked up here. It becomes part of no path and no log format.
"""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from cluster.registry import Split
from serve.errors import ApiError, not_ready, refused_model, unknown_model

DEFAULT_ALIAS = "prod"
VERSION = re.compile(r"v([0-9]{1,9})")
REFUSED_S = 30.0
"""A version that was not loaded may be asked for again after this: what was wrong may be over."""


class NotLoaded(NamedTuple):
    """Why a replica did not load a version."""

    reason: str
    passes: bool = False
    """Whether that may be over, or other on another replica, at any moment."""


@dataclass(frozen=True, slots=True)
class Target:
    """What answers: the bare base (`model_id` None) or one immutable adapter version."""

    served_name: str
    """`reconcile@v3`, or the base model's name: the answer's `x-distillery-model`."""
    model_id: str | None
    adapter: str
    version: str

    @property
    def labels(self) -> dict[str, str]:
        """Metric labels."""
        return {"adapter": self.adapter, "version": self.version}


@dataclass(frozen=True, slots=True)
class Alias:
    """`reconcile` under `prod`."""

    name: str
    alias: str

    @property
    def shown(self) -> str:
        """The name a client asks for."""
        return self.name if self.alias == DEFAULT_ALIAS else f"{self.name}@{self.alias}"


@dataclass(frozen=True, slots=True)
class Routed:
    """Where one request goes."""

    target: Target
    alias: Alias | None = None
    """The alias it was asked by, if it was."""
    split: Split | None = None
    """The second version behind that alias, live on every replica."""

    @property
    def is_second(self) -> bool:
        """Whether the split's version answers."""
        return self.split is not None and self.target.version == f"v{self.split.version}"


class RouteTable:
    """Known versions, where the aliases should point, and where they do point.

    Read by requests and written by the watcher in the same event loop, so a request sees an alias
    before a swap or after it, never between.
    """

    def __init__(self, base_name: str, *, clock: Callable[[], float] = time.monotonic):
        """`clock` returns seconds that never go back."""
        self._clock = clock
        self.base = Target(base_name, None, "base", "-")
        self.known: dict[str, dict[int, int]] = {}
        """Name → version → creation time (Unix seconds)."""
        self.wanted: dict[Alias, int] = {}
        """Where the registry says each alias points."""
        self.live: dict[Alias, int] = {}
        """Where requests go: a version is here only after every replica confirmed it."""
        self.wanted_splits: dict[Alias, Split] = {}
        """Where the registry wants a second version."""
        self.splits: dict[Alias, Split] = {}
        """Second versions that every replica has confirmed."""
        self.ended_splits: dict[Alias, Split] = {}
        """What ended here, and may still stand in the registry."""
        self._refused: dict[str, tuple[NotLoaded, float]] = {}
        self.unconfirmed: set[str] = set()
        """Wanted versions that nobody could confirm, because no replica runs."""
        self._targets: dict[str, Target] = {}

    def route(
        self, model: str, *, user: str = "", key_id: str = "", request_id: str = ""
    ) -> Routed:
        """Return what answers `model` (`name`, `name@alias`, `name@v2`, the base) or ApiError.

        Behind an alias with a canary or an A/B test, `user` always gets the same version. Without
        one an API key does in an A/B test; a canary has to see its share of the requests, and all
        may come with one key.
        """
        target = self.resolve(model)
        alias = self._alias(model)
        if alias is None:
            return Routed(target)
        split = self.splits.get(alias)
        if split is None or split.mode == "shadow":
            return Routed(target, alias, split)
        asker = user or (key_id if split.mode == "ab" else "") or request_id
        if not chosen(alias, split, asker):
            return Routed(target, alias, split)
        return Routed(self.target(alias.name, split.version), alias, split)

    def refuse(self, model_id: str, why: NotLoaded) -> None:
        """Remember for a while that a version could not be loaded."""
        self._refused[model_id] = why, self._clock() + REFUSED_S

    def accept(self, model_id: str) -> None:
        """Forget that: it is loaded."""
        self._refused.pop(model_id, None)

    def refusal(self, model_id: str) -> NotLoaded | None:
        """Why a version is not served, as far as that is known and not too long ago."""
        why, until = self._refused.get(model_id, (None, 0.0))
        return why if self._clock() < until else None

    def refusals(self) -> dict[str, str]:
        """Model id → why it is not served."""
        found = {model_id: self.refusal(model_id) for model_id in self._refused}
        return {model_id: why.reason for model_id, why in found.items() if why is not None}

    def _refused_for(self, model_id: str) -> str | None:
        """Why nobody need ask for it; what may pass is left to the replicas."""
        why = self.refusal(model_id)
        return None if why is None or why.passes else why.reason

    def end_split(self, alias: Alias, split: Split) -> None:
        """Take a second version out of the routes, whatever the registry says of it from now on."""
        self.ended_splits[alias] = split
        self.splits.pop(alias, None)
        self.wanted_splits.pop(alias, None)

    def want_splits(self, found: dict[Alias, Split]) -> None:
        """Take over what the registry says, without what has ended here."""
        self.ended_splits = {
            alias: split for alias, split in self.ended_splits.items() if found.get(alias) == split
        }
        self.wanted_splits = {
            alias: split for alias, split in found.items() if alias not in self.ended_splits
        }

    def _alias(self, model: str) -> Alias | None:
        name, _, pointer = model.partition("@")
        if model == self.base.served_name or VERSION.fullmatch(pointer):
            return None
        return Alias(name, pointer or DEFAULT_ALIAS)

    def resolve(self, model: str) -> Target:
        """Like `route`, for the alias's own version."""
        if model == self.base.served_name:
            return self.base
        name, at, pointer = model.partition("@")
        versions = self.known.get(name)
        if versions is None or (at and not pointer):
            raise unknown_model(model)
        if match := VERSION.fullmatch(pointer):
            version = int(match[1])
            if version not in versions or pointer != f"v{version}":
                raise unknown_model(model)
            if reason := self._refused_for(model):
                raise refused_model(model, reason=reason)
            return self.target(name, version)
        alias = Alias(name, pointer or DEFAULT_ALIAS)
        if (answering := self._version(alias)) is not None:
            return self.target(name, answering)
        raise self._no_live_version(model, alias)

    def _version(self, alias: Alias) -> int | None:
        """The live version; where no replica runs the wanted one.

        The request then starts a replica, which checks what it loads.
        """
        wanted = self.wanted.get(alias)
        model_id = f"{alias.name}@v{wanted}"
        if model_id in self.unconfirmed and not self._refused_for(model_id):
            return wanted
        return self.live.get(alias)

    def _no_live_version(self, model: str, alias: Alias) -> ApiError:
        wanted = self.wanted.get(alias)
        if wanted is None:
            return unknown_model(model)
        why = self.refusal(f"{alias.name}@v{wanted}")
        reason = why.reason if why is not None else "it is still being loaded"
        return not_ready(
            f"The model {alias.shown!r} points at version v{wanted}, which no replica serves: "
            f"{reason}"
        )

    def target(self, name: str, version: int) -> Target:
        """Return the target of a version, made once."""
        model_id = f"{name}@v{version}"
        target = self._targets.get(model_id)
        if target is None:
            target = self._targets[model_id] = Target(model_id, model_id, name, f"v{version}")
        return target

    def cards(self, *, created: int) -> Iterator[dict[str, Any]]:
        """Yield `/v1/models` entries: the base, aliases that answer, versions not refused."""
        base = self.base.served_name
        yield _card(base, created=created, root=base, parent=None)
        for alias in sorted(self.live | self.wanted, key=lambda alias: alias.shown):
            version = self._version(alias)
            if version is None:
                continue
            root = f"{alias.name}@v{version}"
            made = self.known.get(alias.name, {}).get(version, created)
            yield _card(alias.shown, created=made, root=root, parent=base)
        for name, versions in sorted(self.known.items()):
            for version, made in sorted(versions.items()):
                model_id = f"{name}@v{version}"
                if not self._refused_for(model_id):
                    yield _card(model_id, created=made, root=model_id, parent=base)


def chosen(alias: Alias, split: Split, asker: str) -> bool:
    """Whether `asker` belongs to the share that gets the split's version.

    By a digest of asker and split: sticky, even over askers, and independent between splits.
    """
    text = f"{alias.name}@{alias.alias}:{split.version}:{split.since}:{asker}"
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest) < split.weight * 2**64


def _card(model: str, *, created: int, root: str, parent: str | None) -> dict[str, Any]:
    return {
        "id": model,
        "object": "model",
        "created": created,
        "owned_by": "distillery",
        "root": root,
        "parent": parent,
    }
