"""Compiled loops of the as-of join. Times are compared as int64, distances as uint64: nothing wraps."""

import numpy as np

from featurestore.core.time import INT64_MAX, BoolArray, Int64Array
from featurestore.temporal.jit import kernel
from featurestore.temporal.order_kernels import UInt64Array, radix_pass_sort
from featurestore.temporal.rows import Int32Array

# Each level of the knowledge tree holds the minimum of 16 entries of the level below.
_FAN_BITS = 4
_FAN = 1 << _FAN_BITS


@kernel
def count_before(event: Int64Array, lo: int, hi: int, guess: int, time: int, with_equal: bool) -> int:
    """First place in `[lo, hi]` whose event lies after `time` (at or after it without `with_equal`).

    Args:
        event: times, ascending in `[lo, hi)`.
        guess: where to begin; the search gallops from there, so near answers are cheap.
    """
    a, b = lo, hi
    step = 1
    if guess > lo and not (event[guess - 1] < time or (with_equal and event[guess - 1] == time)):
        b = guess - 1
        while b > lo:
            probe = max(lo, b - step)
            if event[probe] < time or (with_equal and event[probe] == time):
                a = probe + 1
                break
            b = probe
            step *= 2
    else:
        a = guess
        while a < hi:
            probe = min(hi - 1, a + step - 1)
            if not (event[probe] < time or (with_equal and event[probe] == time)):
                b = probe
                break
            a = probe + 1
            step *= 2
    while a < b:
        middle = (a + b) >> 1
        if event[middle] < time or (with_equal and event[middle] == time):
            a = middle + 1
        else:
            b = middle
    return a


@kernel
def knowledge_tree(known: Int64Array, tree: Int64Array, levels: Int64Array) -> None:
    """Fill `tree` with minima over 16, 256, … neighbours; `levels[k]` is where level k + 1 begins."""
    below = known
    begin = 0
    for level in range(len(levels)):
        levels[level] = begin
        count = (len(below) + _FAN - 1) >> _FAN_BITS
        for block in range(count):
            least = INT64_MAX
            for k in range(block << _FAN_BITS, min(len(below), (block + 1) << _FAN_BITS)):
                least = min(least, below[k])
            tree[begin + block] = least
        below = tree[begin : begin + count]
        begin += count


@kernel
def known_before(
    known: Int64Array, tree: Int64Array, levels: Int64Array, lo: int, place: int, cutoff: int
) -> int:
    """Last place in `[lo, place]` with `known <= cutoff`, or -1. O(log n) where few are known."""
    level = 0
    while place >= lo:
        block = ((place + 1) >> (_FAN_BITS * level)) - 1
        least = known[block] if level == 0 else tree[levels[level - 1] + block]
        if least <= cutoff:
            if level == 0:
                return place
            level -= 1
            continue
        place -= 1 << (_FAN_BITS * level)
        if level < len(levels) and (place + 1) & ((1 << (_FAN_BITS * (level + 1))) - 1) == 0:
            level += 1
    return -1


@kernel
def known_after(
    known: Int64Array, tree: Int64Array, levels: Int64Array, hi: int, place: int, cutoff: int
) -> int:
    """First place in `[place, hi)` with `known <= cutoff`, or -1."""
    level = 0
    while place < hi:
        block = place >> (_FAN_BITS * level)
        least = known[block] if level == 0 else tree[levels[level - 1] + block]
        if least <= cutoff:
            if level == 0:
                return place
            level -= 1
            continue
        place += 1 << (_FAN_BITS * level)
        if level < len(levels) and place & ((1 << (_FAN_BITS * (level + 1))) - 1) == 0:
            level += 1
    return -1


