"""Read rows from data files in batches; no file is ever in memory as a whole.

A line or row that cannot be read is a `BadRow` among the others: the caller decides whether it
ends the work.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq

from cluster.errors import DataError
from distill.formats.columns import row_decoder
from distill.formats.files import DataFile, Source, codec_of, storage_errors
from distill.jsonl import parse_object

ROWS = 1024
CHUNK = 1 << 20
HEAD = 4096
MAX_BETWEEN = 1 << 20
UTF8_BOM = b"\xef\xbb\xbf"
# The longer mark first: UTF-32's begins with UTF-16's.
OTHER_BOMS = {
    b"\xff\xfe\x00\x00": "UTF-32",
    b"\x00\x00\xfe\xff": "UTF-32",
    b"\xff\xfe": "UTF-16",
    b"\xfe\xff": "UTF-16",
}
STRUCTURE = re.compile(rb'["\\{}\[\]]')
BETWEEN = b", \t\r\n"
SHOWN_CHARS = 120


@dataclass(frozen=True)
class BadRow:
    """A row that cannot be used: where it stands, why, and how its text begins."""

    where: str
    problem: str
    text: str


@dataclass
class Batch:
    """Some rows with the places they come from; `read_bytes` counts from the file's beginning."""

    rows: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    bad: list[BadRow] = field(default_factory=list)
    read_bytes: int = 0


def read_batches(source: Source, file: DataFile) -> Iterator[Batch]:
    """Yield the rows of one file, about a thousand at a time.

    Raises DataError for a file that is no such file at all: not Parquet, not UTF-8 but UTF-16.
    """
    prefix = f"{file.name} " if len(source.files) > 1 else ""
    with storage_errors(source.uri):
        try:
            if file.kind == "parquet":
                yield from _parquet(source.fs, file, prefix)
            elif file.kind == "arrow":
                yield from _arrow(source.fs, file, prefix)
            else:
                yield from _text(source.fs, file, prefix)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError, pa.ArrowTypeError) as error:
            raise DataError(f"{file.path}: is no readable {file.kind} file: {error}") from None


def _parquet(fs: pafs.FileSystem, file: DataFile, prefix: str) -> Iterator[Batch]:
    with fs.open_input_file(file.path) as stream:
        parquet = pq.ParquetFile(stream)
        total = max(1, parquet.metadata.num_rows)
        decode = row_decoder(parquet.schema_arrow)
        done = 0
        for batch in parquet.iter_batches(batch_size=ROWS):
            rows = decode(batch.to_pylist())
            yield _numbered(rows, done, prefix, file.size_bytes * (done + len(rows)) // total)
            done += len(rows)


def _arrow(fs: pafs.FileSystem, file: DataFile, prefix: str) -> Iterator[Batch]:
    """Read an Arrow IPC stream, as `datasets` writes it, or an Arrow IPC (Feather v2) file."""
    with fs.open_input_file(file.path) as stream:
        is_file = stream.read(6) == b"ARROW1"
        stream.seek(0)
        reader = pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)
        batches = map(reader.get_batch, range(reader.num_record_batches)) if is_file else reader
        decode = row_decoder(reader.schema)
        done = 0
        for whole in batches:
            for start in range(0, whole.num_rows, ROWS):
                rows = decode(whole.slice(start, ROWS).to_pylist())
                yield _numbered(rows, done, prefix, stream.tell())
                done += len(rows)


def _numbered(rows: list[dict[str, Any]], done: int, prefix: str, read_bytes: int) -> Batch:
    numbered = [(f"{prefix}row {done + i}", row) for i, row in enumerate(rows, start=1)]
    return Batch(numbered, read_bytes=read_bytes)


