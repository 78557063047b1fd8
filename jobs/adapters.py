"""What `distillery adapters` does: look at the registry and move aliases."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from cluster.errors import DataError, DistilleryError, PrerequisiteError, RegistryError
from cluster.models import model_digest, model_location, model_name
from cluster.registry import AdapterManifest, Registry, Split
from jobs.client import KEY_ENV
from jobs.display import Display
from serve.adapters import split_id

UNKNOWN = "unknown"
"""What a manifest says where only the trainer would know."""


def show(uri: str, name: str | None) -> None:
    """Print a table of versions."""
    registry = Registry(uri)
    rows = []
    for adapter in [_known(registry, name)] if name else registry.names():
        pointers = registry.aliases(adapter)
        for version in registry.versions(adapter):
            manifest = registry.manifest(adapter, version)
            aliases = ", ".join(a for a, v in sorted(pointers.items()) if v == version)
            passed = sum(bool(gate.get("passed")) for gate in manifest.gates)
            gates = f"{passed}/{len(manifest.gates)}"
            created = manifest.created_at[:19].replace("T", " ")
            base = manifest.base_model
            rows.append([manifest.model_name, aliases, base, manifest.rank, gates, created])
    columns = ["adapter", "aliases", "base", "rank", "gates", "created (UTC)"]
    Display().table(f"registry {uri}", columns, rows)


def promote_version(uri: str, version: str, *, alias: str, seen: int | None = None) -> str:
    """Move the alias; returns a sentence. `seen`: only if it is at this version."""
    name, number = _version(uri, version)
    registry = Registry(uri)
    # Without a word of the caller's at least nobody else's move at the same moment is overrun.
    at = seen if seen is not None else registry.aliases(name).get(alias)
    before = registry.promote(name, number, alias=alias, seen=at)
    return f"{name}: {alias} moved from {_shown(before)} to v{number}"


def roll_back(uri: str, name: str, *, alias: str) -> str:
    """Move the alias back; returns a sentence."""
    registry = Registry(uri)
    before = registry.aliases(name).get(alias)
    target = registry.rollback(name, alias=alias)
    return f"{name}: {alias} moved back from {_shown(before)} to v{target}"


def publish_folder(uri: str, folder: str, *, name: str, base_model: str) -> str:
    """Publish a PEFT adapter from elsewhere; returns a sentence."""
    lora = _adapter_config(folder)
    manifest = Registry(uri).publish(
        folder,
        AdapterManifest(
            name=name,
            base_model=model_name(base_model),
            base_digest=model_digest(model_location(base_model)),
            rank=int(lora["r"]),
            alpha=float(lora["lora_alpha"]),
            target_modules=_names(lora["target_modules"]),
            task=UNKNOWN,
            task_digest=UNKNOWN,
            dataset_digest=UNKNOWN,
            teacher=UNKNOWN,
            train={},
            gates=[],
        ),
    )
    return f"{manifest.model_name} is in {uri}; no gate has seen it. Promote it to serve it."


def _adapter_config(folder: str) -> dict[str, Any]:
    path = Path(folder) / "adapter_config.json"
    try:
        found = json.loads(path.read_text())
        if found["peft_type"] == "LORA" and {"r", "lora_alpha", "target_modules"} <= found.keys():
            return dict(found)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DataError(f"{path} is no configuration of a LoRA adapter as PEFT saves it.")


def _names(modules: str | list[str]) -> list[str]:
    return [modules] if isinstance(modules, str) else sorted(modules)


def split_alias(
    uri: str, version: str, *, alias: str, mode: str, weight: float, bounds: dict[str, float]
) -> str:
    """Start a canary, an A/B test or a shadow; returns a sentence."""
    name, number = _version(uri, version)
    split = Split.model_validate(
        {"version": number, "mode": mode, "weight": weight, "bounds": bounds}
    )
    Registry(uri).start_split(name, split, alias=alias)
    of = "requests" if mode == "shadow" else "users"
    return f"{name}: {mode} of v{number} behind {alias} for {weight:.1%} of the {of}"


def end_split(uri: str, name: str, *, alias: str, promote: bool) -> str:
    """End it; returns a sentence."""
    ended = Registry(uri).end_split(name, alias=alias, promote=promote)
    outcome = f"{alias} moved to v{ended.version}" if promote else f"{alias} stays"
    return f"{name}: {ended.mode} of v{ended.version} ended, {outcome}"


def pin_version(uri: str, version: str, *, pinned: bool) -> str:
    """Pin or unpin; returns a sentence."""
    registry = Registry(uri)
    name, number = _version(uri, version)
    registry.pin(name, number, pinned=pinned)
    kept = ", ".join(f"v{n}" for n in registry.pins(name)) or "nothing"
    return f"{name}: servers keep {kept} loaded"


def unload_version(url: str, version: str) -> str:
    """Have a running gateway unload a version; returns a sentence."""
    import httpx

    name, number = split_id(version)
    key = os.environ.get(KEY_ENV)
    try:
        answer = httpx.post(
            f"{url}/admin/adapters/unload",
            json={"name": name, "version": number},
            headers={"Authorization": f"Bearer {key}"} if key else {},
            timeout=300,
        )
    except httpx.HTTPError as error:
        raise PrerequisiteError(f"nothing answers at {url}: {error}") from None
    if answer.status_code != 200:
        raise DistilleryError(f"{url} answered {answer.status_code}: {answer.text[:300]}")
    return f"{version} left {answer.json()['result']} replica(s)"


def _version(uri: str, version: str) -> tuple[str, int]:
    if "@v" not in version:
        raise RegistryError(f"{version!r}: name a version, such as {version}@v2.")
    return Registry(uri).resolve(version)


def show_history(uri: str, name: str, *, alias: str) -> None:
    """Print an alias's moves."""
    registry = Registry(uri)
    moves = registry.history(_known(registry, name), alias)
    rows = [[m["at"], m["action"], f"v{m['version']}", m["by"]] for m in moves]
    Display().table(f"{name}@{alias}", ["at (UTC)", "action", "version", "by"], rows)


def _known(registry: Registry, name: str) -> str:
    """Return the name; RegistryError lists what there is instead."""
    if not registry.versions(name):
        names = ", ".join(registry.names()) or "none"
        raise RegistryError(f"{name} is not in {registry.store.uri}; known: {names}.")
    return name


def _shown(version: int | None) -> str:
    return "nowhere" if version is None else f"v{version}"
