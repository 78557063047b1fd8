"""Files and Parquet at a URI (local path, `s3://`, `gs://`) through `pyarrow.fs`.

Whatever is written appears whole or not at all: it is written beside its place and renamed. Object
stores cannot rename a folder: there its files appear one by one, and a named one of them last.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from cluster.errors import DataError

TEMPORARY = ".tmp-"


class Store:
    """A folder at a URI. Paths given to its methods are relative to it."""

    def __init__(self, uri: str | Path):
        """Open `uri`; nothing is created until something is written."""
        self.uri = str(uri)
        if "://" in self.uri:
            try:
                self.fs, self.root = pafs.FileSystem.from_uri(self.uri)
            except pa.ArrowInvalid as error:
                raise DataError(
                    f"{self.uri}: no place that can be opened ({error}); give a path, s3://… or gs://…"
                ) from None
        else:
            self.fs, self.root = pafs.LocalFileSystem(), str(Path(self.uri).expanduser().absolute())
        self.is_local = isinstance(self.fs, pafs.LocalFileSystem)

    def __truediv__(self, path: str) -> Store:
        """Return the store of a sub-folder."""
        head, query = _query_apart(self.uri)
        return Store(f"{head.rstrip('/')}/{path}{query}")

    def path(self, path: str = "") -> str:
        """Return the path inside the file system (an absolute path when local)."""
        return f"{self.root}/{path}" if path else self.root

    def exists(self, path: str = "") -> bool:
        """Whether a file or folder is there."""
        return self.fs.get_file_info(self.path(path)).type != pafs.FileType.NotFound

    def is_file(self, path: str) -> bool:
        """Whether a file is there."""
        return self.fs.get_file_info(self.path(path)).type == pafs.FileType.File

    def names(self, path: str = "") -> list[str]:
        """Names directly below `path`, sorted, without temporary ones; none if it is missing."""
        selector = pafs.FileSelector(self.path(path), allow_not_found=True)
        names = [info.base_name for info in self.fs.get_file_info(selector)]
        return sorted(name for name in names if not name.startswith(TEMPORARY))

    def read_bytes(self, path: str) -> bytes:
        """Read a whole file."""
        with self.fs.open_input_stream(self.path(path)) as stream:
            return stream.read()

    def write_bytes(self, path: str, data: bytes) -> None:
        """Write a whole file; a reader sees the old content or the new, never a part."""
        with self._beside(path) as temporary, self.fs.open_output_stream(temporary) as stream:
            stream.write(data)

    def read_json(self, path: str) -> Any:
        """Read a JSON file; a broken one is a DataError that names it."""
        try:
            return json.loads(self.read_bytes(path))
        except ValueError as error:
            raise DataError(f"{self.path(path)} is not valid JSON: {error}") from error

    def write_json(self, path: str, value: Any) -> None:
        """Write JSON, indented, keys in the order given."""
        text = json.dumps(value, indent=2, ensure_ascii=False) + "\n"
        self.write_bytes(path, text.encode())

    def write_table(self, path: str, table: pa.Table) -> None:
        """Write one Parquet file."""
        with self._beside(path) as temporary:
            pq.write_table(table, temporary, filesystem=self.fs)

    @contextmanager
    def table_writer(
        self, path: str, schema: pa.Schema, **options: Any
    ) -> Iterator[pq.ParquetWriter]:
        """Write one Parquet file batch by batch; it appears when the block ends without error.

        `options` are those of `pyarrow.parquet.ParquetWriter`.
        """
        with (
            self._beside(path) as temporary,
            pq.ParquetWriter(temporary, schema, filesystem=self.fs, **options) as writer,
        ):
            yield writer

    def iter_batches(
        self, path: str, *, columns: list[str] | None = None, batch_size: int = 4096
    ) -> Iterator[pa.RecordBatch]:
        """Yield a Parquet file, or all of a folder in name order, never held in memory whole."""
        for file in self._parquet_files(path):
            with self.fs.open_input_file(self.path(file)) as stream:
                yield from pq.ParquetFile(stream).iter_batches(batch_size, columns=columns)

    def num_rows(self, path: str) -> int:
        """Rows of a Parquet file, from its footer."""
        with self.fs.open_input_file(self.path(path)) as stream:
            return int(pq.ParquetFile(stream).metadata.num_rows)

    def read_table(self, path: str) -> pa.Table:
        """Read one Parquet file, or all `*.parquet` files of a folder in name order."""
        files = self._parquet_files(path)
        if not files:
            raise DataError(f"{self.path(path)} holds no Parquet file yet; run its stage first.")
        tables = [pq.read_table(self.path(file), filesystem=self.fs) for file in files]
        return pa.concat_tables(tables, promote_options="default")

    def read_rows(self, path: str) -> list[dict[str, Any]]:
        """Like `read_table`, as Python dictionaries."""
        return self.read_table(path).to_pylist()

    def remove(self, path: str) -> None:
        """Delete a file or a folder; a missing one is no error."""
        info = self.fs.get_file_info(self.path(path))
        if info.type == pafs.FileType.Directory:
            self.fs.delete_dir(self.path(path))
        elif info.type == pafs.FileType.File:
            self.fs.delete_file(self.path(path))

    def upload(self, folder: str | Path, path: str, *, last: str) -> None:
        """Copy a local folder to `path`, whole or not at all.

        On an object store it is whole once the file `last` is there.
        """
        if not self.is_local:
            self._upload_in_place(Path(folder), path, last=last)
            return
        with self._beside(path) as temporary:
            # copy_files makes folders below the destination, not the destination.
            self.fs.create_dir(temporary, recursive=True)
            pafs.copy_files(str(folder), temporary, destination_filesystem=self.fs)

    def download(self, path: str, folder: str | Path) -> None:
        """Copy a file or folder to a local folder, whole or not at all.

        Of several who do so at once each finds it there in the end.
        """
        target = Path(folder)
        beside = target.with_name(f"{TEMPORARY}{uuid.uuid4().hex}")
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            if self.fs.get_file_info(self.path(path)).type == pafs.FileType.Directory:
                beside.mkdir()
            pafs.copy_files(self.path(path), str(beside), source_filesystem=self.fs)
            try:
                beside.rename(target)
            except OSError:
                # Somebody else was faster: what stands there appeared whole, as this would have.
                if not (beside.is_dir() and target.is_dir()):
                    raise
        finally:
            shutil.rmtree(beside, ignore_errors=True)

    def _upload_in_place(self, folder: Path, path: str, *, last: str) -> None:
        files = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
        try:
            for file in sorted(files, key=lambda file: (str(file) == last, file)):
                target = self.path(f"{path}/{file.as_posix()}")
                pafs.copy_files(str(folder / file), target, destination_filesystem=self.fs)
        except BaseException:
            with suppress(OSError):
                self.remove(path)
            raise

    def _parquet_files(self, path: str) -> list[str]:
        if path.endswith(".parquet"):
            return [path]
        return [f"{path}/{name}" for name in self.names(path) if name.endswith(".parquet")]

    def _beside(self, path: str) -> _Beside:
        return _Beside(self, path)


class _Beside:
    """Context of a temporary path that becomes `path` when the block ends without an error."""

    def __init__(self, store: Store, path: str):
        self.store = store
        self.target = store.path(path)
        folder, _, name = self.target.rpartition("/")
        self.folder = folder
        self.temporary = f"{folder}/{TEMPORARY}{uuid.uuid4().hex}-{name}"

    def __enter__(self) -> str:
        self.store.fs.create_dir(self.folder, recursive=True)
        return self.temporary

    def __exit__(self, kind: object, *_: object) -> None:
        fs = self.store.fs
        if kind is None:
            fs.move(self.temporary, self.target)
            return
        info = fs.get_file_info(self.temporary)
        if info.type == pafs.FileType.Directory:
            fs.delete_dir(self.temporary)
        elif info.type == pafs.FileType.File:
            fs.delete_file(self.temporary)


def folder_and_name(uri: str | Path) -> tuple[Store, str]:
    """Return the store of the folder that a path or URI lies in, and its name there."""
    head, query = _query_apart(str(uri))
    folder, slash, name = head.rstrip("/").rpartition("/")
    return Store(f"{folder or slash or '.'}{query}"), name


def _query_apart(uri: str) -> tuple[str, str]:
    """Split the query (`?endpoint_override=…`) off a URI; a path has none."""
    head, mark, query = uri.partition("?") if "://" in uri else (uri, "", "")
    return head, mark + query


def rows_table(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.Table:
    """Build a table with exactly `schema`'s columns from dictionaries."""
    return pa.Table.from_pylist(list(rows), schema=schema)


def canonical_json(value: Any) -> str:
    """Return the one text of a JSON value: keys sorted, no spaces, Unicode as it is."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def digest_of(value: Any) -> str:
    """SHA-256 (hex) of a JSON value's canonical text."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def file_digest(path: str | Path) -> str:
    """SHA-256 (hex) of a local file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def folder_files(folder: str | Path, *, ignore: Iterable[str] = ("__pycache__",)) -> Iterator[Path]:
    """Files below a local folder in path order, without caches and hidden ones."""
    skip = set(ignore)
    for current, folders, names in os.walk(folder):
        folders[:] = sorted(n for n in folders if n not in skip and not n.startswith("."))
        for name in sorted(names):
            if not name.startswith("."):
                yield Path(current) / name


def folder_digests(folder: str | Path) -> dict[str, str]:
    """SHA-256 of every file below a local folder, by its path relative to it."""
    base = Path(folder)
    return {str(p.relative_to(base)): file_digest(p) for p in folder_files(base)}
