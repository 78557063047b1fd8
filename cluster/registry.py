"""The adapter registry: the contract between training and serving.

    <registry>/<name>/v3/manifest.json     written last: a version without it does not exist
    <registry>/<name>/v3/adapter_config.json, adapter_model.safetensors
    <registry>/<name>/aliases.json         {"prod": {"version": 3, "history": [...]}}

Versions are immutable. An alias moves by replacing one small file and keeps its history, so a
rollback is one call.
"""

from __future__ import annotations

import fcntl
import getpass
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import RegistryError
from cluster.storage import Store, file_digest, folder_digests

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
MANIFEST = "manifest.json"


class AdapterManifest(BaseModel):
    """What an adapter is, where it came from, and what it must be served on."""

    model_config = ConfigDict(extra="forbid", protected_namespaces=())

    name: str
    version: int = 0
    base_model: str
    """Name or path of the base model, as configured."""
    base_digest: str
    """`model_digest` of the base: an adapter fits no other."""
    rank: int
    alpha: float
    target_modules: list[str]
    files: dict[str, str] = Field(default_factory=dict)
    """SHA-256 (hex) of every file, by relative path."""
    task: str
    task_digest: str
    dataset_digest: str
    teacher: str
    teacher_terms: str = ""
    """For a teacher behind an API: what the dated table said of its terms, and that the run
    accepted them."""
    train: dict[str, Any]
    gates: list[dict[str, Any]]
    created_at: str = ""

    @property
    def model_name(self) -> str:
        """The immutable name clients may ask for: `reconcile@v3`."""
        return f"{self.name}@v{self.version}"


