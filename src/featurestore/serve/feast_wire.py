"""Feast's protobuf wire, written by hand: column by column with NumPy, not message by message.

Semantics are the corrected ones: entity columns first, features in request order; NULL_VALUE, NOT_FOUND and
OUTSIDE_MAX_AGE where they are true, with an unset value; statuses and timestamps always of full length.
"""

from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.core.time import INT64_MIN, Int64Array
from featurestore.errors import SchemaError
from featurestore.serve.codec import fixed_values
from featurestore.serve.proto import feast_compat_pb2 as pb
from featurestore.serve.request import Column
from featurestore.serve.response import OnlineResponse

_UNSET: Final = b"\x0a\x00"


def encode_feast(response: OnlineResponse, entities: Sequence[str]) -> bytes:
    """Write an answer as a Feast GetOnlineFeaturesResponse.

    Args:
        entities: The columns of the request that come back, before the features.

    Raises:
        SchemaError: a feature of a type that Feast's values cannot carry.
    """
    rows = response.num_rows
    out = [_metadata([*entities, *response.names])]
    readers = response.readers.arrow() if entities else None
    present = _tagged(0x12, b"\x01" * rows)
    for name in entities:
        column = pa.array([]) if readers is None else readers.column(name).combine_chunks()
        out.append(_tagged(0x12, _values(column) + present + b"\x1a\x00" * rows))
    codes = response.status_codes() + np.int8(1)
    events = response.event_ns()
    times: dict[str, bytes] = {}
    for at, column in enumerate(response.plan.join.columns):
        view = response.plan.origins[at][0]
        if view not in times:
            times[view] = _timestamps(events[at])
        body = _values(response.array(column.cell)) + _tagged(0x12, codes[at].tobytes()) + times[view]
        out.append(_tagged(0x12, body))
    out.append(b"\x18\x01")
    return b"".join(out)


def _metadata(names: Sequence[str]) -> bytes:
    listed = b"".join([_tagged(0x0A, name.encode()) for name in names])
    return _tagged(0x0A, _tagged(0x0A, listed))


def _values(column: pa.Array) -> bytes:
    """Write a column as `repeated Value values = 1`, unset where null."""
    cells = _cells(column)
    if column.null_count:
        null = column.is_null().to_pylist()
        return b"".join([_UNSET if n else cell for n, cell in zip(null, cells, strict=True)])
    return cells.whole if isinstance(cells, _Matrix) else b"".join(cells)


class _Matrix(Sequence[bytes]):
    """Cells of equal width, `(n, width)` bytes."""

    def __init__(self, cells: npt.NDArray[np.uint8]) -> None:
        self._rows, self._width = len(cells), int(cells.shape[1])
        self.whole = cells.tobytes()

    def __len__(self) -> int:
        return self._rows

    def __getitem__(self, at: Any) -> Any:
        if not 0 <= at < len(self):
            raise IndexError(at)
        return self.whole[at * self._width : (at + 1) * self._width]


def _cells(column: pa.Array) -> Sequence[bytes]:
    """Write each value as an entry of `values`; what stands for a null is arbitrary."""
    kind = column.type
    if pa.types.is_floating(kind):
        wide = pa.types.is_float64(kind)
        return _floats(
            fixed_values(column if wide else column.cast(pa.float32()), np.dtype("<f8" if wide else "<f4"))
        )
    if pa.types.is_boolean(kind):
        return _varint_cells(fixed_values(column, np.dtype("u1")).astype(np.int64), 0x38)
    if pa.types.is_integer(kind):
        small = kind.bit_width < 32 or pa.types.is_int32(kind)
        numbers = fixed_values(column, np.dtype(kind.to_pandas_dtype()))
        return _varint_cells(numbers.astype(np.int64), 0x18 if small else 0x20)
    if pa.types.is_timestamp(kind):
        nanos = fixed_values(column.cast(pa.timestamp("ns", kind.tz)), np.dtype("<i8"))
        return _varint_cells(np.floor_divide(nanos, 10**9).astype(np.int64), 0x40)
    write = _writer(kind)
    return [_UNSET if value is None else _tagged(0x0A, write(value)) for value in column.to_pylist()]


