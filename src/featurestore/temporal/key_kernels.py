"""Compiled loops that number keys: a direct table for narrow integers, hashing for the rest.

A hash only finds a candidate; equality is always decided on the key itself. Places are uint64 in the hot
loops: numba checks signed ones for a wrap-around to the array's end.
"""

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from featurestore.core.time import INT64_MAX, INT64_MIN, Int64Array
from featurestore.temporal.jit import inlined, kernel
from featurestore.temporal.rows import Int32Array

UInt8Array = npt.NDArray[np.uint8]
UInt64Array = npt.NDArray[np.uint64]
OffsetArray = npt.NDArray[np.int32] | npt.NDArray[np.int64]

U64 = np.uint64
_MIX = U64(0x9E3779B97F4A7C15)
_ONE, _EIGHT, _HALF = U64(1), U64(8), U64(32)
_SHORT_SIZE_BIT, _LONG_FLAG = U64(56), U64(1) << U64(63)


@intrinsic
def _load_word(typing_context: Any, data: Any, place: Any) -> Any:  # noqa: ARG001 -- numba's signature
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        address = builder.gep(array.data, [arguments[1]])
        return builder.load(builder.bitcast(address, ir.IntType(64).as_pointer()), align=1)

    return types.uint64(data, types.uint64), generate


# Reads the 8 bytes that begin at a place as one number, least significant first, in one machine load.
load_word = cast("Callable[[UInt8Array, np.uint64], np.uint64]", _load_word)


@inlined
def is_valid(bitmap: UInt8Array, place: int) -> bool:
    """Whether bit `place` of an Arrow validity bitmap is set; an empty bitmap means all are."""
    return len(bitmap) == 0 or (bitmap[place >> 3] >> (place & 7)) & 1 == 1


@inlined
def mixed(word: np.uint64) -> np.uint64:
    """Spread the bits of a word over all others, one to one."""
    word = (word ^ (word >> _HALF)) * _MIX
    return word ^ (word >> _HALF)


@kernel
def tail_word(data: UInt8Array, begin: np.uint64, size: np.uint64) -> np.uint64:
    """Read a word byte by byte: near the end of the data, where 8 bytes cannot be read at once."""
    word = U64(0)
    for k in range(size):
        word |= U64(data[begin + U64(k)]) << U64(8 * k)
    return word


@kernel
def short_tag(data: UInt8Array, begin: np.uint64, size: np.uint64) -> np.uint64:
    """Write up to 7 bytes and their number as one word, one to one; the top byte is below 8."""
    if begin + _EIGHT <= U64(len(data)):
        word = load_word(data, begin) & ((_ONE << (_EIGHT * size)) - _ONE)
        return word | (size << _SHORT_SIZE_BIT)
    return tail_word(data, begin, size) | (size << _SHORT_SIZE_BIT)


@kernel
def long_tag(data: UInt8Array, begin: np.uint64, size: np.uint64) -> np.uint64:
    """Hash 8 bytes or more; the top bit is set, so that no short tag is equal."""
    last = begin + size - _EIGHT
    hashed = size * _MIX
    place = begin
    while place < last:
        hashed = mixed(hashed ^ load_word(data, place))
        place += _EIGHT
    # The last word overlaps the one before it: no byte beyond the value is read.
    hashed = (hashed ^ load_word(data, last)) * _MIX
    return (hashed >> _EIGHT) | _LONG_FLAG


@kernel
def same_bytes(data: UInt8Array, a: np.uint64, b: np.uint64, size: np.uint64) -> bool:
    """Whether the `size` bytes, 8 or more, at `a` and at `b` are equal."""
    last = size - _EIGHT
    place = U64(0)
    while place < last:
        if load_word(data, a + place) != load_word(data, b + place):
            return False
        place += _EIGHT
    return bool(load_word(data, a + last) == load_word(data, b + last))


