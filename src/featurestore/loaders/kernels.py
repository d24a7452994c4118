"""Compiled loops: row gathers over memory-mapped parts, window gathers and radix permutations.

Imported by `gather` only, on first use, because numba takes most of a second to import. All loops release
the GIL. Rows are reached by address: a column of a dataset lies in as many mappings as there are shards,
and one loop must reach them all. `gather` keeps the mappings alive while a kernel runs and has checked
every row number before.
"""

import importlib
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.core.time import Int64Array
from featurestore.temporal.jit import kernel

numba = importlib.import_module("numba")
_extending = importlib.import_module("numba.extending")
_cgutils = importlib.import_module("numba.core.cgutils")
_ir = importlib.import_module("llvmlite.ir")

AnyArray = npt.NDArray[Any]
UInt8Array = npt.NDArray[np.uint8]

# Rows asked for before they are copied: enough to hide a cache miss, few enough to stay in L1.
_AHEAD = 12
_LINE_BYTES = 64
_RADIX_BITS = 11
_TILE = 16


def _pointer(typingctx: Any, address: Any) -> Any:
    del typingctx
    types = numba.types

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        del context, signature
        return builder.inttoptr(args[0], _cgutils.voidptr_t)

    return types.voidptr(address), codegen


def _prefetch(typingctx: Any, address: Any) -> Any:
    del typingctx
    types = numba.types

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        del signature
        pointer = builder.inttoptr(args[0], _cgutils.voidptr_t)
        int32 = _ir.IntType(32)
        function_type = _ir.FunctionType(_ir.VoidType(), [_cgutils.voidptr_t, int32, int32, int32])
        function = _cgutils.get_or_insert_function(builder.module, function_type, "llvm.prefetch.p0")
        builder.call(function, [pointer, int32(0), int32(3), int32(1)])
        return context.get_dummy_value()

    return types.void(address), codegen


def _copy_bytes(typingctx: Any, target: Any, source: Any, count: Any) -> Any:
    del typingctx
    types = numba.types

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        del signature
        to, of = (builder.inttoptr(a, _cgutils.voidptr_t) for a in args[:2])
        _cgutils.raw_memcpy(builder, to, of, args[2], 1)
        return context.get_dummy_value()

    return types.void(target, source, count), codegen


copy_bytes = _extending.intrinsic(_copy_bytes)
pointer = _extending.intrinsic(_pointer)
prefetch = _extending.intrinsic(_prefetch)
carray = numba.carray


@kernel
def _radix(
    keys: npt.NDArray[np.uint32],
    order: npt.NDArray[np.int32],
    other: npt.NDArray[np.int32],
    counts: npt.NDArray[np.int32],
) -> None:
    """Order by the upper 22 bits of short keys into `order`; `other` and `counts` are scratch."""
    n = keys.size
    low = np.uint32((1 << _RADIX_BITS) - 1)
    first, second = np.uint32(32 - 2 * _RADIX_BITS), np.uint32(32 - _RADIX_BITS)
    counts[:] = 0
    for i in range(n):
        key = keys[i]
        counts[0, (key >> first) & low] += 1
        counts[1, key >> second] += 1
    for turn in range(2):
        total = np.int32(0)
        for b in range(counts.shape[1]):
            count = counts[turn, b]
            counts[turn, b] = total
            total += count
    for i in range(n):
        bucket = (keys[i] >> first) & low
        other[counts[0, bucket]] = i
        counts[0, bucket] += 1
    for i in range(n):
        row = other[i]
        bucket = keys[row] >> second
        order[counts[1, bucket]] = row
        counts[1, bucket] += 1


@kernel
def radix_order(keys: npt.NDArray[np.uint32]) -> Int64Array:
    """Order `0 … n-1` by the upper 22 bits of 32-bit keys, stable: two counting passes of 11 bits."""
    order = np.empty(keys.size, np.int32)
    _radix(keys, order, np.empty(keys.size, np.int32), np.empty((2, 1 << _RADIX_BITS), np.int32))
    return order.astype(np.int64)


