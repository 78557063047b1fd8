"""What an operator may do to a running gateway, over HTTP: the same as `distillery adapters`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Literal

from pydantic import Field, ValidationError

from cluster.config import StrictModel
from cluster.errors import RegistryError
from cluster.registry import CanaryBounds, Registry, Split
from serve.adapters import split_id
from serve.engine_errors import explain_validation_error
from serve.errors import ApiError, bad_request
from serve.routes import DEFAULT_ALIAS
from serve.split.running import Splits
from serve.watcher import RegistryWatcher

OnEveryReplica = Callable[..., Awaitable[list[Any]]]


class AdminRequest(StrictModel):
    """Body of `POST /admin/adapters/{action}`."""

    name: str = Field(min_length=1, max_length=64)
    """Name of the adapter."""
    version: int | None = Field(default=None, ge=1)
    """Version, where the action needs one."""
    alias: str = DEFAULT_ALIAS
    """Alias to act on."""
    seen: int | None = Field(default=None, ge=1)
    """Of `promote`: only if the alias is at this version."""
    mode: Literal["canary", "ab", "shadow"] = "canary"
    """Of `canary`."""
    weight: float = Field(default=0.1, gt=0, le=1)
    """Of `canary`: its share."""
    bounds: CanaryBounds = CanaryBounds()
    """Of `canary`."""
    promote: bool = False
    """Of `end`: whether the alias goes to the version that was tried."""


class Admin:
    """Reads and moves; every move is kept in the registry with who made it."""

    def __init__(
        self,
        registry: Registry,
        *,
        watcher: RegistryWatcher,
        splits: Splits,
        everywhere: OnEveryReplica,
    ):
        """`everywhere(method, *arguments)` calls a method of every replica."""
        self._registry = registry
        self._watcher = watcher
        self._splits = splits
        self._everywhere = everywhere
        self._acts: dict[str, Callable[[AdminRequest, str], Any]] = {
            "promote": self._promote,
            "rollback": self._rollback,
            "canary": self._canary,
            "end": self._end,
            "pin": self._pin,
            "unpin": self._unpin,
        }

    async def act(self, action: str, body: Any, *, by: str) -> dict[str, Any]:
        """Carry an action out and return what it did.

        ApiError: 404 for an unknown action, 400 for a body that is not understood, 409 for a move
        that the registry does not allow.
        """
        if action != "unload" and action not in self._acts:
            known = ", ".join(sorted([*self._acts, "unload"]))
            raise ApiError(
                f"There is no action {action[:64]!r}; there are {known}.",
                status=404,
                kind="bad_request",
            )
        try:
            asked = AdminRequest.model_validate(body)
        except ValidationError as error:
            raise explain_validation_error(error) from None
        try:
            if action == "unload":
                done: Any = await self._unload(asked)
            else:
                done = await asyncio.to_thread(self._acts[action], asked, by)
        except RegistryError as error:
            message = str(error).replace(self._registry.store.uri, "the registry")
            raise ApiError(message, status=409, kind="bad_request", code="conflict") from None
        await self._watcher.refresh(max_age_s=0.0)
        return {"action": action, "name": asked.name, "alias": asked.alias, "result": done}

    async def status(self) -> dict[str, Any]:
        """Everything an operator looks at: adapters, aliases, splits, what each replica holds."""
        adapters = await asyncio.to_thread(self._adapters)
        return {
            "adapters": adapters,
            "serving": self._watcher.status(),
            "splits": self._splits.status(),
            "resident": await self._everywhere("resident_adapters"),
        }

    def _adapters(self) -> list[dict[str, Any]]:
        found = []
        for name in self._registry.names():
            aliases = self._registry.aliases(name)
            found.append(
                {
                    "name": name,
                    "aliases": aliases,
                    "pins": self._registry.pins(name),
                    "history": {
                        alias: self._registry.history(name, alias)[-20:] for alias in aliases
                    },
                    "versions": [self._version(name, v) for v in self._registry.versions(name)],
                }
            )
        return found

    def _version(self, name: str, version: int) -> dict[str, Any]:
        try:
            manifest = self._registry.manifest(name, version)
        except RegistryError:
            return {"version": version, "problem": "its manifest cannot be read"}
        return manifest.model_dump(
            include={"version", "base_model", "rank", "gates", "created_at", "teacher"}
        )

    def _promote(self, asked: AdminRequest, by: str) -> int | None:
        version = _version_of(asked)
        at = asked.seen or self._registry.aliases(asked.name).get(asked.alias)
        return self._registry.promote(asked.name, version, alias=asked.alias, by=by, seen=at)

    def _rollback(self, asked: AdminRequest, by: str) -> int:
        return self._registry.rollback(asked.name, alias=asked.alias, by=by)

    def _canary(self, asked: AdminRequest, by: str) -> dict[str, Any]:
        split = Split(
            version=_version_of(asked), mode=asked.mode, weight=asked.weight, bounds=asked.bounds
        )
        return self._registry.start_split(asked.name, split, alias=asked.alias, by=by).model_dump()

    def _end(self, asked: AdminRequest, by: str) -> dict[str, Any]:
        return self._registry.end_split(
            asked.name, alias=asked.alias, promote=asked.promote, by=by
        ).model_dump()

    def _pin(self, asked: AdminRequest, by: str) -> list[int]:
        self._registry.pin(asked.name, _version_of(asked))
        return self._registry.pins(asked.name)

    def _unpin(self, asked: AdminRequest, by: str) -> list[int]:
        self._registry.pin(asked.name, _version_of(asked), pinned=False)
        return self._registry.pins(asked.name)

    async def _unload(self, asked: AdminRequest) -> int:
        """Return how many replicas had it."""
        model_id = f"{asked.name}@v{_version_of(asked)}"
        split_id(model_id)
        return sum(await self._everywhere("unload_adapter", model_id))


def _version_of(asked: AdminRequest) -> int:
    if asked.version is None:
        raise bad_request("version: this action needs one", param="version", code="invalid_value")
    return asked.version
