"""Entity keys of several tables as shared, dense int32 codes."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Final, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.core.time import INT64_MAX, Int64Array
from featurestore.errors import SchemaError
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.key_kinds import key_kind
from featurestore.temporal.rows import Int32Array, frozen, scratch
from featurestore.temporal.threads import run_in_turn, split, thread_count

_kernels: Any = lazy_module("featurestore.temporal.key_kernels")

Column: TypeAlias = pa.ChunkedArray | pa.Array
_UInt8Array = npt.NDArray[np.uint8]

# An integer key takes the direct table where its range is at most this, or twice the rows.
_DIRECT_RANGE: Final = 1 << 16
# Up to this range a code is just the distance from the least value; unused ones cost next to nothing.
_SHIFT_RANGE: Final = 1 << 12
# The least of so many values at a column's head is most often the least of all.
_HEAD_ROWS: Final = 1 << 10
# Columns in more pieces than this are joined first: each piece costs some microseconds.
_MANY_CHUNKS: Final = 64
_NO_BITMAP: Final[_UInt8Array] = frozen(np.empty(0, np.uint8))
_NO_OFFSETS: Final[Int32Array] = frozen(np.empty(0, np.int32))


@dataclass(frozen=True, slots=True)
class KeyCodes:
    """Entity codes of each side.

    Attributes:
        codes: per side `(n,)`; equal keys have equal codes on every side, -1 where a key column is null.
        entities: codes are 0 to entities - 1, in no promised order. Every one is in use, except that a
            dictionary's unused values are numbered too, and up to 4,096 gaps between small integers.
    """

    codes: tuple[Int32Array, ...]
    entities: int


def code_keys(
    sides: Sequence[Sequence[Column]], names: Sequence[str], *, threads: int | None = None
) -> KeyCodes:
    """Give every distinct key a number that all sides share.

    Composite keys are compared part by part, so (1, 23) is not (12, 3). Integers of any width, strings of
    any Arrow layout and dictionaries of either compare by value.

    Args:
        sides: the key columns of each table, in the same order on every side, at least one.
        names: what messages call each key column.
        threads: `None` for one per core.

    Raises:
        SchemaError: no key column, one whose type cannot be a key, or whose kind differs between sides.

    Cost: O(n), one read of the keys; 4 bytes per row, and 28 per distinct key while hashing.
    """
    if not names:
        raise SchemaError("keys were to be numbered without a key column", hint="one entity needs no codes")
    counts = [len(side[0]) for side in sides]
    codes, entities = _code_column([side[0] for side in sides], names[0], threads)
    for place in range(1, len(names)):
        other, size = _code_column([side[place] for side in sides], names[place], threads)
        pairs = np.empty(len(codes), np.int64)
        _kernels.combine(frozen(codes), frozen(other), size, pairs)
        entities = _code_pairs(pairs, entities * size, codes, threads)
    edges = [0, *np.cumsum(counts).tolist()]
    return KeyCodes(tuple(codes[a:b] for a, b in pairwise(edges)), entities)


def _code_column(columns: Sequence[Column], name: str, threads: int | None) -> tuple[Int32Array, int]:
    # The codes of the sides lie one after the other.
    columns = _typed_nulls(columns)
    kinds = [key_kind(column.type, name) for column in columns]
    for column, kind in zip(columns, kinds, strict=True):
        if kind != kinds[0]:
            raise SchemaError(
                f"key column {name!r} is {columns[0].type} on one side and {column.type} on another",
                hint="cast one of them: keys of different kinds are never equal",
                column=name,
            )
    arrays = [array for column in columns for array in _chunks(column)]
    codes: Int32Array = scratch(sum(len(array) for array in arrays), np.dtype(np.int32))
    edges = [0, *np.cumsum([len(array) for array in arrays]).tolist()]
    outs = [codes[a:b] for a, b in pairwise(edges)]
    if any(pa.types.is_dictionary(array.type) for array in arrays):
        return codes, _code_dictionaries(arrays, outs, kinds[0], threads)
    return codes, _code_arrays(arrays, outs, kinds[0], threads)


def _typed_nulls(columns: Sequence[Column]) -> list[Column]:
    # A column that is null throughout may have no type of its own; it matches nothing of any type (PIT-4).
    known = next((c.type for c in columns if not pa.types.is_null(c.type)), pa.int64())
    known = known.value_type if pa.types.is_dictionary(known) else known
    return [pa.nulls(len(c), known) if pa.types.is_null(c.type) else c for c in columns]


def _chunks(column: Column) -> list[pa.Array]:
    if not isinstance(column, pa.ChunkedArray):
        return [column]
    if column.num_chunks > _MANY_CHUNKS:
        joined = column.combine_chunks()
        return list(joined.chunks) if isinstance(joined, pa.ChunkedArray) else [joined]
    return list(column.chunks) or [pa.array([], column.type)]


def _code_dictionaries(arrays: list[pa.Array], outs: list[Int32Array], kind: str, threads: int | None) -> int:
    """Number the dictionaries' values, which are few, and look every row up in them."""
    values: list[pa.Array] = []
    places: list[int] = []
    for array in arrays:
        is_coded = pa.types.is_dictionary(array.type)
        value = array.dictionary if is_coded else array
        if is_coded and values and places and value is not None and _same(values[places[-1]], value):
            places.append(places[-1])
            continue
        places.append(len(values))
        values.append(value)
    tables = [np.empty(len(value), np.int32) for value in values]
    entities = _code_arrays(values, tables, kind, threads)
    tasks = []
    for array, out, place in zip(arrays, outs, places, strict=True):
        if not pa.types.is_dictionary(array.type):
            out[:] = tables[place]
            continue
        table = frozen(tables[place])
        indices = frozen(_numbers(array.indices).astype(np.int32, copy=False))
        bitmap = _bitmap(array.indices)
        is_same = array.null_count == 0 and np.array_equal(table, np.arange(len(table), dtype=np.int32))
        for lo, hi in split(len(array), thread_count(threads, len(array))):
            if is_same:
                tasks.append(partial(np.copyto, out[lo:hi], indices[lo:hi]))
                continue
            offset = array.indices.offset + lo
            tasks.append(partial(_kernels.look_up, indices[lo:hi], bitmap, offset, table, out[lo:hi]))
    _run(tasks, sum(map(len, outs)), threads)
    return entities


