"""Compiled loops that copy fixed-width values and build the validity bitmap in the same pass."""

from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.temporal.jit import inlined, kernel
from featurestore.temporal.rows import Int32Array

UInt8Array = npt.NDArray[np.uint8]
UInt64Array = npt.NDArray[np.uint64]
U64 = np.uint64
# Rows that are looked at together: where none is missing they need no bit of their own. A multiple of 8.
_STRETCH = 1024


@inlined
def bit_of(bitmap: UInt8Array, place: np.uint64) -> np.uint64:
    """One bit of an Arrow bitmap."""
    return U64(bitmap[place >> U64(3)] >> (place & U64(7))) & U64(1)


@kernel
def none_missing(indices: Int32Array, begin: int, end: int) -> bool:
    """Whether no index of a stretch is -1."""
    signs = np.int64(0)
    for k in range(U64(begin), U64(end)):
        signs |= np.int64(indices[k])
    return bool(signs >= 0)


@inlined
def gather_block(
    values: npt.NDArray[np.unsignedinteger[Any]],
    bitmap: UInt8Array,
    offset: int,
    indices: Int32Array,
    begin: np.uint64,
    count: int,
    out: npt.NDArray[np.unsignedinteger[Any]],
) -> np.uint64:
    """Copy up to 8 values; returns their validity bits."""
    bits = U64(0)
    for k in range(count):
        row = np.int64(indices[begin + U64(k)])
        # Without a branch: -1 reads value 0 and is masked out. The output's null slots hold zeros, so
        # that no value of another row lingers in them.
        there = ~(row >> 63)
        place = U64(row & there)
        bit = U64(there) & U64(1)
        if len(bitmap) > 0:
            bit &= bit_of(bitmap, U64(offset) + place)
        out[begin + U64(k)] = values[place] & (U64(0) - bit)
        bits |= bit << U64(k)
    return bits


@kernel
def gather_fixed(
    values: npt.NDArray[np.unsignedinteger[Any]],
    bitmap: UInt8Array,
    offset: int,
    indices: Int32Array,
    lo: int,
    hi: int,
    out: npt.NDArray[np.unsignedinteger[Any]],
    valid: UInt8Array,
) -> bool:
    """Copy `values[indices[lo:hi]]`; returns whether every value is there.

    Args:
        values: as unsigned integers of their width: bits are copied, never converted.
        bitmap: bit `offset + k` says whether value k is there; empty where all are.
        lo: a multiple of 8, so that no two threads share a byte of `valid`.
        valid: gets the output's bitmap.
    """
    every = U64(255)
    for begin in range(lo, hi, _STRETCH):
        end = min(begin + _STRETCH, hi)
        if len(bitmap) == 0 and none_missing(indices, begin, end):
            for k in range(U64(begin), U64(end)):
                out[k] = values[U64(indices[k])]
            valid[begin >> 3 : (end + 7) >> 3] = 255
            continue
        whole = end >> 3
        for block in range(begin >> 3, whole):
            bits = gather_block(values, bitmap, offset, indices, U64(block) * U64(8), 8, out)
            valid[block] = bits
            every &= bits
        rest = end & 7
        if rest > 0:
            bits = gather_block(values, bitmap, offset, indices, U64(whole) * U64(8), rest, out)
            valid[whole] = bits
            every &= bits | ~((U64(1) << U64(rest)) - U64(1))
    return bool(every == U64(255))


@kernel
def gather_views(
    views: UInt64Array,
    bitmap: UInt8Array,
    offset: int,
    indices: Int32Array,
    lo: int,
    hi: int,
    out: UInt64Array,
    valid: UInt8Array,
) -> bool:
    """Do the same for values of two words each: the views of string_view and binary_view."""
    every = U64(1)
    for block in range(lo >> 3, (hi + 7) >> 3):
        bits = U64(0)
        begin = U64(block) * U64(8)
        for k in range(min(8, hi - block * 8)):
            row = np.int64(indices[begin + U64(k)])
            there = ~(row >> 63)
            place = U64(row & there)
            bit = U64(there) & U64(1)
            if len(bitmap) > 0:
                bit &= bit_of(bitmap, U64(offset) + place)
            slot = U64(2) * (begin + U64(k))
            out[slot] = views[U64(2) * place] & (U64(0) - bit)
            out[slot + U64(1)] = views[U64(2) * place + U64(1)] & (U64(0) - bit)
            bits |= bit << U64(k)
            every &= bit
        valid[block] = bits
    return bool(every == U64(1))
