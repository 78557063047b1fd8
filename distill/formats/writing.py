"""Write rows to one file or a `datasets` folder; what did not come to its end leaves nothing."""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import PurePosixPath
from typing import Any

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from cluster.errors import ConfigError, DataError
from cluster.storage import TEMPORARY
from distill.formats.columns import json_text, record_batch
from distill.formats.files import CODECS, codec_of, kind_of, locate, shown, storage_errors

# As `datasets` does: no shard of a saved dataset is much larger.
SHARD_BYTES = 500_000_000
Row = dict[str, Any]
Write = Callable[[Sequence[Row]], None]


def output_kind(uri: str) -> str:
    """Return jsonl, json, parquet, or `datasets` for a name without a suffix.

    Raises ConfigError for a suffix that cannot be written.
    """
    # Not from the URI: it may carry a query, such as a bucket's region.
    name = PurePosixPath(locate(uri)[1]).name
    kind = kind_of(name)
    if kind in ("jsonl", "json", "parquet"):
        return kind
    if kind is None and not PurePosixPath(name).suffix:
        return "datasets"
    raise ConfigError(
        f"{shown(uri)}: cannot be written; allowed: .jsonl, .json (also with {', '.join(CODECS)}), "
        ".parquet, or a name without a suffix for a datasets folder."
    )


def refuse_existing(uri: str) -> None:
    """Raise ConfigError if something is there already: nothing is overwritten."""
    fs, path = locate(uri)
    with storage_errors(uri):
        if fs.get_file_info(path).type != pafs.FileType.NotFound:
            raise ConfigError(
                f"{shown(uri)} exists already; choose another name, or remove it first."
            )


@contextmanager
def file_writer(uri: str, *, kind: str, schema: pa.Schema | None = None) -> Iterator[Write]:
    """Open one file and yield a function that appends rows; Parquet needs the `schema`.

    The file appears when the block ends without an error. An object store shows an object only
    when it is complete; locally the file is written beside its place and renamed.
    """
    fs, path = locate(uri)
    with storage_errors(uri), _in_place(fs, path) as place:
        if kind == "parquet":
            assert schema is not None
            with pq.ParquetWriter(place, schema, filesystem=fs) as writer:

                def write_batch(rows: Sequence[Row]) -> None:
                    writer.write_batch(record_batch(rows, schema))

                yield write_batch
            return
        with fs.open_output_stream(place, compression=codec_of(path)) as stream:
            between = b",\n" if kind == "json" else b"\n"
            written = 0

            def write_text(rows: Sequence[Row]) -> None:
                nonlocal written
                lines = [row_text(row).encode() for row in rows]
                if lines:
                    stream.write((between if written else b"") + between.join(lines))
                    written += len(lines)

            stream.write(b"[\n" if kind == "json" else b"")
            yield write_text
            stream.write(b"\n]\n" if kind == "json" else b"\n" * bool(written))


@contextmanager
def datasets_writer(
    uri: str, *, schemas: dict[str, pa.Schema]
) -> Iterator[Callable[[str, Sequence[Row]], None]]:
    """Open a `datasets` folder and yield a function `(split, rows)` that appends rows to a split.

    `schemas` has one schema a split; the one split "" makes a plain `Dataset`, named splits make
    a `DatasetDict`. The layout is that of `save_to_disk`: Arrow IPC streams listed in state.json.
    The features are left to the Arrow schema, from which `load_from_disk` takes them.
    """
    fs, path = locate(uri)
    local = isinstance(fs, pafs.LocalFileSystem)
    folder, _, name = path.rpartition("/")
    root = f"{folder}/{TEMPORARY}{uuid.uuid4().hex}-{name}" if local else path
    with storage_errors(uri):
        try:
            with ExitStack() as stack:
                savers = {
                    split: stack.enter_context(_Saver(fs, f"{root}/{split}".rstrip("/"), schema))
                    for split, schema in schemas.items()
                }
                yield lambda split, rows: savers[split].write(rows)
            for saver in savers.values():
                saver.finish()
            if list(schemas) != [""]:
                _write_json(fs, f"{root}/dataset_dict.json", {"splits": list(schemas)})
            if local:
                fs.move(root, path)
        except BaseException:
            _remove_folder(fs, root)
            raise