def _text(fs: pafs.FileSystem, file: DataFile, prefix: str) -> Iterator[Batch]:
    with fs.open_input_file(file.path) as raw:
        codec = codec_of(file.name)
        stream = pa.CompressedInputStream(raw, codec) if codec else raw
        head = stream.read(HEAD)
        for mark, encoding in OTHER_BOMS.items():
            if head.startswith(mark):
                raise DataError(
                    f"{file.path}: line 1, byte 1 (0x{mark[0]:02x}): the file is {encoding}, not "
                    f"UTF-8; convert it: iconv -f {encoding} -t UTF-8 {file.name} > utf8.jsonl"
                )
        head = head.removeprefix(UTF8_BOM)
        # Many JSONL files are called .json, and the other way round: the first sign tells.
        is_array = head.lstrip()[:1] == b"["
        if not is_array and head.lstrip().split(b"\n", 1)[0].strip() == b"{":
            raise DataError(
                f"{file.path}: line 1: an object over several lines; rows come one object a line "
                "(JSONL), or as one array of objects."
            )
        pieces = _elements(head, stream, file) if is_array else _lines(head, stream)
        batch = Batch()
        for where, text in pieces:
            try:
                batch.rows.append((prefix + where, parse_object(text)))
            except ValueError as error:
                shown = text[:SHOWN_CHARS].decode("utf-8", "replace").strip()
                batch.bad.append(BadRow(prefix + where, str(error), shown))
            if len(batch.rows) + len(batch.bad) >= ROWS:
                batch.read_bytes = raw.tell()
                yield batch
                batch = Batch()
        batch.read_bytes = file.size_bytes
        yield batch


def _lines(head: bytes, stream: BinaryIO) -> Iterator[tuple[str, bytes]]:
    """Yield the lines that are not blank, numbered from 1."""
    number = 0
    rest: list[bytes] = []
    chunk = head
    while chunk:
        *complete, last = chunk.split(b"\n")
        for line in complete:
            number += 1
            whole = b"".join([*rest, line])
            rest = []
            if whole.strip():
                yield f"line {number}", whole
        rest.append(last)
        chunk = stream.read(CHUNK)
    whole = b"".join(rest)
    if whole.strip():
        yield f"line {number + 1}", whole


def _elements(head: bytes, stream: BinaryIO, file: DataFile) -> Iterator[tuple[str, bytes]]:
    """Yield the elements of a JSON array as text, cut at its brackets, with the line each begins.

    Only brackets and strings are looked at; what stands between them is parsed element by element,
    so a broken element does not take the others with it.
    """
    buffer = head
    position = start = buffer.index(b"[") + 1
    line = 1 + buffer.count(b"\n", 0, start)
    depth = number = 0
    in_string = False
    while True:
        match = STRUCTURE.search(buffer, position)
        # A backslash needs the byte behind it.
        if match is None or (match[0] == b"\\" and match.end() == len(buffer)):
            chunk = stream.read(CHUNK)
            position = len(buffer) if match is None else match.start()
            if not chunk or (depth == 0 and position - start > MAX_BETWEEN):
                raise DataError(
                    f"{file.path}: line {line}: "
                    + ("the array is not closed" if not chunk else "holds no objects")
                    + f"; {number} elements stand before."
                )
            buffer, position, start = buffer[start:] + chunk, position - start, 0
            continue
        position = match.end()
        sign = match[0]
        if sign == b"\\":
            position += in_string
        elif sign == b'"':
            in_string = not in_string
        elif in_string:
            continue
        elif sign in b"{[":
            if depth == 0:
                # What is no object and no list, such as a number, shows up as a bad row.
                between = buffer[start : match.start()]
                if between.strip(BETWEEN):
                    number += 1
                    yield f"element {number} (line {line})", between.strip(BETWEEN)
                line += between.count(b"\n")
                start = match.start()
            depth += 1
        elif depth > 0:
            depth -= 1
            if depth == 0:
                number += 1
                yield f"element {number} (line {line})", buffer[start:position]
                line += buffer.count(b"\n", start, position)
                start = position
        else:
            between = buffer[start : match.start()].strip(BETWEEN)
            if between:
                yield f"element {number + 1} (line {line})", between
            if buffer[position:].strip() or stream.read(CHUNK).strip():
                raise DataError(f"{file.path}: line {line}: the file goes on behind the array.")
            return