class Registry:
    """Adapters at a URI."""

    def __init__(self, uri: str):
        """Open the registry at `uri`; an empty one is made by the first publish."""
        self.store = Store(uri)

    def names(self) -> list[str]:
        """Names that have at least one version."""
        return [name for name in self.store.names() if NAME.fullmatch(name) and self.versions(name)]

    def versions(self, name: str) -> list[int]:
        """Published version numbers, ascending."""
        _check_name(name)
        found = [re.fullmatch(r"v(\d+)", entry) for entry in self.store.names(name)]
        numbers = sorted(int(match[1]) for match in found if match)
        return [n for n in numbers if self.store.exists(f"{name}/v{n}/{MANIFEST}")]

    def manifest(self, name: str, version: int) -> AdapterManifest:
        """Read a version's manifest; an unknown version is a RegistryError that lists the known."""
        _check_name(name)
        path = f"{name}/v{version}/{MANIFEST}"
        if not self.store.exists(path):
            known = ", ".join(f"v{n}" for n in self.versions(name)) or "none"
            raise RegistryError(f"{name}@v{version} is not in {self.store.uri}; known: {known}.")
        try:
            return AdapterManifest.model_validate(self.store.read_json(path))
        except ValueError as error:
            raise RegistryError(f"{self.store.path(path)} cannot be used: {error}") from error

    def publish(self, folder: str | Path, manifest: AdapterManifest) -> AdapterManifest:
        """Copy an adapter folder in as the next version and return its manifest.

        Publishing the same files for the same base again returns the version that exists.
        """
        _check_name(manifest.name)
        files = {
            path: sha
            for path, sha in folder_digests(folder).items()
            if path in ("adapter_config.json", "adapter_model.safetensors")
        }
        if len(files) != 2:
            raise RegistryError(
                f"{folder} is no PEFT adapter: it must hold adapter_config.json and "
                "adapter_model.safetensors (save_pretrained writes both)."
            )
        for known in reversed(self.versions(manifest.name)):
            existing = self.manifest(manifest.name, known)
            if existing.files == files and existing.base_digest == manifest.base_digest:
                return existing
        with self._lock(manifest.name):
            version = max(self.versions(manifest.name), default=0) + 1
            complete = manifest.model_copy(
                update={"version": version, "files": files, "created_at": _now()}
            )
            with tempfile.TemporaryDirectory() as staging:
                for path in files:
                    shutil.copy2(Path(folder) / path, Path(staging) / path)
                (Path(staging) / MANIFEST).write_text(complete.model_dump_json(indent=2) + "\n")
                self.store.remove(f"{manifest.name}/v{version}")
                self.store.upload(staging, f"{manifest.name}/v{version}")
        return complete

    def fetch(self, name: str, version: int, cache: str | Path) -> Path:
        """Return a local folder with the version's files, their digests checked.

        A local registry is read in place; a remote one is copied into `cache` once.
        """
        manifest = self.manifest(name, version)
        if self.store.is_local:
            folder = Path(self.store.path(f"{name}/v{version}"))
        else:
            folder = Path(cache) / f"{name}-v{version}-{manifest.base_digest[:8]}"
            if not folder.is_dir():
                folder.parent.mkdir(parents=True, exist_ok=True)
                self.store.download(f"{name}/v{version}", folder)
        for path, sha in manifest.files.items():
            actual = file_digest(folder / path) if (folder / path).is_file() else "missing"
            if actual != sha:
                raise RegistryError(
                    f"{name}@v{version}: {path} has SHA-256 {actual}, its manifest says {sha}. "
                    "The file was changed or damaged; publish the adapter again."
                )
        return folder

    def aliases(self, name: str) -> dict[str, int]:
        """Version each alias points at."""
        return {alias: entry["version"] for alias, entry in self._aliases(name).items()}

    def history(self, name: str, alias: str) -> list[dict[str, Any]]:
        """Moves of an alias, oldest first: version, at (UTC), by, action."""
        return list(self._aliases(name).get(alias, {}).get("history", []))

    def promote(self, name: str, version: int, *, alias: str = "prod") -> int | None:
        """Point `alias` at `version`; returns the version it pointed at before."""
        self.manifest(name, version)
        return self._move(name, alias, version, action="promote")

    def rollback(self, name: str, *, alias: str = "prod") -> int:
        """Point `alias` at the version it pointed at before the current one; returns it."""
        current = self.aliases(name).get(alias)
        # Undoing a promote twice goes two versions back: rolled-back moves are popped.
        trail: list[int] = []
        for move in self.history(name, alias):
            if move["action"] == "rollback" and trail:
                trail.pop()
            elif not trail or trail[-1] != move["version"]:
                trail.append(move["version"])
        if current is None or len(trail) < 2:
            raise RegistryError(f"{name}: alias {alias!r} has no earlier version to go back to.")
        self._move(name, alias, trail[-2], action="rollback")
        return trail[-2]

    def resolve(self, model: str) -> tuple[str, int]:
        """Split `name`, `name@v3` or `name@alias` into (name, version), or raise RegistryError."""
        name, _, pointer = model.partition("@")
        _check_name(name)
        if re.fullmatch(r"v\d+", pointer):
            version = int(pointer[1:])
            self.manifest(name, version)
            return name, version
        target = self.aliases(name).get(pointer or "prod")
        if target is None:
            known = ", ".join(f"{name}@v{n}" for n in self.versions(name)) or "nothing"
            raise RegistryError(
                f"{model!r} is not in {self.store.uri}: alias {pointer or 'prod'!r} points nowhere;"
                f" published under this name: {known}."
            )
        return name, target

    def _aliases(self, name: str) -> dict[str, Any]:
        _check_name(name)
        path = f"{name}/aliases.json"
        return dict(self.store.read_json(path)) if self.store.exists(path) else {}

    def _move(self, name: str, alias: str, version: int, *, action: str) -> int | None:
        if not NAME.fullmatch(alias) or re.fullmatch(r"v\d+", alias):
            raise RegistryError(f"alias {alias!r}: use lower-case letters, digits, . _ - (not v3).")
        with self._lock(name):
            aliases = self._aliases(name)
            entry = aliases.setdefault(alias, {"version": None, "history": []})
            before = entry["version"]
            entry["version"] = version
            entry["history"].append(
                {"version": version, "at": _now(), "by": getpass.getuser(), "action": action}
            )
            self.store.write_json(f"{name}/aliases.json", aliases)
        return before

    @contextmanager
    def _lock(self, name: str) -> Iterator[None]:
        """Serialise writers of one name on a local registry; an object store has one writer."""
        if not self.store.is_local:
            yield
            return
        folder = Path(self.store.path(name))
        folder.mkdir(parents=True, exist_ok=True)
        with open(folder / ".lock", "w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _check_name(name: str) -> None:
    # Names come from clients and become paths: nothing that is not a plain name passes.
    if not NAME.fullmatch(name):
        raise RegistryError(f"{name!r} is no adapter name: use lower-case letters, digits, . _ -")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
