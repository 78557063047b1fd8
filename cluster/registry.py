"""The adapter registry: the contract between training and serving.

    <registry>/<name>/v3/manifest.json     written last: a version without it does not exist
    <registry>/<name>/v3/adapter_config.json, adapter_model.safetensors
    <registry>/<name>/aliases.json         {"prod": {"version": 3, "history": [...], "split": …}}

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
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cluster.errors import RegistryError
from cluster.storage import Store, file_digest, folder_digests

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
ANY_VERSION = -1
"""Wherever an alias is, it may be moved."""
MANIFEST = "manifest.json"
PINS = "pins.json"


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


class CanaryBounds(BaseModel):
    """How much worse than the alias's own version a canary may be. Latency is at its P90."""

    model_config = ConfigDict(extra="forbid")

    max_p90_ratio: float = Field(default=1.2, gt=0)
    """P90 of the canary over P90 of the version it would replace, in the same time."""
    max_more_errors: float = Field(default=0.02, ge=0, le=1)
    """Share of requests that fail on the server's side, above the other version's."""
    max_more_refused: float = Field(default=0.03, ge=0, le=1)
    """Share of answers that the quality checks refuse, above the other version's."""
    max_more_fallbacks: float = Field(default=0.03, ge=0, le=1)
    """Share of answers that somebody else gave, above the other version's."""
    min_samples: int = Field(default=100, ge=1)
    """Requests of the canary before it may be promoted."""
    max_hours: float = Field(default=24.0, gt=0)
    """Without a decision by then it is rolled back."""
    alpha: float = Field(default=0.05, gt=0, lt=1)
    """Chance that a canary within its bounds is ever rolled back, and that one outside is ever
    promoted, however often one looks."""


