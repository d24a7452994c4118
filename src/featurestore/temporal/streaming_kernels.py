"""Compiled loops over the rows that a stream holds: what a push brings in, and what can come out."""

import numpy as np

from featurestore.core.time import Int64Array
from featurestore.temporal.jit import kernel
from featurestore.temporal.key_kernels import UInt8Array, is_valid
from featurestore.temporal.rows import Int32Array

U64 = np.uint64
# Rows that are looked at together, so that the loop over them has no exit.
_STRETCH = 1024


@kernel
def take_times(event: Int64Array, bound: int, before: int, out: Int64Array) -> tuple[int, int]:
    """Copy times; return how many are older than `bound`, and the last place that goes back in time.

    Args:
        before: the time before the first one.

    Returns:
        The place is -1 where no time is older than the one before it.
    """
    if len(event) == 0:
        return 0, -1
    out[0] = event[0]
    late, falls = int(event[0] < bound), 0
    for i in range(U64(1), U64(len(event))):
        out[i] = event[i]
        late += event[i] < bound
        falls += event[i] < event[i - U64(1)]
    if falls > 0:
        return late, last_fall(event)
    return late, 0 if event[0] < before else -1


@kernel
def last_fall(event: Int64Array) -> int:
    """Return the last place that is older than the one before it, -1 where there is none."""
    for i in range(len(event) - 1, 0, -1):
        if event[i] < event[i - 1]:
            return i
    return -1


@kernel
def sealed_rows(codes: Int32Array, event: Int64Array, bound: int) -> int:
    """Return how many rows come before the first that has a key and is not older than `bound`."""
    count = len(codes)
    for begin in range(0, count, _STRETCH):
        end = min(begin + _STRETCH, count)
        waiting = 0
        for i in range(U64(begin), U64(end)):
            waiting += (event[i] >= bound) & (codes[i] >= 0)
        if waiting > 0:
            for i in range(begin, end):
                if event[i] >= bound and codes[i] >= 0:
                    return i
    return count


@kernel
def put_bits(bitmap: UInt8Array, offset: int, out: UInt8Array, at: int, count: int) -> None:
    """Copy `count` bits of an Arrow bitmap, an empty one being all ones, to bit `at` of another."""
    for k in range(count):
        place = at + k
        bit = np.uint8(1 << (place & 7))
        out[place >> 3] = out[place >> 3] | bit if is_valid(bitmap, offset + k) else out[place >> 3] & ~bit


@kernel
def keep_bits(bits: UInt8Array, places: Int64Array) -> None:
    """Move the bits at ascending `places` to the front."""
    for k in range(len(places)):
        bit = np.uint8(1 << (k & 7))
        bits[k >> 3] = bits[k >> 3] | bit if is_valid(bits, places[k]) else bits[k >> 3] & ~bit
