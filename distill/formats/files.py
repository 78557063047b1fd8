"""Find the data files behind a path or URI: one file, a folder of files, a `datasets` folder.

Local paths, `s3://` and `gs://` are the same here (`pyarrow.fs`); object stores take their
credentials from the environment as their own tools do.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs

from cluster.errors import ConfigError, DataError

KINDS = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "json",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".arrow": "arrow",
}
CODECS = {".gz": "gzip", ".bz2": "bz2", ".zst": "zstd", ".lz4": "lz4"}
# The split names that Hugging Face looks for in file names, and what it calls them.
SPLIT_OF = {
    "train": "train",
    "training": "train",
    "validation": "validation",
    "valid": "validation",
    "val": "validation",
    "dev": "validation",
    "test": "test",
    "testing": "test",
    "eval": "test",
    "evaluation": "test",
}
CREDENTIALS = {
    "s3:": "Keys come from AWS_PROFILE, or AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY.",
    "gs:": "Credentials come from GOOGLE_APPLICATION_CREDENTIALS or `gcloud auth`.",
}
WORDS = re.compile(r"[-._/ ]")


@dataclass(frozen=True)
class DataFile:
    """One file of rows. `kind` is jsonl, json, parquet or arrow; `split` is "" when unknown."""

    path: str
    name: str
    kind: str
    split: str
    size_bytes: int


@dataclass(frozen=True)
class Source:
    """Where rows come from. `adapt` turns a raw row into one of a known shape, or None to skip.

    `uri` is for messages: what may be secret in it is gone.
    """

    uri: str
    fs: pafs.FileSystem
    container: str
    files: tuple[DataFile, ...]
    adapt: Callable[[dict[str, Any]], dict[str, Any] | None] | None = None

    @property
    def splits(self) -> list[str]:
        """The splits, in the order their files come; [""] when there are none."""
        return list(dict.fromkeys(file.split for file in self.files))


def shown(uri: str) -> str:
    """Return a URI without the keys that may stand in it (`s3://KEY:SECRET@bucket/…?region=…`)."""
    if "://" not in uri:
        return uri
    scheme, _, rest = uri.partition("://")
    host, slash, path = rest.partition("?")[0].partition("/")
    return f"{scheme}://{host.rpartition('@')[2]}{slash}{path}"


def locate(uri: str) -> tuple[pafs.FileSystem, str]:
    """Return the file system of a path or URI, and the path inside it."""
    if "://" not in uri:
        return pafs.LocalFileSystem(), str(Path(uri).expanduser().absolute())
    try:
        fs, path = pafs.FileSystem.from_uri(uri)
    except (pa.ArrowInvalid, pa.ArrowNotImplementedError, OSError) as error:
        raise ConfigError(
            f"{shown(uri)}: cannot be opened: {str(error).replace(uri, shown(uri))}. "
            "Give a local path, s3://bucket/… or gs://bucket/…"
        ) from None
    return fs, path.rstrip("/")


@contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Turn what a file system raises into a sentence."""
    try:
        yield
    except OSError as error:
        hint = next(
            (f" {text}" for scheme, text in CREDENTIALS.items() if uri.startswith(scheme)), ""
        )
        raise DataError(f"{shown(uri)}: {error}.{hint}") from error


def kind_of(name: str) -> str | None:
    """Return the kind of a file by its name (`rows.jsonl.gz` is jsonl), None if it is unknown."""
    path = PurePosixPath(name.lower())
    if path.suffix in CODECS:
        path = path.with_suffix("")
        return KINDS.get(path.suffix) if KINDS.get(path.suffix) in ("jsonl", "json") else None
    return KINDS.get(path.suffix)


def codec_of(name: str) -> str | None:
    """Return the compression that a file's name says."""
    return CODECS.get(PurePosixPath(name.lower()).suffix)


