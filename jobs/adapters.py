"""What `distillery adapters` does: look at the registry and move aliases."""

from __future__ import annotations

from cluster.errors import RegistryError
from cluster.registry import Registry
from jobs.display import Display


def show(uri: str, name: str | None) -> None:
    """Print a table of versions."""
    registry = Registry(uri)
    rows = []
    for adapter in [name] if name else registry.names():
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


def promote_version(uri: str, version: str, *, alias: str) -> str:
    """Move the alias; returns a sentence."""
    registry = Registry(uri)
    if "@v" not in version:
        raise RegistryError(f"{version!r}: name a version, such as {version}@v2.")
    name, number = registry.resolve(version)
    before = registry.promote(name, number, alias=alias)
    return f"{name}: {alias} moved from {_shown(before)} to v{number}"


def roll_back(uri: str, name: str, *, alias: str) -> str:
    """Move the alias back; returns a sentence."""
    registry = Registry(uri)
    before = registry.aliases(name).get(alias)
    target = registry.rollback(name, alias=alias)
    return f"{name}: {alias} moved back from {_shown(before)} to v{target}"


def show_history(uri: str, name: str, *, alias: str) -> None:
    """Print an alias's moves."""
    moves = Registry(uri).history(name, alias)
    rows = [[m["at"], m["action"], f"v{m['version']}", m["by"]] for m in moves]
    Display().table(f"{name}@{alias}", ["at (UTC)", "action", "version", "by"], rows)


def _shown(version: int | None) -> str:
    return "nowhere" if version is None else f"v{version}"
