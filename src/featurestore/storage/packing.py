"""Packed shards: numeric features row-major in one column per type, so that one gather makes a batch."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.core.table_rows import valid_rows
from featurestore.storage.manifest import Pack

ENTITY_CODE: Final = "entity_code"
_PACKABLE: Final = {
    str(t): t
    for t in (
        pa.int8(),
        pa.int16(),
        pa.int32(),
        pa.int64(),
        pa.uint8(),
        pa.uint16(),
        pa.uint32(),
        pa.uint64(),
        pa.float16(),
        pa.float32(),
        pa.float64(),
        pa.bool_(),
    )
}


@dataclass(frozen=True, slots=True)
class Packed:
    """A shard's rows, packed.

    Attributes:
        batch: Plain columns, then packs and their masks, then `entity_code`.
        nulls: Null cells per packed column, where there are any.
    """

    batch: pa.RecordBatch
    nulls: dict[str, int]


def plan_packs(schema: pa.Schema, features: Sequence[str]) -> tuple[Pack, ...]:
    """Group numeric and boolean features by type, in order; others stay plain columns.

    A boolean pack holds one byte per value.
    """
    groups: dict[str, list[str]] = {}
    for name in features:
        kind = str(schema.field(name).type)
        if kind in _PACKABLE:
            groups.setdefault(kind, []).append(name)
    return tuple(
        Pack(column=f"x_{kind}", mask=f"m_{kind}", dtype=kind, features=tuple(names))
        for kind, names in groups.items()
    )


def pack_table(table: pa.Table, packs: Sequence[Pack], codes: np.ndarray) -> Packed:
    """Pack a table's features; a null holds NaN in float packs and 0 in others, and 0 in the mask.

    Args:
        codes: `(n,)` int32 entity codes of the rows.

    Cost:
        One copy of the packed values.
    """
    packed = {name for pack in packs for name in pack.features}
    arrays: dict[str, pa.Array] = {
        name: _flat(table.column(name)) for name in table.column_names if name not in packed
    }
    nulls: dict[str, int] = {}
    for pack in packs:
        values, mask = _pack(table, pack)
        arrays[pack.column] = _fixed_list(values, len(pack.features))
        if mask is not None:
            arrays[str(pack.mask)] = _fixed_list(mask, len(pack.features))
            nulls[pack.column] = int(mask.size - np.count_nonzero(mask))
    arrays[ENTITY_CODE] = pa.array(codes, pa.int32())
    return Packed(pa.RecordBatch.from_arrays(list(arrays.values()), names=list(arrays)), nulls)


def unpack(values: np.ndarray, mask: np.ndarray | None, column: int, dtype: str) -> pa.Array:
    """Return one feature of a pack as an Arrow array of its own type, nulls back in place."""
    kind = _PACKABLE[dtype]
    invalid = None if mask is None else mask[:, column] == 0
    picked = np.ascontiguousarray(values[:, column])
    if pa.types.is_boolean(kind):
        picked = picked.view(np.bool_)
    return pa.array(picked, kind, mask=invalid if invalid is not None and invalid.any() else None)


def numpy_type(dtype: str) -> np.dtype[Any]:
    """Return the NumPy type of a pack's values; booleans are bytes."""
    kind = _PACKABLE[dtype]
    return np.dtype(np.uint8) if pa.types.is_boolean(kind) else np.dtype(kind.to_pandas_dtype())


def decoded(column: pa.Array) -> pa.Array:
    """Undo dictionary encoding: memory-mapped shards and Parquet statistics want the values."""
    return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column


def _pack(table: pa.Table, pack: Pack) -> tuple[np.ndarray, np.ndarray | None]:
    rows, width = table.num_rows, len(pack.features)
    values = np.empty((rows, width), numpy_type(pack.dtype))
    missing = any(table.column(name).null_count for name in pack.features)
    mask = np.ones((rows, width), np.uint8) if missing else None
    fill = np.nan if values.dtype.kind == "f" else 0
    for place, name in enumerate(pack.features):
        column = _flat(table.column(name))
        values[:, place] = _numbers(column, values.dtype)
        if column.null_count and mask is not None:
            valid = valid_rows(column)
            mask[:, place] = valid
            np.copyto(values[:, place], fill, where=~valid)
    return values, mask


def _numbers(column: pa.Array, dtype: np.dtype[Any]) -> np.ndarray:
    """Return a column's values, whatever lies there where one is null; only booleans are copied."""
    data = column.buffers()[1]
    if len(column) == 0 or data is None:
        return np.zeros(len(column), dtype)
    if pa.types.is_boolean(column.type):
        bits = np.frombuffer(data, np.uint8)
        return np.unpackbits(bits, count=column.offset + len(column), bitorder="little")[column.offset :]
    return np.frombuffer(data, dtype, len(column), column.offset * dtype.itemsize)


def _fixed_list(values: np.ndarray, width: int) -> pa.FixedSizeListArray:
    flat = values.reshape(-1)
    kind = pa.from_numpy_dtype(flat.dtype)
    array = pa.Array.from_buffers(kind, flat.size, [None, pa.py_buffer(flat)])
    return pa.FixedSizeListArray.from_arrays(array, width)


def _flat(column: pa.ChunkedArray) -> pa.Array:
    if column.num_chunks == 1:
        return decoded(column.chunk(0))
    return decoded(column.combine_chunks())
