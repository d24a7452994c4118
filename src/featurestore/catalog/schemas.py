"""Schemas as readable text that reads back exactly, and the differences between them."""

import base64
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Final

import pyarrow as pa

from featurestore.core.names import near
from featurestore.errors import SchemaError

_IPC: Final = "arrow:"
_SIMPLE: Final[Mapping[str, pa.DataType]] = {
    str(kind): kind
    for kind in (
        *(pa.bool_(), pa.int8(), pa.int16(), pa.int32(), pa.int64()),
        *(pa.uint8(), pa.uint16(), pa.uint32(), pa.uint64()),
        *(pa.float16(), pa.float32(), pa.float64(), pa.string(), pa.large_string(), pa.string_view()),
        *(pa.binary(), pa.large_binary(), pa.binary_view(), pa.date32(), pa.date64(), pa.null()),
        *(pa.time32("s"), pa.time32("ms"), pa.time64("us"), pa.time64("ns")),
        *(pa.duration(u) for u in ("s", "ms", "us", "ns")),
        *(pa.timestamp(u) for u in ("s", "ms", "us", "ns")),
        *(pa.timestamp(u, "UTC") for u in ("s", "ms", "us", "ns")),
        pa.dictionary(pa.int32(), pa.string()),
    )
}


def type_text(kind: pa.DataType) -> str:
    """Write an Arrow type so that `type_of_text` gives the very same one back.

    A plain type is its Arrow name, such as `timestamp[ns, tz=UTC]`; any other adds its exact form in
    base64 behind its name.
    """
    text = str(kind)
    if _SIMPLE.get(text) == kind:
        return text
    exact = pa.schema([pa.field("", kind)]).serialize().to_pybytes()
    return f"{text} {_IPC}{base64.b64encode(exact).decode()}"


def type_of_text(text: str) -> pa.DataType:
    """Read back what `type_text` wrote."""
    simple = _SIMPLE.get(text)
    if simple is not None:
        return simple
    exact = base64.b64decode(text.rpartition(_IPC)[2])
    return pa.ipc.read_schema(pa.py_buffer(exact)).field(0).type


def schema_spec(schema: pa.Schema) -> list[list[str]]:
    """Return a schema as `[[name, type], …]`; nullability and metadata are no part of it."""
    return [[field.name, type_text(field.type)] for field in schema]


def schema_of_spec(spec: Iterable[Sequence[str]]) -> pa.Schema:
    """Read back what `schema_spec` wrote."""
    return pa.schema([pa.field(name, type_of_text(text)) for name, text in spec])


def schema_difference(recorded: pa.Schema, found: pa.Schema) -> list[str]:
    """Say how a schema differs from the recorded one, a line per column; empty where it does not.

    The order of columns is no difference: they are read by name.
    """
    old = {field.name: field.type for field in recorded}
    new = {field.name: field.type for field in found}
    gone = [f"{name}: {kind} is gone" for name, kind in old.items() if name not in new]
    changed = [f"{n}: {old[n]} became {new[n]}" for n in old if n in new and old[n] != new[n]]
    added = [f"{name}: {new[name]} is new" for name in new if name not in old]
    return [*gone, *changed, *added]


def check_schema(what: str, recorded: pa.Schema, found: pa.Schema, columns: Iterable[str]) -> None:
    """Refuse a schema in which one of `columns` is gone or has another type than was recorded.

    Raises:
        SchemaError: a column drifted; the message holds the whole difference.
    """
    old = {field.name: field.type for field in recorded}
    new = {field.name: field.type for field in found}
    broken = [c for c in columns if c in old and new.get(c) != old[c]]
    if broken:
        lines = schema_difference(recorded, found)
        raise SchemaError(
            f"{what} has other columns than at its last apply:\n    " + "\n    ".join(lines),
            hint=f"{broken[0]!r} is in use: restore it, or make a new source for the new table",
            columns=broken,
        )


def field_of(schema: pa.Schema, column: str, what: str) -> pa.Field:
    """Return a column's field.

    Raises:
        SchemaError: it is not there, or more than once.
    """
    index = schema.get_field_index(column)
    if index < 0:
        twice = schema.names.count(column) > 1
        raise SchemaError(
            f"{what} has " + (f"more than one column {column!r}" if twice else f"no column {column!r}"),
            hint=near(column, schema.names),
            column=column,
        )
    return schema.field(index)


def bare(schema: pa.Schema) -> pa.Schema:
    """Return a schema with names and types alone."""
    return pa.schema([pa.field(field.name, field.type) for field in schema])


def is_time(kind: pa.DataType) -> bool:
    """Tell whether a column can be an event or created timestamp: timestamp, date, or int64 ns."""
    return bool(pa.types.is_timestamp(kind) or pa.types.is_date(kind) or kind == pa.int64())


def key_kind(kind: pa.DataType) -> str | None:
    """Return `string` or `integer` for a type that can be a join key, else `None`."""
    value: Any = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_string(value) or pa.types.is_large_string(value) or pa.types.is_string_view(value):
        return "string"
    return "integer" if pa.types.is_integer(value) else None
