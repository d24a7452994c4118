"""Compiled loops: row gathers and window gathers over memory-mapped parts.

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
from featurestore.temporal.jit import inlined, kernel

numba = importlib.import_module("numba")
_extending = importlib.import_module("numba.extending")
_cgutils = importlib.import_module("numba.core.cgutils")
_ir = importlib.import_module("llvmlite.ir")

AnyArray = npt.NDArray[Any]
UInt8Array = npt.NDArray[np.uint8]

# Rows asked for before they are copied, and bytes of runs: enough to hide a miss to memory, few enough to
# stay in the second-level cache, which takes more requests at once than the first.
_AHEAD = 48
_AHEAD_BYTES = 4096
_LINE_BYTES = 64


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
        builder.call(function, [pointer, int32(0), int32(2), int32(1)])
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


def _move(count: int) -> Any:
    """Make a copy of exactly `count` bytes, in registers where the machine has wide ones."""

    def move(typingctx: Any, target: Any, source: Any) -> Any:
        del typingctx
        types = numba.types

        def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
            del signature
            vector = _ir.VectorType(_ir.IntType(8), count).as_pointer()
            to, of = (builder.inttoptr(a, vector) for a in args)
            builder.store(builder.load(of, align=1), to, align=1)
            return context.get_dummy_value()

        return types.void(target, source), codegen

    return _extending.intrinsic(move)


copy_bytes = _extending.intrinsic(_copy_bytes)
move_64, move_8, move_4, move_1 = (_move(count) for count in (64, 8, 4, 1))
pointer = _extending.intrinsic(_pointer)
prefetch = _extending.intrinsic(_prefetch)
carray = numba.carray


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


@inlined
def _copy_row(target: int, source: int, row_bytes: int) -> None:
    done = 0
    while done + 64 <= row_bytes:
        move_64(target + done, source + done)
        done += 64
    while done + 8 <= row_bytes:
        move_8(target + done, source + done)
        done += 8
    while done + 4 <= row_bytes:
        move_4(target + done, source + done)
        done += 4
    while done < row_bytes:
        move_1(target + done, source + done)
        done += 1


@inlined
def _is_run(rows: Int64Array) -> bool:
    """Say whether the rows follow one another; stops soon where they do not."""
    n = rows.size
    first = rows[0]
    for begin in range(0, n, 512):
        others = 0
        for i in range(begin, min(n, begin + 512)):
            others += rows[i] - i != first
        if others:
            return False
    return True


@kernel
def gather_bytes(
    addresses: Int64Array,
    starts: Int64Array,
    first_part: Int64Array,
    shift: int,
    rows: Int64Array,
    row_bytes: int,
    target: int,
    target_stride: int,
) -> None:
    """Copy whole rows of bytes to `target + i * target_stride`; the parts are given as to `row_addresses`."""
    n = rows.size
    if target_stride == row_bytes and _is_run(rows):
        row, done = rows[0], 0
        part = first_part[row >> shift]
        while done < n:
            while row >= starts[part + 1]:
                part += 1
            count = min(n - done, starts[part + 1] - row)
            source = addresses[part] + (row - starts[part]) * row_bytes
            copy_bytes(target + done * row_bytes, source, count * row_bytes)
            row += count
            done += count
        return
    asked = np.empty(_AHEAD, np.int64)
    for i in range(n + _AHEAD):
        if i >= _AHEAD:
            j = i - _AHEAD
            _copy_row(target + j * target_stride, asked[j % _AHEAD], row_bytes)
        if i < n:
            row = rows[i]
            part = first_part[row >> shift]
            while row >= starts[part + 1]:
                part += 1
            source = addresses[part] + (row - starts[part]) * row_bytes
            for line in range(0, row_bytes, _LINE_BYTES):
                prefetch(source + line)
            asked[i % _AHEAD] = source


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
    """Copy runs of rows as bytes to `target + place * row_bytes`; asks for a run while another is copied."""
    n = sources.size
    for i in range(n):
        source, size = sources[i], count[i] * row_bytes
        to = target + place[i] * row_bytes
        following, following_size = 0, 0
        if i + 1 < n:
            following, following_size = sources[i + 1], count[i + 1] * row_bytes
        done = 0
        while done + _LINE_BYTES <= size:
            ahead = done + _AHEAD_BYTES
            if ahead < size:
                prefetch(source + ahead)
            elif ahead - size < following_size:
                prefetch(following + ahead - size)
            move_64(to + done, source + done)
            done += _LINE_BYTES
        _copy_row(to + done, source + done, size - done)


@kernel
def window_mask(history: npt.NDArray[Any], rows: Int64Array, out: npt.NDArray[np.bool_]) -> None:
    """Write `out[i, j]`: whether place `j` of row `i`'s window holds a row."""
    length = out.shape[1]
    for i in range(rows.size):
        pad = length - np.int64(history[rows[i]])
        for j in range(length):
            out[i, j] = j >= pad


@kernel
def ages_in_place(history: npt.NDArray[Any], rows: Int64Array, out: Int64Array) -> None:
    """Turn `(N, L)` times into ages at the window's last row; 0 on padding."""
    length = out.shape[1]
    for i in range(rows.size):
        pad = length - np.int64(history[rows[i]])
        now = out[i, length - 1]
        for j in range(length):
            out[i, j] = now - out[i, j] if j >= pad else 0


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
