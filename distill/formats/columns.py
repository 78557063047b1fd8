"""Arrow types for the columns of training rows, found by looking at every value.

Text, numbers, lists of them and lists of messages get the types that anybody expects. What has no
one type (free-form objects, a column of numbers and texts) is stored as JSON in Arrow's canonical
`arrow.json` type, which Parquet annotates and Hugging Face `datasets` reads as `Json`: so nothing
is bent to fit, and every value comes back as it was.
"""

from __future__ import annotations

import datetime
import decimal
import json
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import pyarrow as pa

from cluster.errors import DataError

JSON = pa.json_()
# A marker inside this module: an integer that a double holds exactly, so that 1 and 0.5 may share
# a column of doubles. `schema` makes it int64.
SMALL_INT = pa.int32()
EXACT_IN_DOUBLE = 2**53
MESSAGE_KEYS = ({"role", "content"}, {"from", "value"})
Decoder = Callable[[Any], Any]


class Columns:
    """The columns of rows seen so far, each with the narrowest type that holds all its values."""

    def __init__(self) -> None:
        """Begin without a column."""
        self._types: dict[str, pa.DataType] = {}

    def observe(self, rows: Iterable[dict[str, Any]]) -> None:
        """Widen the columns by these rows."""
        for row in rows:
            for name, value in row.items():
                found = type_of(value)
                known = self._types.get(name)
                self._types[name] = found if known is None else merged(known, found)

    def schema(self) -> pa.Schema:
        """Return the schema of everything seen; a column of nulls is text."""
        return pa.schema([(name, _final(found)) for name, found in self._types.items()])


def type_of(value: Any) -> pa.DataType:
    """Return the type of one value."""
    match value:
        case None:
            return pa.null()
        case bool():
            return pa.bool_()
        case int():
            if abs(value) <= EXACT_IN_DOUBLE:
                return SMALL_INT
            return pa.int64() if -(2**63) <= value < 2**63 else JSON
        case float():
            return pa.float64()
        case str():
            return pa.string()
        case list():
            element = pa.null()
            for entry in value:
                element = merged(element, type_of(entry))
            return pa.list_(element)
        case dict():
            if any(keys <= value.keys() for keys in MESSAGE_KEYS):
                return pa.struct([(key, type_of(entry)) for key, entry in value.items()])
            return JSON
        case _:
            return pa.scalar(value).type


def merged(a: pa.DataType, b: pa.DataType) -> pa.DataType:
    """Return the narrowest type that holds the values of both."""
    if a.equals(b) or pa.types.is_null(b):
        return a
    if pa.types.is_null(a):
        return b
    numbers = {str(a), str(b)}
    if numbers == {str(SMALL_INT), "int64"}:
        return pa.int64()
    if numbers == {str(SMALL_INT), "double"}:
        return pa.float64()
    if pa.types.is_list(a) and pa.types.is_list(b):
        return pa.list_(merged(a.value_type, b.value_type))
    if pa.types.is_struct(a) and pa.types.is_struct(b):
        fields = {field.name: field.type for field in a}
        for field in b:
            known = fields.get(field.name)
            fields[field.name] = field.type if known is None else merged(known, field.type)
        return pa.struct(list(fields.items()))
    return JSON


def record_batch(rows: Sequence[dict[str, Any]], schema: pa.Schema) -> pa.RecordBatch:
    """Build a batch of rows; a missing column is null."""
    arrays = []
    for field in schema:
        values = [row.get(field.name) for row in rows]
        storage = _storage(field.type)
        if not storage.equals(field.type):
            try:
                values = [_encoded(value, field.type) for value in values]
            except DataError as error:
                fix = f"--drop {field.name} leaves it out"
                raise DataError(f"{field.name}: {error}; {fix}") from None
        array = pa.array(values, type=storage)
        # pyarrow builds no extension type inside a list from Python values, but it casts to one.
        arrays.append(array if array.type.equals(field.type) else array.cast(field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def row_decoder(schema: pa.Schema) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    """Return a function that turns the JSON columns of a batch's rows back into values, in place.

    Null keys of messages go too: a struct has all keys in all rows.
    """
    decoders = {field.name: decode for field in schema if (decode := _decoder(field.type))}

    def decode_rows(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        for row in rows:
            for name, decode in decoders.items():
                if row[name] is not None:
                    row[name] = decode(row[name])
        return rows

    return decode_rows


def json_text(value: Any) -> str:
    """Return a value's JSON text, Unicode as it is; dates become ISO 8601, decimals text.

    Raises DataError for what JSON has no place for: NaN, infinity, bytes, half a surrogate pair.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, default=_plain)
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"half of a surrogate pair, {error.object[error.start]!a}") from None
    except ValueError as error:
        is_number = "float" in str(error)
        raise DataError("NaN or infinity, no JSON number" if is_number else str(error)) from None
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, (datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, datetime.timedelta)):
        return str(value)
    raise ValueError(f"a value of type {type(value).__name__} has no place in JSON")


def _final(found: pa.DataType) -> pa.DataType:
    if pa.types.is_null(found):
        return pa.string()
    if found.equals(SMALL_INT):
        return pa.int64()
    if pa.types.is_list(found):
        return pa.list_(_final(found.value_type))
    if pa.types.is_struct(found):
        return pa.struct([(field.name, _final(field.type)) for field in found])
    return found


def _storage(wanted: pa.DataType) -> pa.DataType:
    if isinstance(wanted, pa.JsonType):
        return pa.string()
    if pa.types.is_list(wanted):
        return pa.list_(_storage(wanted.value_type))
    if pa.types.is_struct(wanted):
        return pa.struct([(field.name, _storage(field.type)) for field in wanted])
    return wanted


def _encoded(value: Any, wanted: pa.DataType) -> Any:
    if value is None:
        return None
    if isinstance(wanted, pa.JsonType):
        return json_text(value)
    if pa.types.is_list(wanted):
        return [_encoded(entry, wanted.value_type) for entry in value]
    if pa.types.is_struct(wanted):
        return {field.name: _encoded(value.get(field.name), field.type) for field in wanted}
    return value


def _decoder(stored: pa.DataType) -> Decoder | None:
    """Return how a value of a type is decoded; None if there is nothing to do."""
    if isinstance(stored, pa.JsonType):
        return json.loads
    if pa.types.is_list(stored) or pa.types.is_large_list(stored):
        inner = _decoder(stored.value_type)
        if inner is None:
            return None
        return lambda values: [None if v is None else inner(v) for v in values]
    if pa.types.is_struct(stored):
        fields = {field.name: _decoder(field.type) for field in stored}
        is_message = any(keys <= fields.keys() for keys in MESSAGE_KEYS)
        if not is_message and not any(fields.values()):
            return None

        def decode(value: dict[str, Any]) -> dict[str, Any]:
            return {
                name: inner(value[name]) if inner and value[name] is not None else value[name]
                for name, inner in fields.items()
                if value[name] is not None or not is_message or name == "content"
            }

        return decode
    return None