def _same(left: pa.Array, right: pa.Array) -> bool:
    return left.type == right.type and len(left) == len(right) and bool(left.equals(right))


def _code_arrays(arrays: list[pa.Array], outs: list[Int32Array], kind: str, threads: int | None) -> int:
    arrays = [_plain(array, kind) for array in arrays]
    if kind in {"string", "binary"} or pa.types.is_fixed_size_binary(arrays[0].type):
        return _code_bytes(arrays, outs, threads)
    return _code_integers(arrays, outs, threads)


def _plain(array: pa.Array, kind: str) -> pa.Array:
    """Return an array whose buffers a kernel can read: integers, bytes with offsets, or of one width."""
    if isinstance(array, pa.ExtensionArray):
        return _plain(array.storage, kind)
    if pa.types.is_string_view(array.type):
        return array.cast(pa.large_string())
    if pa.types.is_binary_view(array.type):
        return array.cast(pa.large_binary())
    if pa.types.is_boolean(array.type):
        return array.cast(pa.int32())
    if pa.types.is_temporal(array.type):
        return array.view(pa.int32() if array.type.bit_width == 32 else pa.int64())
    if pa.types.is_decimal(array.type):
        return array.view(pa.binary(array.type.byte_width))
    return array


def _code_bytes(arrays: list[pa.Array], outs: list[Int32Array], threads: int | None) -> int:
    """Number each piece on its own, side by side, then the distinct values of all pieces together."""
    pieces: list[tuple[pa.Array, Int32Array]] = []
    for array, out in zip(arrays, outs, strict=True):
        for lo, hi in split(len(array), thread_count(threads, len(array))):
            pieces.append((array.slice(lo, hi - lo), out[lo:hi]))
    firsts: list[Int64Array] = [np.empty(0, np.int64)] * len(pieces)

    def code(place: int) -> None:
        array, out = pieces[place]
        firsts[place] = _kernels.code_bytes(*_bytes_of(array), out)

    _run([partial(code, place) for place in range(len(pieces))], sum(map(len, outs)), threads)
    if len(pieces) == 1:
        return len(firsts[0])
    distinct = [
        array.take(pa.array(first)).cast(pa.large_binary())
        for (array, _), first in zip(pieces, firsts, strict=True)
    ]
    table = np.empty(sum(len(first) for first in firsts), np.int32)
    entities = len(_kernels.code_bytes(*_bytes_of(pa.concat_arrays(distinct)), table))
    _renumber([out for _, out in pieces], firsts, table, threads)
    return entities


