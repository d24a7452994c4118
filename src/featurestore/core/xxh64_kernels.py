"""xxh64 as compiled loops: of integers, as 8 bytes little-endian, and of byte strings. It imports numba.

Places are uint64: numba checks signed ones for a wrap-around to the array's end.
"""

import numpy as np
import numpy.typing as npt

from featurestore.core.jit import inlined, kernel

UInt8Array = npt.NDArray[np.uint8]
UInt64Array = npt.NDArray[np.uint64]
OffsetArray = npt.NDArray[np.int32] | npt.NDArray[np.int64]

U64 = np.uint64
_P1 = U64(11400714785074694791)
_P2 = U64(14029467366897019727)
_P3 = U64(1609587929392839161)
_P4 = U64(9650029242287828579)
_P5 = U64(2870177450012600261)


@inlined
def _rotated(word: np.uint64, by: np.uint64) -> np.uint64:
    return (word << by) | (word >> (U64(64) - by))


@inlined
def _round(lane: np.uint64, word: np.uint64) -> np.uint64:
    return _rotated(lane + word * _P2, U64(31)) * _P1


@inlined
def _mixed(hashed: np.uint64, word: np.uint64) -> np.uint64:
    """Take in 8 bytes of the rest that is shorter than a stripe."""
    return _rotated(hashed ^ _round(U64(0), word), U64(27)) * _P1 + _P4


@inlined
def _merged(hashed: np.uint64, lane: np.uint64) -> np.uint64:
    return (hashed ^ _round(U64(0), lane)) * _P1 + _P4


@inlined
def _finished(hashed: np.uint64) -> np.uint64:
    hashed = (hashed ^ (hashed >> U64(33))) * _P2
    hashed = (hashed ^ (hashed >> U64(29))) * _P3
    return hashed ^ (hashed >> U64(32))


@inlined
def _half(data: UInt8Array, at: np.uint64) -> np.uint64:
    """Read 4 bytes, the least significant first; compilers make one load of it."""
    low = U64(data[at]) | U64(data[at + U64(1)]) << U64(8)
    return low | U64(data[at + U64(2)]) << U64(16) | U64(data[at + U64(3)]) << U64(24)


@inlined
def _word(data: UInt8Array, at: np.uint64) -> np.uint64:
    return _half(data, at) | _half(data, at + U64(4)) << U64(32)


@kernel
def hash_words(values: UInt64Array, seed: np.uint64, out: UInt64Array) -> None:
    """Hash each number as its 8 bytes."""
    start = seed + _P5 + U64(8)
    for i in range(len(values)):
        out[i] = _finished(_mixed(start, values[i]))


@kernel
def hash_strings(data: UInt8Array, offsets: OffsetArray, seed: np.uint64, out: UInt64Array) -> None:
    """Hash each byte string.

    Args:
        offsets: `(n + 1,)` where each string begins in `data`, and where the last one ends.
    """
    for i in range(len(out)):
        at, end = U64(offsets[i]), U64(offsets[i + 1])
        size = end - at
        hashed = seed + _P5
        if size >= U64(32):
            one, two, three, four = seed + _P1 + _P2, seed + _P2, seed, seed - _P1
            while end - at >= U64(32):
                one = _round(one, _word(data, at))
                two = _round(two, _word(data, at + U64(8)))
                three = _round(three, _word(data, at + U64(16)))
                four = _round(four, _word(data, at + U64(24)))
                at += U64(32)
            hashed = _rotated(one, U64(1)) + _rotated(two, U64(7))
            hashed += _rotated(three, U64(12)) + _rotated(four, U64(18))
            hashed = _merged(_merged(_merged(_merged(hashed, one), two), three), four)
        hashed += size
        while end - at >= U64(8):
            hashed = _mixed(hashed, _word(data, at))
            at += U64(8)
        if end - at >= U64(4):
            hashed = _rotated(hashed ^ _half(data, at) * _P1, U64(23)) * _P2 + _P3
            at += U64(4)
        while at < end:
            hashed = _rotated(hashed ^ U64(data[at]) * _P5, U64(11)) * _P1
            at += U64(1)
        out[i] = _finished(hashed)
