"""Compiled loops that number keys against a table which stays from batch to batch."""

import numpy as np

from featurestore.core.time import Int64Array
from featurestore.temporal.jit import kernel
from featurestore.temporal.key_kernels import (
    OffsetArray,
    UInt8Array,
    UInt64Array,
    code_known_run,
    is_valid,
    load_word,
    long_tag,
    mixed,
    short_tag,
)
from featurestore.temporal.rows import Int32Array

U64 = np.uint64
_ZERO, _ONE, _EIGHT = U64(0), U64(1), U64(8)


@kernel
def same_as_known(
    arena: UInt8Array, known: np.uint64, data: UInt8Array, begin: np.uint64, size: np.uint64
) -> bool:
    """Whether the `size` bytes, 8 or more, of a known key are those at `begin`."""
    last = size - _EIGHT
    place = _ZERO
    while place < last:
        if load_word(arena, known + place) != load_word(data, begin + place):
            return False
        place += _EIGHT
    return bool(load_word(arena, known + last) == load_word(data, begin + last))


@kernel
def number_bytes(
    offsets: OffsetArray,
    data: UInt8Array,
    bitmap: UInt8Array,
    offset: int,
    row: int,
    table: UInt64Array,
    room: int,
    arena: UInt8Array,
    begins: Int64Array,
    sizes: Int64Array,
    count: int,
    out: Int32Array,
) -> tuple[int, int]:
    """Number byte strings from `row` until the end, or until a new one finds no room; return row and count.

    Args:
        table: pairs of (hash, code + 1); 0 means free.
        arena: the bytes of the keys known so far that are 8 bytes or longer.
        begins, sizes: `(room + 1,)` where each known key lies; `begins[count]` is the arena's end.
        count: how many keys are known.
    """
    mask = U64((len(table) >> 1) - 1)
    i, keys, end = U64(row), U64(count), U64(len(out))
    is_short = True
    while i < end:
        if is_short and len(bitmap) == 0:
            i = code_known_run(offsets, data, i, table, out)
            if i == end:
                break
        if not is_valid(bitmap, offset + int(i)):
            out[i] = -1
            i += _ONE
            continue
        begin = U64(offsets[i])
        size = U64(offsets[i + _ONE]) - begin
        is_short = bool(size < _EIGHT)
        hashed = mixed(short_tag(data, begin, size) if is_short else long_tag(data, begin, size))
        slot = hashed & mask
        code = table[slot + slot + _ONE]
        while code != _ZERO:
            if table[slot + slot] == hashed:
                known = code - _ONE
                if is_short or (
                    sizes[known] == np.int64(size)
                    and same_as_known(arena, U64(begins[known]), data, begin, size)
                ):
                    break
            slot = (slot + _ONE) & mask
            code = table[slot + slot + _ONE]
        if code == _ZERO:
            at = begins[keys]
            if keys == U64(room) or (not is_short and at + np.int64(size) > len(arena)):
                break
            sizes[keys] = np.int64(size)
            begins[keys + _ONE] = at
            if not is_short:
                for k in range(np.int64(size)):
                    arena[at + k] = data[begin + U64(k)]
                begins[keys + _ONE] = at + np.int64(size)
            keys += _ONE
            code = keys
            table[slot + slot] = hashed
            table[slot + slot + _ONE] = code
        out[i] = np.int32(code - _ONE)
        i += _ONE
    return int(i), int(keys)


@kernel
def number_words(
    values: Int64Array,
    bitmap: UInt8Array,
    offset: int,
    negative_is_null: bool,
    row: int,
    table: UInt64Array,
    room: int,
    count: int,
    out: Int32Array,
) -> tuple[int, int]:
    """Number integers from `row` until the end, or until a new one finds no room; return row and count."""
    mask = U64((len(table) >> 1) - 1)
    i, keys, end = U64(row), U64(count), U64(len(out))
    while i < end:
        value = values[i]
        if not is_valid(bitmap, offset + int(i)) or (negative_is_null and value < 0):
            out[i] = -1
            i += _ONE
            continue
        # One to one: equal hashes are equal integers.
        hashed = mixed(U64(value))
        slot = hashed & mask
        code = table[slot + slot + _ONE]
        while code != _ZERO and table[slot + slot] != hashed:
            slot = (slot + _ONE) & mask
            code = table[slot + slot + _ONE]
        if code == _ZERO:
            if keys == U64(room):
                break
            keys += _ONE
            code = keys
            table[slot + slot] = hashed
            table[slot + slot + _ONE] = code
        out[i] = np.int32(code - _ONE)
        i += _ONE
    return int(i), int(keys)


@kernel
def pair_codes(one: Int32Array, other: Int32Array, out: Int64Array) -> None:
    """Write two codes as one number, -1 where either is null."""
    for i in range(U64(len(out))):
        out[i] = -1 if one[i] < 0 or other[i] < 0 else (np.int64(one[i]) << 32) | np.int64(other[i])