@kernel
def search(
    codes: Int32Array,
    time: Int64Array,
    cutoff: Int64Array,
    event: Int64Array,
    known: Int64Array,
    tree: Int64Array,
    levels: Int64Array,
    starts: Int64Array,
    ends: Int64Array,
    order: Int32Array,
    backward: bool,
    forward: bool,
    inclusive: bool,
    tolerance: int,
    first: int,
    last: int,
    turns: Int32Array,
    out: Int32Array,
) -> None:
    """Point spine rows `[first, last)`, in any order, at rows grouped by entity and in time order.

    Args:
        codes, time: of the whole spine; of its rows `[first, last)` in their turns where there are `turns`.
        turns: these rows less `first`, in the order to answer them; empty: as they come.
        cutoff: what each spine row may know; empty where there is no knowledge condition.
        known: when each grouped row could be known.
        order: source position of each grouped row; empty where that is the place itself.
        tolerance: greatest distance, bound included; -1 for none.
    """
    cursor = starts.astype(np.int32)
    limit = np.uint64(max(tolerance, 0))
    for k in range(first, last):
        i, turn = k, k
        if len(turns) > 0:
            turn = k - first
            i = first + turns[turn]
        code = codes[turn]
        out[i] = -1
        if code < 0:
            continue
        lo, hi = starts[code], ends[code]
        if lo == hi:
            continue
        now = time[turn]
        before, after = -1, -1
        if backward:
            edge = count_before(event, lo, hi, int(cursor[code]), now, inclusive)
            cursor[code] = edge
            before = edge - 1 if edge > lo else -1
            if before >= 0 and len(cutoff) > 0:
                before = known_before(known, tree, levels, lo, before, min(cutoff[i], INT64_MAX - 1))
            if before >= 0 and tolerance >= 0 and np.uint64(now - event[before]) > limit:
                before = -1
        if forward:
            edge = count_before(event, lo, hi, int(cursor[code]), now, not inclusive)
            cursor[code] = edge
            after = edge if edge < hi else -1
            if after >= 0 and len(cutoff) > 0:
                after = known_after(known, tree, levels, hi, after, min(cutoff[i], INT64_MAX - 1))
            if after >= 0 and tolerance >= 0 and np.uint64(event[after] - now) > limit:
                after = -1
        place = before
        if before < 0 or (after >= 0 and np.uint64(event[after] - now) < np.uint64(now - event[before])):
            place = after
        if place >= 0:
            out[i] = place if len(order) == 0 else order[place]


@kernel
def count_falls(time: Int64Array, first: int, last: int) -> int:
    """How often a time is before the one that precedes it."""
    falls = 0
    for i in range(first + 1, last):
        falls += time[i] < time[i - 1]
    return falls


@kernel
def turns_of(
    codes: Int32Array,
    time: Int64Array,
    entities: int,
    first: int,
    last: int,
    turns: Int32Array,
    turn_codes: Int32Array,
    turn_times: Int64Array,
    rows: Int32Array,
    words: UInt64Array,
) -> None:
    """Bring spine rows `[first, last)` into (code, time) order, so that neighbours search side by side.

    Args:
        turns, turn_codes, turn_times: get the rows less `first`, their codes and their times, in that order.
        rows, words: `(2, n)` scratch space, `n` at least `last - first`.
    """
    count = last - first
    # By time alone first, in what will hold the codes.
    by_time = turn_codes
    for k in range(count):
        by_time[k] = k
    radix_pass_sort(by_time, 0, count, time[first:last], rows, words)
    places = np.zeros(entities + 2, np.int32)
    for i in range(first, last):
        places[codes[i] + 2] += 1
    for c in range(entities + 1):
        places[c + 1] += places[c]
    for k in range(count):
        row = by_time[k]
        code = codes[first + row]
        place = places[code + 1]
        turns[place], turn_times[place] = row, time[first + row]
        places[code + 1] = place + 1
    for k in range(count):
        turn_codes[k] = codes[first + turns[k]]


@kernel
def keep_valid(
    valid: BoolArray,
    order: Int32Array,
    starts: Int64Array,
    ends: Int64Array,
    kept: Int32Array,
    new_starts: Int64Array,
    new_ends: Int64Array,
) -> int:
    """List the positions of grouped rows whose value is there, in order; returns their number."""
    place = 0
    for c in range(len(starts)):
        new_starts[c] = place
        for k in range(starts[c], ends[c]):
            row = k if len(order) == 0 else order[k]
            if valid[row]:
                kept[place] = row
                place += 1
        new_ends[c] = place
    return place