def _renumber(
    outs: list[Int32Array], firsts: list[Int64Array], table: Int32Array, threads: int | None
) -> None:
    """Replace the codes of each piece by those of all pieces together."""
    edges = [0, *np.cumsum([len(first) for first in firsts]).tolist()]
    tasks = []
    for out, (a, b) in zip(outs, pairwise(edges), strict=True):
        mapped = frozen(table[a:b])
        if not np.array_equal(mapped, np.arange(len(mapped), dtype=np.int32)):
            tasks.append(partial(_kernels.remap, out, mapped))
    _run(tasks, sum(map(len, outs)), threads)


def _bytes_of(array: pa.Array) -> tuple[npt.NDArray[Any], int, _UInt8Array, _UInt8Array, int]:
    """Offsets, width, data, bitmap and offset of a byte array, as `code_bytes` takes them."""
    buffers = array.buffers()
    data = _NO_BITMAP if buffers[-1] is None else frozen(np.frombuffer(buffers[-1], np.uint8))
    if pa.types.is_fixed_size_binary(array.type):
        return _NO_OFFSETS, array.type.byte_width, data, _bitmap(array), array.offset
    wide = pa.types.is_large_string(array.type) or pa.types.is_large_binary(array.type)
    kind = np.dtype(np.int64 if wide else np.int32)
    if len(array) == 0 or buffers[1] is None:
        return frozen(np.zeros(1, kind)), 0, data, _bitmap(array), array.offset
    offsets = np.frombuffer(buffers[1], kind, len(array) + 1, array.offset * kind.itemsize)
    return frozen(offsets), 0, data, _bitmap(array), array.offset


# Part of an integer column: values, validity bitmap and where it begins there, and where the codes go.
_Piece: TypeAlias = tuple[npt.NDArray[Any], _UInt8Array, int, Int32Array]


def _code_integers(arrays: list[pa.Array], outs: list[Int32Array], threads: int | None) -> int:
    numbers = [_numbers(array) for array in arrays]
    bitmaps, offsets = [_bitmap(array) for array in arrays], [array.offset for array in arrays]
    unsigned = [array for array in arrays if pa.types.is_uint64(array.type)]
    if any((pc.max(array).as_py() or 0) > INT64_MAX for array in unsigned):
        return _code_beyond_int64(arrays, [_as_int64(values) for values in numbers], bitmaps, outs, threads)
    wide = [values if values.dtype == np.int32 else _as_int64(values) for values in numbers]
    pieces, rows = _pieces(wide, bitmaps, offsets, outs, threads), sum(len(values) for values in wide)
    base = min((int(values[:_HEAD_ROWS].min()) for values in wide if len(values)), default=0)
    least, most = _shift(pieces, base, rows, threads)
    span = most - least + 1
    if span <= _SHIFT_RANGE:
        if least != base and span > 0:
            by = base - least
            shifts = [partial(_kernels.shift_codes, *piece[1:3], by, piece[3]) for piece in pieces]
            _run(shifts, rows, threads)
        return max(span, 0)
    if span <= max(_DIRECT_RANGE, 2 * rows):
        return _code_direct(pieces, least, span, rows, threads)
    return _code_wide([_as_int64(values) for values in wide], bitmaps, offsets, outs, threads)


def _pieces(
    numbers: Sequence[npt.NDArray[Any]],
    bitmaps: Sequence[_UInt8Array],
    offsets: Sequence[int],
    outs: Sequence[Int32Array],
    threads: int | None,
) -> list[_Piece]:
    """Cut columns into pieces for the threads."""
    pieces: list[_Piece] = []
    for values, bitmap, offset, out in zip(numbers, bitmaps, offsets, outs, strict=True):
        for lo, hi in split(len(values), thread_count(threads, len(values))):
            pieces.append((frozen(values[lo:hi]), bitmap, offset + lo, out[lo:hi]))
    return pieces


def _shift(pieces: Sequence[_Piece], base: int, rows: int, threads: int | None) -> tuple[int, int]:
    """Write how far integers lie above `base`; return their least and greatest in the same pass."""
    bounds: list[tuple[int, int]] = []

    def shift(piece: _Piece) -> None:
        bounds.append(_kernels.shift_values(*piece[:3], base, piece[3]))

    _run([partial(shift, piece) for piece in pieces], rows, threads)
    seen = [bound for bound in bounds if bound[0] <= bound[1]]
    return min((low for low, _ in seen), default=0), max((high for _, high in seen), default=-1)


