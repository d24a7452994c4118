"""Compiled loops that group rows by entity and sort what is not in order yet."""

import numpy as np
import numpy.typing as npt

from featurestore.core.time import Int64Array
from featurestore.temporal.jit import kernel
from featurestore.temporal.rows import Int32Array

UInt64Array = npt.NDArray[np.uint64]


@kernel
def codes_within(codes: Int32Array, entities: int) -> bool:
    """Whether every code is -1 or below `entities`: the loops index by it without looking."""
    bad = 0
    for i in range(len(codes)):
        bad += (codes[i] < -1) | (codes[i] >= entities)
    return bad == 0


@kernel
def contiguous_runs(codes: Int32Array, starts: Int64Array, ends: Int64Array) -> bool:
    """Fill the bounds of each entity's rows; False (bounds unusable) where they are not one run each."""
    last = np.int32(-1)
    for i in range(len(codes)):
        code = codes[i]
        if code != last:
            if last >= 0:
                ends[last] = i
            if code >= 0:
                if starts[code] >= 0:
                    return False
                starts[code] = i
            last = code
    if last >= 0:
        ends[last] = len(codes)
    for c in range(len(starts)):
        if starts[c] < 0:
            starts[c] = 0
            ends[c] = 0
    return True


@kernel
def group_rows(codes: Int32Array, starts: Int64Array, ends: Int64Array, order: Int32Array) -> None:
    """Counting sort: positions grouped by code, in position order within each; null codes are left out."""
    ends[:] = 0
    for i in range(len(codes)):
        if codes[i] >= 0:
            ends[codes[i]] += 1
    total = 0
    for c in range(len(starts)):
        starts[c] = total
        total += ends[c]
        ends[c] = starts[c]
    for i in range(len(codes)):
        code = codes[i]
        if code >= 0:
            order[ends[code]] = i
            ends[code] += 1


@kernel
def is_sorted_run(
    order: Int32Array, lo: int, hi: int, event: Int64Array, known: Int64Array, sequence: Int64Array
) -> bool:
    """Whether the rows `[lo, hi)` ascend by (event, known, sequence); an empty array is not a key."""
    for k in range(lo + 1, hi):
        a, b = k - 1, k
        if len(order) > 0:
            a, b = order[k - 1], order[k]
        if event[b] > event[a]:
            continue
        if event[b] < event[a]:
            return False
        if len(known) > 0:
            if known[b] > known[a]:
                continue
            if known[b] < known[a]:
                return False
        if len(sequence) > 0 and sequence[b] < sequence[a]:
            return False
    return True


@kernel
def all_sorted(
    starts: Int64Array,
    ends: Int64Array,
    event: Int64Array,
    known: Int64Array,
    sequence: Int64Array,
) -> bool:
    """Whether every entity's rows, contiguous in the arrays themselves, are in order."""
    none = np.empty(0, np.int32)
    for c in range(len(starts)):
        if not is_sorted_run(none, starts[c], ends[c], event, known, sequence):
            return False
    return True


@kernel
def radix_pass_sort(
    order: Int32Array, lo: int, hi: int, key: Int64Array, rows: Int32Array, words: UInt64Array
) -> None:
    """Sort `order[lo:hi]` by one key, keeping the order of equal keys; bytes that do not vary are skipped.

    Args:
        rows, words: `(2, n)` scratch space, `n` at least `hi - lo`.
    """
    count = hi - lo
    flip = np.uint64(1) << np.uint64(63)
    now, next_order = rows[0], rows[1]
    values, next_values = words[0], words[1]
    varies = np.uint64(0)
    for k in range(count):
        now[k] = order[lo + k]
        values[k] = np.uint64(key[now[k]]) ^ flip
        varies |= values[k] ^ values[0]
    places = np.empty(257, np.int64)
    for byte in range(8):
        shift = np.uint64(8 * byte)
        if (varies >> shift) & np.uint64(255) == np.uint64(0):
            continue
        places[:] = 0
        for k in range(count):
            places[np.int64((values[k] >> shift) & np.uint64(255)) + 1] += 1
        for d in range(256):
            places[d + 1] += places[d]
        for k in range(count):
            digit = np.int64((values[k] >> shift) & np.uint64(255))
            place = places[digit]
            places[digit] = place + 1
            next_values[place] = values[k]
            next_order[place] = now[k]
        values, next_values = next_values, values
        now, next_order = next_order, now
    for k in range(count):
        order[lo + k] = now[k]


@kernel
def insertion_sort(
    order: Int32Array, lo: int, hi: int, event: Int64Array, known: Int64Array, sequence: Int64Array
) -> None:
    """Sort a short run by (event, known, sequence), keeping the order of equal rows."""
    for k in range(lo + 1, hi):
        row = order[k]
        place = k
        while place > lo:
            other = order[place - 1]
            before = event[row] < event[other]
            if event[row] == event[other]:
                if len(known) > 0 and known[row] != known[other]:
                    before = known[row] < known[other]
                elif len(sequence) > 0:
                    before = sequence[row] < sequence[other]
            if not before:
                break
            order[place] = other
            place -= 1
        order[place] = row


@kernel
def sort_runs(
    order: Int32Array,
    starts: Int64Array,
    ends: Int64Array,
    event: Int64Array,
    known: Int64Array,
    sequence: Int64Array,
    first: int,
    last: int,
) -> None:
    """Bring the rows of entities `[first, last)` into (event, known, sequence, position) order."""
    for c in range(first, last):
        lo, hi = starts[c], ends[c]
        if is_sorted_run(order, lo, hi, event, known, sequence):
            continue
        if hi - lo <= 48:
            insertion_sort(order, lo, hi, event, known, sequence)
            continue
        rows, words = np.empty((2, hi - lo), np.int32), np.empty((2, hi - lo), np.uint64)
        if len(sequence) > 0:
            radix_pass_sort(order, lo, hi, sequence, rows, words)
        if len(known) > 0:
            radix_pass_sort(order, lo, hi, known, rows, words)
        radix_pass_sort(order, lo, hi, event, rows, words)


@kernel
def take_int64(values: Int64Array, order: Int32Array, lo: int, hi: int, out: Int64Array) -> None:
    """Copy `values[order[lo:hi]]` to `out[lo:hi]`."""
    for k in range(lo, hi):
        out[k] = values[order[k]]