def row_text(row: Row) -> str:
    """Return a row's JSON text; a value that JSON has no place for is a DataError with its name."""
    try:
        return json_text(row)
    except DataError:
        for name, value in row.items():
            try:
                json_text(value)
            except DataError as error:
                raise DataError(f"{name}: {error}; --drop {name} leaves it out") from None
        raise


class _Saver:
    """The Arrow files of one split, a new one when the last is large enough."""

    def __init__(self, fs: pafs.FileSystem, folder: str, schema: pa.Schema):
        self._fs = fs
        self._folder = folder
        self._schema = schema
        self._shards = 0
        self._stream: Any = None
        self._writer: Any = None

    def __enter__(self) -> _Saver:
        if isinstance(self._fs, pafs.LocalFileSystem):
            self._fs.create_dir(self._folder, recursive=True)
        self._open()
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def write(self, rows: Sequence[Row]) -> None:
        if self._stream.tell() > SHARD_BYTES:
            self._close()
            self._open()
        self._writer.write_batch(record_batch(rows, self._schema))

    def finish(self) -> None:
        """Give the shards their names, and last of all write what makes them a dataset."""
        names = [f"data-{i:05d}-of-{self._shards:05d}.arrow" for i in range(self._shards)]
        for index, name in enumerate(names):
            self._fs.move(self._shard(index), f"{self._folder}/{name}")
        info = {"citation": "", "description": "", "features": None, "homepage": "", "license": ""}
        _write_json(self._fs, f"{self._folder}/dataset_info.json", info)
        state: Row = {
            "_data_files": [{"filename": name} for name in names],
            "_fingerprint": uuid.uuid4().hex[:16],
            "_format_columns": None,
            "_format_kwargs": {},
            "_format_type": None,
            "_output_all_columns": False,
            "_split": None,
        }
        _write_json(self._fs, f"{self._folder}/state.json", state)

    def _shard(self, index: int) -> str:
        return f"{self._folder}/{TEMPORARY}{index:05d}.arrow"

    def _open(self) -> None:
        self._stream = self._fs.open_output_stream(self._shard(self._shards))
        self._writer = pa.ipc.new_stream(self._stream, self._schema)
        self._shards += 1

    def _close(self) -> None:
        self._writer.close()
        self._stream.close()


def _remove_folder(fs: pafs.FileSystem, path: str) -> None:
    for info in fs.get_file_info(pafs.FileSelector(path, recursive=True, allow_not_found=True)):
        if info.type == pafs.FileType.File:
            fs.delete_file(info.path)
    # On GCS a folder goes with its last file, elsewhere it stays.
    if fs.get_file_info(path).type == pafs.FileType.Directory:
        fs.delete_dir(path)


@contextmanager
def _in_place(fs: pafs.FileSystem, path: str) -> Iterator[str]:
    """Yield where to write so that `path` gets the whole file or none."""
    if not isinstance(fs, pafs.LocalFileSystem):
        try:
            yield path
        except BaseException:
            if fs.get_file_info(path).type == pafs.FileType.File:
                fs.delete_file(path)
            raise
        return
    folder, _, name = path.rpartition("/")
    fs.create_dir(folder, recursive=True)
    beside = f"{folder}/{TEMPORARY}{uuid.uuid4().hex}-{name}"
    try:
        yield beside
        fs.move(beside, path)
    except BaseException:
        if fs.get_file_info(beside).type == pafs.FileType.File:
            fs.delete_file(beside)
        raise


def _write_json(fs: pafs.FileSystem, path: str, value: Any) -> None:
    with fs.open_output_stream(path) as stream:
        stream.write(json.dumps(value, indent=2).encode())