@kernel
def is_same(
    data: UInt8Array,
    begins: UInt64Array,
    sizes: UInt64Array,
    key: np.uint64,
    begin: np.uint64,
    size: np.uint64,
) -> bool:
    """Whether a numbered key of 8 bytes or more is the one at `begin`."""
    return sizes[key] == size and same_bytes(data, begins[key], begin, size)


@kernel
def new_table(rows: int) -> UInt64Array:
    """Make an empty hash table: pairs of (hash, code + 1), where 0 means free.

    Mostly empty, so that nearly every key is found at its first slot: a second look is a mispredicted branch.
    """
    if rows < 256:
        return np.zeros(2 * 256, np.uint64)
    return np.zeros(2 * 2048 if rows < 1 << 15 else 2 * 16384, np.uint64)


@kernel
def grown_table(table: UInt64Array) -> UInt64Array:
    """Return a larger table of the same content; sparse (and in the cache) while small."""
    old = len(table) >> 1
    slots = old * 4 if old <= 1 << 16 else old * 2
    wider = np.zeros(2 * slots, np.uint64)
    mask = U64(slots - 1)
    for k in range(old):
        code = table[2 * k + 1]
        if code == U64(0):
            continue
        slot = table[2 * k] & mask
        while wider[slot + slot + _ONE] != U64(0):
            slot = (slot + _ONE) & mask
        wider[slot + slot] = table[2 * k]
        wider[slot + slot + _ONE] = code
    return wider


@kernel
def room_of(table: UInt64Array) -> int:
    """How many keys a table takes before it grows: a quarter of its slots, half once it is large."""
    slots = len(table) >> 1
    return slots >> 2 if slots <= 1 << 16 else slots >> 1


@kernel
def extended(values: UInt64Array, size: int) -> UInt64Array:
    """Return a copy with room for `size` values."""
    longer = np.empty(size, np.uint64)
    longer[: len(values)] = values
    return longer


@kernel
def code_words_until_full(
    values: Int64Array,
    bitmap: UInt8Array,
    offset: int,
    negative_is_null: bool,
    row: int,
    table: UInt64Array,
    first: UInt64Array,
    count: int,
    out: Int32Array,
) -> tuple[int, int]:
    """Go on numbering from `row` until the end or until `first` is full; returns the row and the count."""
    mask = U64((len(table) >> 1) - 1)
    i, keys, room = U64(row), U64(count), U64(len(first))
    while i < U64(len(out)):
        value = values[i]
        if not is_valid(bitmap, offset + int(i)) or (negative_is_null and value < 0):
            out[i] = -1
            i += _ONE
            continue
        # One to one: equal hashes are equal integers.
        hashed = mixed(U64(value))
        slot = hashed & mask
        code = table[slot + slot + _ONE]
        while code != U64(0) and table[slot + slot] != hashed:
            slot = (slot + _ONE) & mask
            code = table[slot + slot + _ONE]
        if code == U64(0):
            if keys == room:
                break
            first[keys] = i
            keys += _ONE
            code = keys
            table[slot + slot] = hashed
            table[slot + slot + _ONE] = code
        out[i] = np.int32(code - _ONE)
        i += _ONE
    return int(i), int(keys)


@kernel
def code_words(
    values: Int64Array, bitmap: UInt8Array, offset: int, negative_is_null: bool, out: Int32Array
) -> Int64Array:
    """Number the distinct integers in order of appearance; returns the row where each appeared first.

    Args:
        values: `(n,)`; bit `offset + i` of `bitmap` says whether value i is there.
        negative_is_null: a negative value is a null (codes of parts that were numbered before).
        out: `(n,)` gets the codes, -1 for null.
    """
    table = new_table(len(out))
    first = np.empty(room_of(table), np.uint64)
    row, count = code_words_until_full(values, bitmap, offset, negative_is_null, 0, table, first, 0, out)
    while row < len(out):
        table = grown_table(table)
        first = extended(first, room_of(table))
        row, count = code_words_until_full(
            values, bitmap, offset, negative_is_null, row, table, first, count, out
        )
    return first[:count].astype(np.int64)