class Split(BaseModel):
    """A second version behind an alias."""

    model_config = ConfigDict(extra="forbid")

    version: int = Field(ge=1)
    mode: Literal["canary", "ab", "shadow"] = "canary"
    """`canary` gets a share of the requests and ends by itself; `ab` stays until it is ended;
    `shadow` answers copies that no client ever sees."""
    weight: float = Field(default=0.1, gt=0, le=1)
    """Share of users (by `user`; without one an A/B test goes by API key, a canary by request) or,
    for a shadow, of requests."""
    bounds: CanaryBounds = CanaryBounds()
    since: str = ""
    by: str = ""


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
                self.store.upload(staging, f"{manifest.name}/v{version}", last=MANIFEST)
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

    def promote(
        self,
        name: str,
        version: int,
        *,
        alias: str = "prod",
        by: str = "",
        seen: int | None = ANY_VERSION,
    ) -> int | None:
        """Point `alias` at `version`; returns the version it pointed at before. A split ends.

        `seen` is where whoever asks believes the alias to be (`None`: nowhere yet); RegistryError
        when somebody has moved it since, so that of two at once one wins and the other is told.
        """
        self.manifest(name, version)
        with self._changing(name, alias) as entry:
            if seen not in (ANY_VERSION, entry["version"]):
                moves = [m for m in entry["history"] if m["action"] in ("promote", "rollback")]
                now = (
                    f"is at v{entry['version']}, moved there by {moves[-1]['by']} at "
                    f"{moves[-1]['at']}"
                    if moves
                    else "points nowhere"
                )
                raise RegistryError(
                    f"{name}: alias {alias!r} {now}, and not at "
                    f"{f'v{seen}' if seen else 'no version'} as was thought; look at it and ask "
                    "again."
                )
            return self._move(entry, version, action="promote", by=by)

    def splits(self, name: str) -> dict[str, Split]:
        """The second version behind each alias that has one."""
        return {
            alias: Split.model_validate(entry["split"])
            for alias, entry in self._aliases(name).items()
            if entry.get("split")
        }

    def start_split(self, name: str, split: Split, *, alias: str = "prod", by: str = "") -> Split:
        """Put a second version behind `alias`; RegistryError while another is there.

        A canary's weight is below 1 (RegistryError).
        """
        if split.mode == "canary" and split.weight == 1:
            raise RegistryError(
                f"{name}: weight 1 of a canary leaves the version that it is compared with no "
                f"request; give a weight below 1, or promote v{split.version}."
            )
        self.manifest(name, split.version)
        with self._changing(name, alias) as entry:
            if entry["version"] is None:
                raise RegistryError(f"{name}: alias {alias!r} points at no version to split from.")
            if entry["version"] == split.version:
                raise RegistryError(f"{name}: alias {alias!r} is at v{split.version} already.")
            if entry.get("split"):
                other = Split.model_validate(entry["split"])
                raise RegistryError(
                    f"{name}: alias {alias!r} has a {other.mode} already, v{other.version}; "
                    "end it first."
                )
            begun = split.model_copy(update={"since": _now(), "by": by or getpass.getuser()})
            entry["split"] = begun.model_dump()
            _record(entry, split.version, action=split.mode, by=by, weight=split.weight)
        return begun

    def end_split(
        self,
        name: str,
        *,
        alias: str = "prod",
        promote: bool,
        expected: Split | None = None,
        by: str = "",
        figures: dict[str, Any] | None = None,
    ) -> Split:
        """End an alias's split, with its version promoted or not; returns it.

        `expected` ends nothing else (RegistryError): somebody may have acted in the meantime.
        `figures` are kept with the move.
        """
        with self._changing(name, alias) as entry:
            if not entry.get("split"):
                raise RegistryError(f"{name}: alias {alias!r} has no canary, A/B test or shadow.")
            ended = Split.model_validate(entry["split"])
            if expected is not None and ended != expected:
                raise RegistryError(f"{name}: the {expected.mode} of {alias!r} has changed since.")
            entry["split"] = None
            if promote:
                entry["version"] = ended.version
            # A version that was only tried is no step that a rollback goes back to.
            action = "promote" if promote else f"end-{ended.mode}"
            _record(entry, ended.version, action=action, by=by, figures=figures)
        return ended

    def rollback(self, name: str, *, alias: str = "prod", by: str = "") -> int:
        """Point `alias` at the version it pointed at before the current one; returns it."""
        with self._changing(name, alias) as entry:
            # Undoing a promote twice goes two versions back: rolled-back moves are popped.
            trail: list[int] = []
            for move in entry["history"]:
                if move["action"] not in ("promote", "rollback"):
                    continue
                if move["action"] == "rollback" and trail:
                    trail.pop()
                elif not trail or trail[-1] != move["version"]:
                    trail.append(move["version"])
            if entry["version"] is None or len(trail) < 2:
                raise RegistryError(
                    f"{name}: alias {alias!r} has no earlier version to go back to."
                )
            self._move(entry, trail[-2], action="rollback", by=by)
        return trail[-2]

    def pins(self, name: str) -> list[int]:
        """Versions that servers keep loaded, ascending."""
        _check_name(name)
        path = f"{name}/{PINS}"
        return sorted(self.store.read_json(path)) if self.store.exists(path) else []

    def pin(self, name: str, version: int, *, pinned: bool = True) -> None:
        """Have servers keep a version loaded, or no longer."""
        self.manifest(name, version)
        with self._lock(name):
            others = set(self.pins(name)) - {version}
            self.store.write_json(
                f"{name}/{PINS}", sorted(others | ({version} if pinned else set()))
            )

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

    def _move(self, entry: dict[str, Any], version: int, *, action: str, by: str) -> int | None:
        before: int | None = entry["version"]
        entry["version"] = version
        # What a split was compared with is gone.
        entry["split"] = None
        _record(entry, version, action=action, by=by)
        return before

    @contextmanager
    def _changing(self, name: str, alias: str) -> Iterator[dict[str, Any]]:
        """The alias's entry to change; written if the block ends without an error."""
        if not NAME.fullmatch(alias) or re.fullmatch(r"v\d+", alias):
            raise RegistryError(f"alias {alias!r}: use lower-case letters, digits, . _ - (not v3).")
        with self._lock(name):
            aliases = self._aliases(name)
            entry = aliases.setdefault(alias, {"version": None, "history": []})
            yield entry
            self.store.write_json(f"{name}/aliases.json", aliases)

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


def _record(entry: dict[str, Any], version: int, *, action: str, by: str = "", **more: Any) -> None:
    """Append a move to an alias's history; what is `None` is left out."""
    move = {"version": version, "at": _now(), "by": by or getpass.getuser(), "action": action}
    entry["history"].append(move | {k: v for k, v in more.items() if v is not None})


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")
