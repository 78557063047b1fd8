"""Where a base model lies and what it is called, the same way in every room."""

from __future__ import annotations

import hashlib
import json
import re
from pathlib import Path

from cluster.errors import ConfigError, PrerequisiteError
from cluster.storage import file_digest

HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[\w.-]+)?")


def model_location(model: str, *, field: str = "student.model") -> str:
    """Return the absolute folder of a local model, or the hub name as it is.

    Workers run in other folders than the person who typed the path. PrerequisiteError if a folder
    is meant and holds no model.
    """
    folder = Path(model).expanduser()
    if (folder / "config.json").is_file():
        return str(folder.absolute())
    if HUB_NAME.fullmatch(model) and not folder.exists():
        return model
    raise PrerequisiteError(
        f"{field} {model!r}: there is no {folder}/config.json. Give the folder of a Hugging "
        "Face model or a hub name such as org/model; `make model` makes the demo's."
    )


def require_chat_template(model: str, *, field: str) -> None:
    """Check that a local model folder is whole and has a chat template; a hub name passes.

    `field` is named in the error: PrerequisiteError without a model, ConfigError without template.
    """
    folder = Path(model_location(model, field=field))
    if not folder.is_absolute():
        return  # a hub name: its template is seen when it is loaded
    template = folder / "chat_template.jinja"
    settings = folder / "tokenizer_config.json"
    if not template.is_file() and "chat_template" not in (
        json.loads(settings.read_text(encoding="utf-8")) if settings.is_file() else {}
    ):
        raise ConfigError(
            f"{field} {model!r} has no chat template (chat_template.jinja or the field in "
            "tokenizer_config.json): use an instruct model, or put its template there."
        )


def model_name(model: str) -> str:
    """Name of a base model in manifests and at the API: a folder's name, or the hub name."""
    return Path(model).name if Path(model).expanduser().is_dir() else model


def model_digest(model: str | Path) -> str:
    """SHA-256 over a folder's `config.json` and weights; a hub name stands for itself."""
    folder = Path(model).expanduser()
    if not folder.is_dir():
        return f"name:{model}"
    digest = hashlib.sha256()
    weights = [*folder.glob("*.safetensors"), *folder.glob("*.bin")]
    for path in sorted([folder / "config.json", *weights]):
        if path.is_file():
            digest.update(f"{path.name}:{file_digest(path)}\n".encode())
    return digest.hexdigest()