@kernel
def radix_order_wide(keys: npt.NDArray[np.uint64]) -> Int64Array:
    """Order `0 … n-1` by the upper 48 bits of 64-bit keys, stable: four counting passes of 12 bits."""
    n = keys.size
    size = np.uint64((1 << 12) - 1)
    order = np.arange(n)
    other = np.empty(n, np.int64)
    counts = np.empty(1 << 12, np.int64)
    for turn in range(4):
        shift = np.uint64(16 + turn * 12)
        counts[:] = 0
        for i in range(n):
            counts[(keys[i] >> shift) & size] += 1
        total = 0
        for b in range(counts.size):
            count = counts[b]
            counts[b] = total
            total += count
        for i in range(n):
            row = order[i]
            bucket = (keys[row] >> shift) & size
            other[counts[bucket]] = row
            counts[bucket] += 1
        order, other = other, order
    return order


@kernel
def fill_blocks(
    blocks: Int64Array, block_rows: int, phase: int, start: int, length: int, out: Int64Array
) -> None:
    """Write the rows of whole blocks of a ring of `length` rows; what is left of `out` is the ring's rest."""
    at = 0
    for b in range(blocks.size + 1):
        if b < blocks.size:
            row, count = blocks[b] * block_rows + phase, block_rows
        else:
            row, count = length // block_rows * block_rows + phase, out.size - at
        row -= length if row >= length else 0
        for _ in range(count):
            out[at] = start + row
            at += 1
            row += 1
            if row == length:
                row = 0


@kernel
def deal(
    fetch: Int64Array, keys: npt.NDArray[np.uint32], edges: Int64Array
) -> tuple[npt.NDArray[np.int32], Int64Array]:
    """Permute each stream by its keys and deal the streams out in turn: position `j · streams + s`."""
    streams = edges.size - 1
    longest = 0
    for s in range(streams):
        longest = max(longest, edges[s + 1] - edges[s])
    order = np.empty(fetch.size, np.int32)
    other = np.empty(longest, np.int32)
    counts = np.empty((2, 1 << _RADIX_BITS), np.int32)
    for s in range(streams):
        start, stop = edges[s], edges[s + 1]
        _radix(keys[start:stop], order[start:stop], other[: stop - start], counts)
        for j in range(start, stop):
            order[j] += start
    places = np.empty(fetch.size, np.int32)
    # Tile by tile, so that both sides stay in cache: strides of whole streams would fight for the same lines.
    for first in range(0, longest, _TILE):
        for s in range(streams):
            start = edges[s]
            for j in range(first, min(first + _TILE, edges[s + 1] - start)):
                places[j * streams + s] = order[start + j]
    rows = np.empty(fetch.size, np.int64)
    for i in range(fetch.size):
        rows[i] = fetch[places[i]]
    return places, rows


@kernel
def row_addresses(
    addresses: Int64Array,
    starts: Int64Array,
    first_part: Int64Array,
    shift: int,
    rows: Int64Array,
    stride: int,
    out: Int64Array,
) -> None:
    """Give each row's address: its part's plus `stride` times its place in it; 0 where the part has none.

    Args:
        first_part: By `row >> shift`, the part of the first row with that prefix.
    """
    for i in range(rows.size):
        row = rows[i]
        part = first_part[row >> shift]
        while row >= starts[part + 1]:
            part += 1
        base = addresses[part]
        out[i] = base + (row - starts[part]) * stride if base != 0 else 0


@kernel
def copy_rows(like: AnyArray, sources: Int64Array, width: int, out: AnyArray, at: int) -> None:
    """Copy whole rows of `width` values from their addresses into `out[:, at:at + width]`, cast to its type.

    Args:
        like: An empty array of the stored type.
    """
    n = sources.size
    row_bytes = width * like.itemsize
    for i in range(n):
        if i + _AHEAD < n:
            ahead = sources[i + _AHEAD]
            for line in range(0, row_bytes, _LINE_BYTES):
                prefetch(ahead + line)
        values = carray(pointer(sources[i]), (width,), like.dtype)
        for c in range(width):
            out[i, at + c] = values[c]


@kernel
def copy_row_bytes(sources: Int64Array, row_bytes: int, target: int, target_stride: int) -> None:
    """Copy whole rows of bytes from their addresses to `target + i * target_stride`; neighbours in one go."""
    n = sources.size
    dense = target_stride == row_bytes
    i = 0
    while i < n:
        source = sources[i]
        count = 1
        if dense:
            while i + count < n and sources[i + count] == source + count * row_bytes:
                count += 1
        if i + _AHEAD < n:
            ahead = sources[i + _AHEAD]
            for line in range(0, row_bytes, _LINE_BYTES):
                prefetch(ahead + line)
        copy_bytes(target + i * target_stride, source, count * row_bytes)
        i += count