@inlined
def code_known_run(
    offsets: OffsetArray, data: UInt8Array, row: np.uint64, table: UInt64Array, out: Int32Array
) -> np.uint64:
    """Write the codes of short keys that are in the table, up to the first one that is not or not short."""
    mask = U64((len(table) >> 1) - 1)
    i, begin = row, U64(offsets[row])
    while i < U64(len(out)):
        end = U64(offsets[i + _ONE])
        size = end - begin
        if size >= _EIGHT or begin + _EIGHT > U64(len(data)):
            break
        hashed = mixed(
            (load_word(data, begin) & ((_ONE << (_EIGHT * size)) - _ONE)) | (size << _SHORT_SIZE_BIT)
        )
        slot = hashed & mask
        while table[slot + slot] != hashed and table[slot + slot + _ONE] != U64(0):
            slot = (slot + _ONE) & mask
        code = table[slot + slot + _ONE]
        if code == U64(0):
            break
        out[i] = np.int32(code - _ONE)
        i += _ONE
        begin = end
    return i


@kernel
def code_bytes_until_full(
    offsets: OffsetArray,
    width: int,
    data: UInt8Array,
    bitmap: UInt8Array,
    offset: int,
    row: int,
    table: UInt64Array,
    first: UInt64Array,
    begins: UInt64Array,
    sizes: UInt64Array,
    count: int,
    out: Int32Array,
) -> tuple[int, int]:
    """Go on numbering from `row` until the end or until `first` is full; returns the row and the count."""
    mask = U64((len(table) >> 1) - 1)
    i, keys, room = U64(row), U64(count), U64(len(first))
    is_short = True
    while i < U64(len(out)):
        if is_short and len(bitmap) == 0 and len(offsets) > 0:
            i = code_known_run(offsets, data, i, table, out)
            if i == U64(len(out)):
                break
        if not is_valid(bitmap, offset + int(i)):
            out[i] = -1
            i += _ONE
            continue
        begin, size = (U64(offset) + i) * U64(width), U64(width)
        if len(offsets) > 0:
            begin = U64(offsets[i])
            size = U64(offsets[i + _ONE]) - begin
        is_short = bool(size < _EIGHT)
        hashed = mixed(short_tag(data, begin, size) if is_short else long_tag(data, begin, size))
        slot = hashed & mask
        code = table[slot + slot + _ONE]
        while code != U64(0) and (
            table[slot + slot] != hashed
            # A short tag is the key itself; a long one only says where to compare.
            or not (is_short or is_same(data, begins, sizes, code - _ONE, begin, size))
        ):
            slot = (slot + _ONE) & mask
            code = table[slot + slot + _ONE]
        if code == U64(0):
            if keys == room:
                break
            first[keys] = i
            begins[keys] = begin
            sizes[keys] = size
            keys += _ONE
            code = keys
            table[slot + slot] = hashed
            table[slot + slot + _ONE] = code
        out[i] = np.int32(code - _ONE)
        i += _ONE
    return int(i), int(keys)


@kernel
def code_bytes(
    offsets: OffsetArray,
    width: int,
    data: UInt8Array,
    bitmap: UInt8Array,
    offset: int,
    out: Int32Array,
) -> Int64Array:
    """Number the distinct byte strings in order of appearance; returns the row of each one's first.

    Args:
        offsets: `(n + 1,)` where strings begin in `data`; empty where all are `width` bytes wide.
        width: of every value, where there are no offsets (then value i begins at `(offset + i) * width`).
        data: all bytes.
        bitmap: bit `offset + i` says whether value i is there; empty where all are.
        offset: Arrow's offset of the array.
        out: `(n,)` gets the codes, -1 for null.
    """
    table = new_table(len(out))
    room = room_of(table)
    first = np.empty(room, np.uint64)
    begins, sizes = np.empty(room, np.uint64), np.empty(room, np.uint64)
    row, count = code_bytes_until_full(
        offsets, width, data, bitmap, offset, 0, table, first, begins, sizes, 0, out
    )
    while row < len(out):
        table = grown_table(table)
        room = room_of(table)
        first, begins, sizes = extended(first, room), extended(begins, room), extended(sizes, room)
        row, count = code_bytes_until_full(
            offsets, width, data, bitmap, offset, row, table, first, begins, sizes, count, out
        )
    return first[:count].astype(np.int64)


