"""Arrow types as SQL reads them: what DuckDB has no type for is widened, so that nothing is cut."""

from typing import Any

import pyarrow as pa


def as_read(kind: pa.DataType) -> pa.DataType:
    """Return the type a column has in SQL, at any depth.

    float16 is read as float32, which holds each of its values. A duration of nanoseconds is read as an int64
    count of them: DuckDB's INTERVAL counts microseconds, and would cut it in silence.
    """
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_duration(kind) and kind.unit == "ns":
        return pa.int64()
    if pa.types.is_struct(kind):
        return pa.struct([_as_read(field) for field in kind])
    if pa.types.is_map(kind):
        return pa.map_(_as_read(kind.key_field), _as_read(kind.item_field))
    return _list_as_read(kind)


def _list_as_read(kind: pa.DataType) -> pa.DataType:
    if pa.types.is_list(kind):
        return pa.list_(_as_read(kind.value_field))
    if pa.types.is_large_list(kind):
        return pa.large_list(_as_read(kind.value_field))
    if pa.types.is_fixed_size_list(kind):
        return pa.list_(_as_read(kind.value_field), kind.list_size)
    return kind


def _as_read(field: pa.Field) -> pa.Field:
    return field.with_type(as_read(field.type))


class _Cast:
    """A stream whose columns take other types on the way."""

    def __init__(self, stream: Any, schema: pa.Schema) -> None:
        self._stream = stream
        self._schema = schema

    def __arrow_c_stream__(self, requested_schema: object = None) -> object:
        reader = pa.RecordBatchReader.from_stream(self._stream).cast(self._schema)
        return reader.__arrow_c_stream__(requested_schema)


def readable(stream: Any) -> Any:
    """Return a table or stream with types that DuckDB holds exactly: itself where it has them already.

    Args:
        stream: has the Arrow PyCapsule protocol, and a `schema`.
    """
    schema: pa.Schema = stream.schema
    wanted = pa.schema([_as_read(field) for field in schema], schema.metadata)
    return stream if wanted.equals(schema) else _Cast(stream, wanted)
