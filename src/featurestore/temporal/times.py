"""Time columns as int64 nanoseconds: any unit, any zone, exactly, or a typed error."""

from typing import Final

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.core.time import INT64_MAX, INT64_MIN, BoolArray, Int64Array, scale_to_ns
from featurestore.errors import SchemaError

_DAY_SECONDS: Final = 86_400
_INT32: Final = np.dtype(np.int32)
_INT64: Final = np.dtype(np.int64)


def is_time_type(kind: pa.DataType) -> bool:
    """Whether `times_ns` can read a column of this type."""
    return bool(pa.types.is_timestamp(kind) or pa.types.is_int64(kind) or pa.types.is_date(kind))


def times_ns(column: pa.ChunkedArray | pa.Array, name: str) -> tuple[Int64Array, BoolArray | None]:
    """Read a time column as ns since 1970 UTC.

    A zone changes how a time is shown, not when it is: zoned columns are read as they are stored, and
    naive ones mean UTC. int64 means nanoseconds. Dates mean their midnight in UTC.

    Args:
        column: timestamp of any unit and zone, int64, date32 or date64; chunks and offsets are fine.
        name: what messages call it.

    Returns:
        `(n,)` times (0 under a null) and `(n,)` True where null, or `None` where nothing is null. Without
        nulls, a single chunk of ns is not copied.

    Raises:
        SchemaError: another type.
        TimeOverflowError: a time that int64 nanoseconds cannot hold; the first such value is named.
    """
    array = one_array(column)
    kind = array.type
    if not is_time_type(kind):
        raise SchemaError(
            f"time column {name!r} is of type {kind}",
            hint="a timestamp of any unit and zone, a date, or int64 nanoseconds since 1970 UTC",
            column=name,
        )
    is_date = pa.types.is_date32(kind)
    values, nulls = _fixed(array, _INT32 if is_date else _INT64), None
    if array.null_count:
        nulls = np.asarray(array.is_null())
        values = np.where(nulls, values.dtype.type(0), values)
    if is_date:
        return scale_to_ns(values * np.int64(_DAY_SECONDS), "s", what=f"time column {name!r}"), nulls
    unit = "ms" if pa.types.is_date64(kind) else getattr(kind, "unit", "ns")
    if unit == "ns":
        return values, nulls
    return scale_to_ns(values, unit, what=f"time column {name!r}"), nulls


def _fixed(array: pa.Array, dtype: np.dtype[np.int64] | np.dtype[np.int32]) -> Int64Array:
    """Return the stored integers of an array; what lies under a null is arbitrary."""
    data = array.buffers()[1]
    if len(array) == 0 or data is None:
        return np.zeros(len(array), dtype)
    return np.frombuffer(data, dtype, count=len(array), offset=array.offset * dtype.itemsize)


def one_array(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    """Return the column as one array; only several chunks are copied."""
    if isinstance(column, pa.ChunkedArray):
        if column.num_chunks == 0:
            return pa.nulls(0, column.type)
        return column.chunk(0) if column.num_chunks == 1 else column.combine_chunks()
    return column


def add_saturating(times: Int64Array, nanos: int) -> Int64Array:
    """Add a duration to times, stopping at the ends of int64 instead of wrapping.

    Args:
        times: `(n,)` ns.
        nanos: within int64, of either sign.
    """
    if nanos == 0:
        return times
    if nanos > 0:
        return np.minimum(times, np.int64(INT64_MAX - nanos)) + np.int64(nanos)
    return np.maximum(times, np.int64(INT64_MIN - nanos)) + np.int64(nanos)


def rows_from(event_ns: Int64Array, first_ns: int) -> int | BoolArray:
    """Return which rows are not older than `first_ns`.

    Returns:
        Where they are the last ones, how many there are before them; else `(n,)` True for each of them.
    """
    near: BoolArray = event_ns >= first_ns
    start = int(near.argmax()) if near.any() else len(near)
    return start if near[start:].all() else near


def valid_mask(column: pa.ChunkedArray | pa.Array) -> BoolArray | None:
    """True where there is a value; `None` where there is one everywhere. NaN is a value."""
    return np.asarray(pc.is_valid(column)) if column.null_count else None