def find(uri: str) -> Source:
    """Look at a path or URI and list its data files, by split.

    A folder is a `datasets` folder (`save_to_disk`, with splits or without) or one of Parquet,
    JSONL, Arrow or JSON files, whose splits are told from their names. Raises DataError when
    nothing readable is there.
    """
    fs, path = locate(uri)
    uri = shown(uri)
    with storage_errors(uri):
        info = fs.get_file_info(path)
        if info.type == pafs.FileType.NotFound:
            raise DataError(f"{uri}: there is no such file or folder.")
        if info.type == pafs.FileType.Directory:
            return _folder(uri, fs, path)
    kind = kind_of(path)
    if kind is None:
        raise DataError(
            f"{uri}: the name does not say what it is; allowed: {', '.join(KINDS)}, the text "
            f"formats also with {', '.join(CODECS)}, or a folder."
        )
    file = DataFile(path, PurePosixPath(path).name, kind, "", info.size or 0)
    return Source(uri, fs, kind, (file,))


def _folder(uri: str, fs: pafs.FileSystem, path: str) -> Source:
    if _is_file(fs, f"{path}/dataset_dict.json"):
        splits = _json(fs, f"{path}/dataset_dict.json").get("splits", [])
        files = [file for split in splits for file in _saved(fs, f"{path}/{split}", split=split)]
        return Source(uri, fs, "datasets folder", tuple(files))
    if _is_file(fs, f"{path}/state.json"):
        return Source(uri, fs, "datasets folder", tuple(_saved(fs, path, split="")))
    found: list[DataFile] = []
    for info in fs.get_file_info(pafs.FileSelector(path, recursive=True)):
        name = str(PurePosixPath(info.path).relative_to(path))
        hidden = any(part.startswith((".", "_")) for part in name.split("/"))
        kind = kind_of(name)
        if info.type == pafs.FileType.File and kind and not hidden:
            found.append(DataFile(info.path, name, kind, _split_of(name), info.size or 0))
    # Beside Parquet or JSONL, a .json file describes the data.
    kinds = {file.kind for file in found}
    if len(kinds) > 1:
        kinds.discard("json")
    if len(kinds) != 1:
        held = " and ".join(sorted(kinds)) or "no data file"
        raise DataError(f"{uri}: holds {held}; name one file, or a folder of one kind.")
    files = sorted((f for f in found if f.kind in kinds), key=lambda f: (_order(f.split), f.name))
    return Source(uri, fs, f"{kinds.pop()} files", tuple(files))


def _saved(fs: pafs.FileSystem, path: str, *, split: str) -> list[DataFile]:
    """List the Arrow files of a saved `Dataset`, in the order of its state.json."""
    state = _json(fs, f"{path}/state.json")
    if state.get("_indices_files") or state.get("_indices_data_files"):
        raise DataError(
            f"{path}: was saved with an index of selected rows by an old version of datasets; "
            "load it and save it again."
        )
    names = [entry["filename"] for entry in state.get("_data_files", [])]
    files = []
    for name in names:
        info = fs.get_file_info(f"{path}/{name}")
        if info.type != pafs.FileType.File:
            raise DataError(f"{path}/{name}: is missing; state.json lists it.")
        label = f"{split}/{name}" if split else name
        files.append(DataFile(info.path, label, "arrow", split, info.size or 0))
    return files


def _json(fs: pafs.FileSystem, path: str) -> dict[str, Any]:
    if not _is_file(fs, path):
        raise DataError(f"{path}: is missing; a datasets folder has it.")
    with fs.open_input_stream(path) as stream:
        try:
            value = json.loads(stream.read())
        except ValueError as error:
            raise DataError(f"{path} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise DataError(f"{path}: a {type(value).__name__}, not an object.")
    return value


def _is_file(fs: pafs.FileSystem, path: str) -> bool:
    return bool(fs.get_file_info(path).type == pafs.FileType.File)


def _split_of(name: str) -> str:
    """Tell a split from the first word of a file's or folder's name, as Hugging Face does."""
    for part in name.lower().split("/"):
        split = SPLIT_OF.get(WORDS.split(part)[0])
        if split:
            return split
    return ""


def _order(split: str) -> tuple[int, str]:
    known = ("train", "validation", "test")
    return (known.index(split) if split in known else len(known), split)