def _writer(kind: pa.DataType) -> Callable[[Any], bytes]:
    """Return what writes one Value of a type of variable width.

    Raises:
        SchemaError: Feast has no such value.
    """
    plain = kind.value_type if pa.types.is_dictionary(kind) else kind
    if pa.types.is_null(plain):
        return lambda _: b""
    if pa.types.is_string(plain) or pa.types.is_large_string(plain) or pa.types.is_string_view(plain):
        return lambda value: _tagged(0x12, value.encode())
    if pa.types.is_binary(plain) or pa.types.is_large_binary(plain) or pa.types.is_fixed_size_binary(plain):
        return lambda value: _tagged(0x0A, value)
    if pa.types.is_list(plain) or pa.types.is_large_list(plain) or pa.types.is_fixed_size_list(plain):
        field = _list_field(plain.value_type)
        return lambda value: _list_value(field, value)
    if pa.types.is_decimal(plain) or pa.types.is_date(plain) or pa.types.is_time(plain):
        return lambda value: _tagged(0x12, str(value).encode())
    raise SchemaError(
        f"a feature of type {kind} cannot be carried by Feast's protocol", hint="use featurestore.v1"
    )


def _list_field(kind: pa.DataType) -> str:
    if pa.types.is_boolean(kind):
        return "bool_list_val"
    if pa.types.is_float64(kind):
        return "double_list_val"
    if pa.types.is_floating(kind):
        return "float_list_val"
    if pa.types.is_integer(kind):
        return "int32_list_val" if kind.bit_width < 32 or pa.types.is_int32(kind) else "int64_list_val"
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return "string_list_val"
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return "bytes_list_val"
    raise SchemaError(f"a list of {kind} cannot be carried by Feast's protocol", hint="use featurestore.v1")


def _list_value(field: str, value: Sequence[Any]) -> bytes:
    message = pb.Value()
    empty = {"string_list_val": "", "bytes_list_val": b""}.get(field, 0)
    # Feast's lists have no nulls.
    getattr(message, field).val.extend([empty if v is None else v for v in value])
    getattr(message, field).SetInParent()
    return message.SerializeToString()


def _floats(values: npt.NDArray[np.generic]) -> _Matrix:
    size = values.dtype.itemsize
    cells = np.empty((len(values), 3 + size), np.uint8)
    cells[:, 0] = 0x0A
    cells[:, 1] = 1 + size
    cells[:, 2] = 0x29 if size == 8 else 0x35
    cells[:, 3:] = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), size)
    return _Matrix(cells)


def _varint_cells(values: Int64Array, tag: int) -> Sequence[bytes]:
    """Write integers as entries of `values`; negative ones take ten bytes, as protobuf has it."""
    if len(values) == 0:
        return []
    left = values.astype(np.uint64)
    digits = np.empty((len(values), 10), np.uint8)
    for at in range(10):
        digits[:, at] = (left & np.uint64(0x7F)).astype(np.uint8)
        left = left >> np.uint64(7)
    used = np.maximum(10 - np.argmax(digits[:, ::-1] != 0, axis=1), 1)
    used[~digits.any(axis=1)] = 1
    more = np.arange(10) < (used - 1)[:, None]
    digits |= np.where(more, np.uint8(0x80), np.uint8(0))
    raw = digits.tobytes()
    head = [bytes((0x0A, 1 + n, tag)) for n in range(11)]
    return [head[n] + raw[at * 10 : at * 10 + n] for at, n in enumerate(used.tolist())]


def _timestamps(event_ns: Int64Array) -> bytes:
    """Write `repeated Timestamp event_timestamps = 3`, empty where no row was used."""
    out = []
    for nanos in event_ns.tolist():
        if nanos == INT64_MIN:
            out.append(b"\x1a\x00")
            continue
        seconds, fraction = divmod(nanos, 10**9)
        body = (b"\x08" + _varint(seconds) if seconds else b"") + (
            b"\x10" + _varint(fraction) if fraction else b""
        )
        out.append(_tagged(0x1A, body))
    return b"".join(out)


def _tagged(tag: int, body: bytes) -> bytes:
    return bytes((tag,)) + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    value &= 2**64 - 1
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def feast_column(values: Sequence[pb.Value]) -> Column:
    """Return Feast values as Python values, `None` where unset."""
    return [python_value(value) for value in values]


def python_value(value: pb.Value) -> Any:
    """Return a Feast value as a Python value."""
    kind = value.WhichOneof("val")
    if kind is None or kind == "null_val":
        return None
    found = getattr(value, kind)
    if kind.endswith("_list_val"):
        return list(found.val)
    return found
