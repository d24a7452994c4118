"""Compiled loops that number keys: a direct table for narrow integers, hashing for the rest.

A hash only finds a candidate; equality is always decided on the key itself.
"""

from typing import Any

import numpy as np
import numpy.typing as npt
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from featurestore.core.time import Int64Array
from featurestore.temporal.jit import kernel
from featurestore.temporal.rows import Int32Array

UInt8Array = npt.NDArray[np.uint8]
UInt64Array = npt.NDArray[np.uint64]

_MIX = np.uint64(0x9E3779B97F4A7C15)
_SHIFT = np.uint64(32)
_FIRST_SLOTS = 2048


@intrinsic  # type: ignore[untyped-decorator]  # numba has no types
def load_word(typing_context: Any, data: Any, place: Any) -> Any:  # noqa: ARG001 -- numba's signature
    """Read 8 bytes at any address, least significant first, as one machine load."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        array = context.make_array(signature.args[0])(context, builder, arguments[0])
        word = ir.IntType(64)
        address = builder.gep(array.data, [arguments[1]])
        return builder.load(builder.bitcast(address, word.as_pointer()), align=1)

    return types.uint64(data, types.int64), generate


@kernel
def is_valid(bitmap: UInt8Array, place: int) -> bool:
    """Whether bit `place` of an Arrow validity bitmap is set; an empty bitmap means all are."""
    return len(bitmap) == 0 or (bitmap[place >> 3] >> (place & 7)) & 1 == 1


@kernel
def word_at(data: UInt8Array, begin: int, count: int) -> np.uint64:
    """Up to 8 bytes from `begin` as one word, the missing ones zero."""
    if begin + 8 <= len(data):
        word = load_word(data, begin)
        if count < 8:
            word &= (np.uint64(1) << np.uint64(8 * count)) - np.uint64(1)
        return word
    word = np.uint64(0)
    for k in range(count):
        word |= np.uint64(data[begin + k]) << np.uint64(8 * k)
    return word


@kernel
def mixed(word: np.uint64) -> np.uint64:
    """Spread the bits of a word over all others, one to one."""
    word = (word ^ (word >> _SHIFT)) * _MIX
    return word ^ (word >> _SHIFT)


@kernel
def grown(slots: Int32Array, hashes: UInt64Array, count: int) -> Int32Array:
    """Return a table four times as large that holds the same codes."""
    wider = np.full(len(slots) * 4, -1, np.int32)
    mask = np.uint64(len(wider) - 1)
    for code in range(count):
        slot = hashes[code] & mask
        while wider[slot] >= 0:
            slot = (slot + np.uint64(1)) & mask
        wider[slot] = code
    return wider


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
    slots = np.full(_FIRST_SLOTS, -1, np.int32)
    hashes = np.empty(_FIRST_SLOTS // 2, np.uint64)
    first = np.empty(_FIRST_SLOTS // 2, np.int64)
    count = 0
    mask = np.uint64(len(slots) - 1)
    for i in range(len(values)):
        value = values[i]
        if not is_valid(bitmap, offset + i) or (negative_is_null and value < 0):
            out[i] = -1
            continue
        hashed = mixed(np.uint64(value))
        slot = hashed & mask
        # `mixed` is one to one, so equal hashes are equal integers.
        while slots[slot] >= 0 and hashes[slots[slot]] != hashed:
            slot = (slot + np.uint64(1)) & mask
        code = slots[slot]
        if code < 0:
            code = np.int32(count)
            slots[slot] = code
            hashes[count] = hashed
            first[count] = i
            count += 1
            if count == len(hashes):
                slots = grown(slots, hashes, count)
                mask = np.uint64(len(slots) - 1)
                hashes = np.concatenate((hashes, np.empty(3 * count, np.uint64)))
                first = np.concatenate((first, np.empty(3 * count, np.int64)))
        out[i] = code
    return first[:count].copy()


@kernel
def same_bytes(data: UInt8Array, a: int, b: int, count: int) -> bool:
    """Whether the `count` bytes at `a` and at `b` are equal."""
    for k in range(0, count, 8):
        if word_at(data, a + k, min(8, count - k)) != word_at(data, b + k, min(8, count - k)):
            return False
    return True


@kernel
def hash_bytes(data: UInt8Array, begin: int, count: int) -> np.uint64:
    """Hash bytes and their number, 8 at a time."""
    hashed = np.uint64(count) * _MIX
    for k in range(0, count, 8):
        hashed = mixed(hashed ^ word_at(data, begin + k, min(8, count - k)))
    return hashed


@kernel
def code_bytes(
    offsets: npt.NDArray[np.signedinteger[Any]],
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
    slots = np.full(_FIRST_SLOTS, -1, np.int32)
    hashes = np.empty(_FIRST_SLOTS // 2, np.uint64)
    begins = np.empty(_FIRST_SLOTS // 2, np.int64)
    sizes = np.empty(_FIRST_SLOTS // 2, np.int64)
    first = np.empty(_FIRST_SLOTS // 2, np.int64)
    total = 0
    mask = np.uint64(len(slots) - 1)
    for i in range(len(out)):
        if not is_valid(bitmap, offset + i):
            out[i] = -1
            continue
        begin, size = (offset + i) * width, width
        if len(offsets) > 0:
            begin = np.int64(offsets[i])
            size = np.int64(offsets[i + 1]) - begin
        hashed = hash_bytes(data, begin, size)
        slot = hashed & mask
        code = slots[slot]
        while code >= 0:
            if hashes[code] == hashed and sizes[code] == size:
                # Up to 8 bytes the hash is one to one for a given size.
                if size <= 8 or same_bytes(data, begins[code], begin, size):
                    break
            slot = (slot + np.uint64(1)) & mask
            code = slots[slot]
        if code < 0:
            code = np.int32(total)
            slots[slot] = code
            hashes[total] = hashed
            begins[total] = begin
            sizes[total] = size
            first[total] = i
            total += 1
            if total == len(hashes):
                slots = grown(slots, hashes, total)
                mask = np.uint64(len(slots) - 1)
                hashes = np.concatenate((hashes, np.empty(3 * total, np.uint64)))
                begins = np.concatenate((begins, np.empty(3 * total, np.int64)))
                sizes = np.concatenate((sizes, np.empty(3 * total, np.int64)))
                first = np.concatenate((first, np.empty(3 * total, np.int64)))
        out[i] = code
    return first[:total].copy()


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
            present[values[i] - least] = 1


@kernel
def number_present(present: UInt8Array, table: Int32Array) -> int:
    """Number the marked values in ascending order; returns how many there are."""
    count = 0
    for k in range(len(present)):
        table[k] = count
        count += present[k]
    return count


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