def _code_direct(pieces: Sequence[_Piece], least: int, span: int, rows: int, threads: int | None) -> int:
    """Number integers of a small range by a table with one entry per possible value."""
    present, table = np.zeros(span, np.uint8), np.empty(span, np.int32)
    marks = [partial(_kernels.mark_present, *piece[:3], least, present) for piece in pieces]
    _run(marks, rows, threads)
    entities = int(_kernels.number_present(present, table))
    frozen_table = frozen(table)
    looks = [partial(_kernels.look_up_values, *piece[:3], least, frozen_table, piece[3]) for piece in pieces]
    _run(looks, rows, threads)
    return entities


def _code_wide(
    wide: list[Int64Array],
    bitmaps: list[_UInt8Array],
    offsets: list[int],
    outs: list[Int32Array],
    threads: int | None,
    *,
    negative_is_null: bool = False,
) -> int:
    """Number integers of any range by hashing, in pieces, then the distinct ones together."""
    pieces = _pieces(wide, bitmaps, offsets, outs, threads)
    firsts: list[Int64Array] = [np.empty(0, np.int64)] * len(pieces)

    def code(place: int) -> None:
        values, bitmap, offset, out = pieces[place]
        firsts[place] = _kernels.code_words(values, bitmap, offset, negative_is_null, out)

    _run([partial(code, place) for place in range(len(pieces))], sum(map(len, outs)), threads)
    if len(pieces) == 1:
        return len(firsts[0])
    distinct = frozen(np.concatenate([piece[0][first] for piece, first in zip(pieces, firsts, strict=True)]))
    table = np.empty(len(distinct), np.int32)
    entities = len(_kernels.code_words(distinct, _NO_BITMAP, 0, False, table))
    _renumber([piece[3] for piece in pieces], firsts, table, threads)
    return entities


def _code_beyond_int64(
    arrays: list[pa.Array],
    wide: list[Int64Array],
    bitmaps: list[_UInt8Array],
    outs: list[Int32Array],
    threads: int | None,
) -> int:
    """Number keys where a uint64 above 2**63 - 1 must not meet the negative number of the same bits."""
    entities = _code_wide(wide, bitmaps, [array.offset for array in arrays], outs, threads)
    if all(pa.types.is_unsigned_integer(array.type) for array in arrays):
        return entities
    codes = np.concatenate(outs)
    unsigned = [np.full(len(a), pa.types.is_uint64(a.type), np.bool_) for a in arrays]
    high = np.concatenate(unsigned) & (np.concatenate(wide) < 0)
    pairs = np.where(codes < 0, np.int64(-1), codes.astype(np.int64) * 2 + high)
    renumbered = np.empty(len(codes), np.int32)
    entities = _code_pairs(pairs, 2 * entities, renumbered, threads)
    edges = [0, *np.cumsum([len(out) for out in outs]).tolist()]
    for out, (a, b) in zip(outs, pairwise(edges), strict=True):
        out[:] = renumbered[a:b]
    return entities


def _code_pairs(pairs: Int64Array, size: int, out: Int32Array, threads: int | None) -> int:
    """Number combined codes, which are below `size` and negative where null."""
    if size <= max(_DIRECT_RANGE, 2 * len(pairs)):
        bitmap = _bitmap(pa.array(pairs, mask=pairs < 0))
        pieces = _pieces([pairs], [bitmap], [0], [out], threads)
        if size > _SHIFT_RANGE:
            return _code_direct(pieces, 0, size, len(pairs), threads)
        _shift(pieces, 0, len(pairs), threads)
        return size
    return _code_wide([pairs], [_NO_BITMAP], [0], [out], threads, negative_is_null=True)


def _numbers(array: pa.Array) -> npt.NDArray[Any]:
    """Return the stored integers without a copy; what lies under a null is arbitrary."""
    kind = np.dtype(array.type.to_pandas_dtype())
    data = array.buffers()[1]
    if len(array) == 0 or data is None:
        return frozen(np.zeros(len(array), kind))
    return frozen(np.frombuffer(data, kind, len(array), array.offset * kind.itemsize))


def _as_int64(values: npt.NDArray[Any]) -> Int64Array:
    return values.view(np.int64) if values.dtype == np.uint64 else values.astype(np.int64, copy=False)


def _bitmap(array: pa.Array) -> _UInt8Array:
    data = array.buffers()[0] if array.null_count else None
    return _NO_BITMAP if data is None else frozen(np.frombuffer(data, np.uint8))


def _run(tasks: Sequence[Callable[[], None]], rows: int, threads: int | None) -> None:
    """Run tasks over the threads that so many rows are worth."""
    run_in_turn(tasks, thread_count(threads, rows))