@kernel
def remap(codes: Int32Array, table: Int32Array) -> None:
    """Replace every code that is not null by its entry in `table`, in place."""
    for i in range(len(codes)):
        if codes[i] >= 0:
            codes[i] = table[codes[i]]


@kernel
def look_up(indices: Int32Array, bitmap: UInt8Array, offset: int, table: Int32Array, out: Int32Array) -> None:
    """Write the table's code of each dictionary index, -1 for null."""
    for i in range(len(indices)):
        out[i] = table[indices[i]] if is_valid(bitmap, offset + i) else -1


@kernel
def mark_present(
    values: npt.NDArray[np.signedinteger[Any]],
    bitmap: UInt8Array,
    offset: int,
    least: int,
    present: UInt8Array,
) -> None:
    """Mark which of the values `least`, `least + 1`, … occur. Several threads may mark the same table."""
    for i in range(len(values)):
        if is_valid(bitmap, offset + i):
            place = values[i] - least
            # Reading first keeps the threads from fighting over the table's cache lines.
            if present[place] == 0:
                present[place] = 1


@kernel
def number_present(present: UInt8Array, table: Int32Array) -> int:
    """Number the marked values in ascending order; returns how many there are."""
    count = 0
    for k in range(len(present)):
        table[k] = count
        count += present[k]
    return count


@kernel
def shift_values(
    values: npt.NDArray[np.signedinteger[Any]], bitmap: UInt8Array, offset: int, base: int, out: Int32Array
) -> tuple[int, int]:
    """Write how far each integer lies above `base` (its low 32 bits), -1 for null; return the range of all.

    Returns:
        The least and the greatest value; the ends of int64 the wrong way round where there is none.
    """
    least, most = int(INT64_MAX), int(INT64_MIN)
    if len(bitmap) == 0:
        for i in range(U64(len(values))):
            value = int(values[i])
            least, most = min(least, value), max(most, value)
            out[i] = np.int32(value - base)
        return least, most
    for i in range(len(values)):
        out[i] = -1
        if is_valid(bitmap, offset + i):
            value = int(values[i])
            least, most = min(least, value), max(most, value)
            out[i] = np.int32(value - base)
    return least, most


@kernel
def shift_codes(bitmap: UInt8Array, offset: int, by: int, out: Int32Array) -> None:
    """Add a number to every code that is not null, in 32 bits."""
    for i in range(len(out)):
        if is_valid(bitmap, offset + i):
            out[i] = np.int32(np.int64(out[i]) + by)


@kernel
def look_up_values(
    values: npt.NDArray[np.signedinteger[Any]],
    bitmap: UInt8Array,
    offset: int,
    least: int,
    table: Int32Array,
    out: Int32Array,
) -> None:
    """Write the table's code of each integer, -1 for null."""
    for i in range(len(values)):
        out[i] = table[values[i] - least] if is_valid(bitmap, offset + i) else -1


@kernel
def combine(left: Int32Array, right: Int32Array, size: int, out: Int64Array) -> None:
    """Write one number per pair of codes, -1 where either is null."""
    for i in range(len(left)):
        out[i] = -1
        if left[i] >= 0 and right[i] >= 0:
            out[i] = np.int64(left[i]) * size + np.int64(right[i])
