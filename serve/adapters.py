"""From the registry to a folder the engine may load: what does not fit is refused here."""

from __future__ import annotations

import json
import re
from pathlib import Path

from cluster.errors import RegistryError
from cluster.registry import AdapterManifest, Registry

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
_ID = re.compile(r"([a-z0-9][a-z0-9._-]{0,63})@v([0-9]{1,9})")


def split_id(model_id: str) -> tuple[str, int]:
    """Split an immutable id `reconcile@v3` into name and version; anything else is refused."""
    match = _ID.fullmatch(model_id)
    if match is None:
        raise RegistryError(f"{model_id!r} is no adapter version; expected name@v3.")
    return match[1], int(match[2])


class AdapterFolders:
    """Verified local folders of adapter versions, for one base model."""

    def __init__(self, registry: Registry, *, base_digest: str, max_rank: int, cache: str | Path):
        self.registry = registry
        self.base_digest = base_digest
        self.max_rank = max_rank
        self.cache = Path(cache)

    def fetch(self, model_id: str) -> Path:
        """Return the folder of `name@v3`; blocking.

        Raises RegistryError when the version is unknown, a file's digest differs from the
        manifest, or base model, rank or weights do not fit this server.
        """
        name, version = split_id(model_id)
        manifest = self.registry.manifest(name, version)
        check_manifest(manifest, base_digest=self.base_digest, max_rank=self.max_rank)
        for required in (CONFIG, WEIGHTS):
            if required not in manifest.files:
                raise RegistryError(f"{model_id}: its manifest does not list {required}.")
        folder = self.registry.fetch(name, version, self.cache)
        check_files(folder, model_id=model_id, manifest=manifest)
        return folder


def check_manifest(manifest: AdapterManifest, *, base_digest: str, max_rank: int) -> None:
    """Raise RegistryError if the adapter was trained on another base or its rank is too large."""
    if manifest.base_digest != base_digest:
        raise RegistryError(
            f"{manifest.model_name} was trained on a base model with digest "
            f"{manifest.base_digest[:12]}…, this server's base has {base_digest[:12]}…; "
            "train it again on this base or serve that one."
        )
    if manifest.rank > max_rank:
        raise RegistryError(
            f"{manifest.model_name} has rank {manifest.rank}, this server accepts at most "
            f"{max_rank}; raise serve.max_lora_rank or train with a smaller rank."
        )


def check_files(folder: Path, *, model_id: str, manifest: AdapterManifest) -> None:
    """Raise RegistryError if the files are not what the manifest says, or hold NaN or infinity."""
    import torch
    from safetensors import safe_open

    rank = json.loads((folder / CONFIG).read_text()).get("r")
    if rank != manifest.rank:
        raise RegistryError(f"{model_id}: {CONFIG} has rank {rank}, manifest {manifest.rank}.")
    with safe_open(folder / WEIGHTS, framework="pt") as tensors:
        for key in tensors.keys():  # noqa: SIM118 - not a dictionary
            if not torch.isfinite(tensors.get_tensor(key)).all():
                raise RegistryError(f"{model_id}: tensor {key} holds NaN or infinity.")