@kernel
def copy_columns(like: AnyArray, sources: Int64Array, columns: Int64Array, out: AnyArray, at: int) -> None:
    """Copy some columns of each row: `out[i, at + j] = row i's value columns[j]`."""
    n = sources.size
    size = like.itemsize
    for i in range(n):
        if i + _AHEAD < n:
            for j in range(columns.size):
                prefetch(sources[i + _AHEAD] + columns[j] * size)
        for j in range(columns.size):
            out[i, at + j] = carray(pointer(sources[i] + columns[j] * size), (1,), like.dtype)[0]


@kernel
def fill_rows(valid: Int64Array, columns: Int64Array, fills: AnyArray, out: AnyArray, at: int) -> None:
    """Put `fills[j]` where the mask byte of (row i, column j) is 0; a row without a mask has no nulls."""
    for i in range(valid.size):
        if valid[i] != 0:
            for j in range(columns.size):
                if carray(pointer(valid[i] + columns[j]), (1,), np.uint8)[0] == 0:
                    out[i, at + j] = fills[j]


@kernel
def mask_rows(valid: Int64Array, columns: Int64Array, out: UInt8Array, at: int) -> None:
    """Copy mask bytes; 1 where the row's mask address is 0."""
    for i in range(valid.size):
        for j in range(columns.size):
            out[i, at + j] = 1 if valid[i] == 0 else carray(pointer(valid[i] + columns[j]), (1,), np.uint8)[0]


@kernel
def window_runs(
    rows: Int64Array,
    history: npt.NDArray[Any],
    lookback: int,
    start: Int64Array,
    length: Int64Array,
    previous: Int64Array,
) -> tuple[Int64Array, Int64Array, Int64Array]:
    """Cut each row's window into runs of consecutive rows.

    Args:
        start: First row of each segment (one entity in one shard), ascending; `length` its rows; `previous`
            the segment that holds the entity's rows before it, -1 for none.

    Returns:
        First row, rows, and place in the `(N · L)` output of each run.
    """
    segments = np.searchsorted(start, rows, side="right") - 1
    total = 0
    for i in range(rows.size):
        left = np.int64(history[rows[i]])
        segment = segments[i]
        have = rows[i] - start[segment] + 1
        while left > 0:
            total += 1
            left -= have
            if left > 0:
                segment = previous[segment]
                have = length[segment]
    first = np.empty(total, np.int64)
    count = np.empty(total, np.int64)
    place = np.empty(total, np.int64)
    at = 0
    for i in range(rows.size):
        left = np.int64(history[rows[i]])
        segment = segments[i]
        last = rows[i]
        end = np.int64(i + 1) * lookback
        while left > 0:
            take = min(left, last - start[segment] + 1)
            first[at] = last - take + 1
            count[at] = take
            place[at] = end - take
            end -= take
            left -= take
            at += 1
            if left > 0:
                segment = previous[segment]
                last = start[segment] + length[segment] - 1
    return first, count, place


@kernel
def copy_run_bytes(
    sources: Int64Array, count: Int64Array, place: Int64Array, row_bytes: int, target: int
) -> None:
    """Copy runs of rows as bytes to `target + place * row_bytes`."""
    n = sources.size
    for i in range(n):
        if i + 2 < n:
            for line in range(0, min(count[i + 2] * row_bytes, 4096), _LINE_BYTES):
                prefetch(sources[i + 2] + line)
        copy_bytes(target + place[i] * row_bytes, sources[i], count[i] * row_bytes)


@kernel
def copy_runs(
    like: AnyArray, sources: Int64Array, count: Int64Array, place: Int64Array, width: int, out: AnyArray
) -> None:
    """Copy runs of rows of `width` values into flat `out` at `place * width`, cast to its type."""
    for i in range(sources.size):
        n = count[i] * width
        values = carray(pointer(sources[i]), (n,), like.dtype)
        at = place[i] * width
        for j in range(n):
            out[at + j] = values[j]


@kernel
def zero_padding(history: npt.NDArray[Any], rows: Int64Array, out: AnyArray) -> None:
    """Zero `out[i, :L - history]`."""
    for i in range(rows.size):
        pad = out.shape[1] - np.int64(history[rows[i]])
        for j in range(pad):
            for c in range(out.shape[2]):
                out[i, j, c] = 0
