"""Arrow types as SQL reads them: what DuckDB has no type for is widened, so that nothing is cut."""

from typing import Any

import pyarrow as pa

from featurestore.core.table_rows import rebuilt


def as_read(kind: pa.DataType) -> pa.DataType:
    """Return the type a column has in SQL, at any depth.

    float16 is read as float32, which holds each of its values. A duration of nanoseconds is read as an int64
    count of them: DuckDB's INTERVAL counts microseconds, and would cut it in silence.
    """
    if pa.types.is_float16(kind):
        return pa.float32()
    if pa.types.is_duration(kind) and kind.unit == "ns":
        return pa.int64()
    return rebuilt(kind, as_read)


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
    wanted = pa.schema([f.with_type(as_read(f.type)) for f in schema], schema.metadata)
    return stream if wanted.equals(schema) else _Cast(stream, wanted)
