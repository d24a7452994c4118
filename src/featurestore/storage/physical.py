"""Arrow types as Delta and Parquet can hold them exactly, and back: nothing is cut, nothing is guessed."""

from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final

import pyarrow as pa

from featurestore.errors import SchemaError

TYPE_KEY: Final = "featurestore.type"
_Check = Callable[[pa.DataType], bool]

# Delta knows neither nanoseconds nor unsigned integers: such columns get a type that holds every value.
_STORED_AS: Final[tuple[tuple[_Check, pa.DataType], ...]] = (
    (pa.types.is_timestamp, pa.int64()),
    (pa.types.is_duration, pa.int64()),
    (pa.types.is_time64, pa.int64()),
    (pa.types.is_date64, pa.int64()),
    (pa.types.is_time32, pa.int32()),
    (pa.types.is_uint8, pa.int16()),
    (pa.types.is_uint16, pa.int32()),
    (pa.types.is_uint32, pa.int64()),
    (pa.types.is_uint64, pa.decimal128(20, 0)),
    (pa.types.is_float16, pa.float32()),
    (pa.types.is_large_string, pa.string()),
    (pa.types.is_string_view, pa.string()),
    (pa.types.is_large_binary, pa.binary()),
    (pa.types.is_binary_view, pa.binary()),
    (pa.types.is_fixed_size_binary, pa.binary()),
    (pa.types.is_null, pa.string()),
)
_AS_IT_IS: Final[tuple[_Check, ...]] = (
    pa.types.is_boolean,
    pa.types.is_signed_integer,
    pa.types.is_float32,
    pa.types.is_float64,
    pa.types.is_string,
    pa.types.is_binary,
    pa.types.is_date32,
)
_DELTA_NAMES: Final = {
    "bool": "boolean",
    "int8": "byte",
    "int16": "short",
    "int32": "integer",
    "int64": "long",
    "float": "float",
    "double": "double",
    "string": "string",
    "binary": "binary",
    "date32[day]": "date",
}


@lru_cache(maxsize=64)
def stored_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema as it is stored; fields whose type differs name their own in the metadata.

    Raises:
        SchemaError: a column that cannot be stored exactly; it is named.
    """
    fields = []
    for field in schema:
        try:
            kind = stored_type(field.type)
        except SchemaError as error:
            raise SchemaError(
                f"column {field.name!r} has type {field.type}, which a Delta table cannot hold exactly",
                hint=error.message,
                column=field.name,
            ) from error
        metadata = None if kind == field.type else {TYPE_KEY: str(field.type)}
        fields.append(pa.field(field.name, kind, field.nullable, metadata))
    return pa.schema(fields)


def stored_type(kind: pa.DataType) -> pa.DataType:
    """Return the type that holds every value of `kind` in Delta.

    Raises:
        SchemaError: there is none.
    """
    for check, stored in _STORED_AS:
        if check(kind):
            return stored
    if any(check(kind) for check in _AS_IT_IS):
        return kind
    if pa.types.is_dictionary(kind):
        return stored_type(kind.value_type)
    if pa.types.is_decimal(kind) and kind.precision <= 38:
        return pa.decimal128(kind.precision, kind.scale)
    return _stored_nested(kind)


def _stored_nested(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        return pa.list_(pa.field("element", stored_type(kind.value_type), kind.value_field.nullable))
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, stored_type(f.type), f.nullable) for f in kind])
    raise SchemaError(f"{kind} has no counterpart; store its parts as columns of their own", type=str(kind))


def to_stored(table: pa.Table) -> pa.Table:
    """Convert a table to its stored schema; exact, and without copies where only the name of a type changes.

    Raises:
        SchemaError: a column that cannot be stored exactly.
    """
    return _cast(table, stored_schema(table.schema))


def from_stored(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Convert stored columns back to their logical types."""
    return _cast(table.select(schema.names), schema)


def _cast(table: pa.Table, target: pa.Schema) -> pa.Table:
    columns = []
    for field in target:
        column = table.column(field.name)
        if column.type != field.type:
            try:
                column = _cast_column(column, field.type)
            except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
                raise SchemaError(
                    f"column {field.name!r} of type {column.type} cannot be stored as {field.type}",
                    hint=str(error),
                    column=field.name,
                ) from error
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=target)


def _cast_column(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if pa.types.is_null(column.type) or pa.types.is_null(kind):
        return pa.chunked_array([pa.nulls(len(column), kind)])
    if pa.types.is_fixed_size_binary(kind) or pa.types.is_date64(column.type) or pa.types.is_date64(kind):
        chunks = [
            pa.array(c.to_pylist(), kind) if pa.types.is_fixed_size_binary(kind) else c.view(kind)
            for c in column.chunks
        ]
        return pa.chunked_array(chunks, kind)
    return column.cast(kind)


def delta_schema(schema: pa.Schema) -> dict[str, Any]:
    """Write a stored schema the way Delta's log does."""
    return {"type": "struct", "fields": [_delta_field(f) for f in schema]}


def _delta_field(field: pa.Field) -> dict[str, Any]:
    metadata = {k.decode(): v.decode() for k, v in (field.metadata or {}).items()}
    return {
        "name": field.name,
        "type": _delta_type(field.type),
        "nullable": field.nullable,
        "metadata": {k: v for k, v in metadata.items() if k == TYPE_KEY},
    }


def _delta_type(kind: pa.DataType) -> Any:
    if pa.types.is_decimal(kind):
        return f"decimal({kind.precision},{kind.scale})"
    if pa.types.is_list(kind):
        return {
            "type": "array",
            "elementType": _delta_type(kind.value_type),
            "containsNull": kind.value_field.nullable,
        }
    if pa.types.is_struct(kind):
        return delta_schema(pa.schema(list(kind)))
    return _DELTA_NAMES[str(kind)]
