"""Compiled loops of the plain merge: both sides in time order, the newest row per entity as the state.

A merge of two random sides mispredicts a branch per row and waits for each comparison before the next one.
`merge_two` therefore computes its steps without branches and runs two independent stretches of the data side
by side, so that one fills the other's waiting time; without keys eight rows meet eight readers in one step.
States hold row positions, entity e in slot e + 2; slot 1 stands for a null key and stays -1, slot 0 takes
what is written where nothing is due.
"""

import numpy as np

from featurestore.core.time import Int64Array
from featurestore.temporal.gather_kernels import none_missing
from featurestore.temporal.jit import inlined, kernel
from featurestore.temporal.merge_blocks import BLOCK, place_block
from featurestore.temporal.rows import Int32Array

U64 = np.uint64
I32 = np.int32
# A slot is never negative; said in 32 bits it needs no widening of the sign.
U32 = np.uint32
_BLOCK = U64(BLOCK)
# Answers that are looked at together: where none is missing there is nothing to finish.
_STRETCH = 1024


@kernel
def is_ascending(times: Int64Array, ties: Int64Array, first: int, last: int) -> bool:
    """Whether (time, tie) never goes back from `first - 1` to `last - 1`; an empty `ties` is no key."""
    block = 4096
    for start in range(first, last, block):
        part = times[max(start - 1, 0) : min(start + block, last)]
        falls = 0
        for i in range(1, len(part)):
            falls += part[i] < part[i - 1]
        if falls > 0:
            return False
    for i in range(max(first, 1), min(last, len(ties))):
        if times[i] == times[i - 1] and ties[i] < ties[i - 1]:
            return False
    return True


@kernel
def rows_before(event: Int64Array, time: int, slack: int) -> int:
    """How many rows of an ascending side a reader at `time` sees; slack 1 includes the same instant."""
    lo, hi = 0, len(event)
    while lo < hi:
        middle = (lo + hi) >> 1
        if event[middle] - time - slack < 0:
            lo = middle + 1
        else:
            hi = middle
    return lo


@kernel
def cut_at(time: Int64Array, event: Int64Array, slack: int, goal: int) -> tuple[int, int]:
    """How many spine rows, and the rows they see, come to at most `goal` together."""
    lo, hi = 0, len(time)
    while lo < hi:
        middle = (lo + hi + 1) >> 1
        if middle + rows_before(event, time[middle - 1], slack) <= goal:
            lo = middle
        else:
            hi = middle - 1
    return lo, rows_before(event, time[lo - 1], slack) if lo > 0 else 0


@kernel
def cut_merge(time: Int64Array, event: Int64Array, slack: int, cuts: Int64Array) -> None:
    """Cut the merge of both sides into stretches of nearly equal work.

    Args:
        cuts: `(k + 1, 2)`; stretch s covers spine rows `[cuts[s, 0], cuts[s + 1, 0])` and the rows between
            `cuts[s, 1]` and `cuts[s + 1, 1]`, all of which every later stretch may see.
    """
    parts = len(cuts) - 1
    total = len(time) + len(event)
    cuts[0, 0] = 0
    cuts[0, 1] = 0
    for part in range(1, parts):
        cuts[part, 0], cuts[part, 1] = cut_at(time, event, slack, total * part // parts)
    cuts[parts, 0] = len(time)
    cuts[parts, 1] = len(event)


@kernel
def merge_one(
    time: Int64Array,
    codes: Int32Array,
    event: Int64Array,
    row_codes: Int32Array,
    slack: int,
    i: int,
    i_end: int,
    j: int,
    j_end: int,
    state: Int32Array,
    out: Int32Array,
) -> None:
    """Merge one stretch; its last spine row sees all its rows, so the state is complete at the end."""
    spine, spine_end, row, row_end = U64(i), U64(i_end), U64(j), U64(j_end)
    while spine < spine_end:
        now = time[spine]
        while row < row_end and event[row] - now - slack < 0:
            state[U64(row_codes[row] + I32(2))] = I32(row) | (row_codes[row] >> I32(31))
            row += U64(1)
        out[spine] = state[U64(codes[spine] + I32(2))]
        spine += U64(1)


@inlined
def merge_step(
    time: Int64Array,
    codes: Int32Array,
    event: Int64Array,
    row_codes: Int32Array,
    slack: int,
    spine: np.uint64,
    row: np.uint64,
    state: Int32Array,
    out: Int32Array,
) -> tuple[np.uint64, np.uint64]:
    """Take the next row or answer the next spine row, whichever is due, without a branch.

    `due` is all ones where the row comes first. Either way the answer is written: where the spine row was
    not due yet, the next step at it writes it again. A row that is not due goes to slot 0.
    """
    due = (event[row] - time[spine] - slack) >> 63
    out[spine] = state[U64(U32(codes[spine] + I32(2)))]
    theirs = row_codes[row]
    state[U64(U32((theirs + I32(2)) & I32(due)))] = I32(row) | (theirs >> I32(31))
    return spine + U64(1) + U64(due), row - U64(due)


@inlined
def steps_left(i: np.uint64, i_end: np.uint64, j: np.uint64, j_end: np.uint64, rows: np.uint64) -> np.uint64:
    """How many steps a stretch can take and read nothing beyond the arrays.

    Its last spine row sees all its rows, so as many steps as it has rows of both kinds end exactly at its
    end. The last stretch may end with rows that nobody sees, and has none behind it to compare with.
    """
    return (i_end - i) + (j_end - j) if j_end < rows else min(i_end - i, j_end - j)


@kernel
def merge_two(
    time: Int64Array,
    codes: Int32Array,
    event: Int64Array,
    row_codes: Int32Array,
    slack: int,
    cuts: Int64Array,
    states: Int32Array,
    first: int,
    out: Int32Array,
) -> None:
    """Merge the stretches `first` and `first + 1` side by side."""
    i, j = U64(cuts[first, 0]), U64(cuts[first, 1])
    k, m = U64(cuts[first + 1, 0]), U64(cuts[first + 1, 1])
    i_end, j_end = U64(cuts[first + 1, 0]), U64(cuts[first + 1, 1])
    k_end, m_end = U64(cuts[first + 2, 0]), U64(cuts[first + 2, 1])
    one, two = states[first], states[first + 1]
    rows = U64(len(event))
    steps = min(steps_left(i, i_end, j, j_end, rows), steps_left(k, k_end, m, m_end, rows))
    while steps > U64(16):
        for _ in range(steps):
            i, j = merge_step(time, codes, event, row_codes, slack, i, j, one, out)
            k, m = merge_step(time, codes, event, row_codes, slack, k, m, two, out)
        steps = min(steps_left(i, i_end, j, j_end, rows), steps_left(k, k_end, m, m_end, rows))
    merge_one(time, codes, event, row_codes, slack, int(i), int(i_end), int(j), int(j_end), one, out)
    merge_one(time, codes, event, row_codes, slack, int(k), int(k_end), int(m), int(m_end), two, out)


@inlined
def block_step(
    time: Int64Array,
    event: Int64Array,
    slack: int,
    spine: np.uint64,
    row: np.uint64,
    fresh: np.uint64,
    out: Int32Array,
) -> tuple[np.uint64, np.uint64, np.uint64]:
    """Hold a block of spine rows against a block of rows, then leave the block that ends first."""
    due = U64(place_block(time, spine, event, row, slack, fresh, out))
    return spine + (_BLOCK & ~due), row + (_BLOCK & due), ~due & U64(1)


@kernel
def merge_places(
    time: Int64Array, event: Int64Array, slack: int, cuts: Int64Array, first: int, out: Int32Array
) -> None:
    """Merge the stretches `first` and `first + 1` side by side, all rows being of one entity.

    The answer is then the number of rows before, less one: no state, and no stretch needs another's.
    """
    i, j = U64(cuts[first, 0]), U64(cuts[first, 1])
    k, m = U64(cuts[first + 1, 0]), U64(cuts[first + 1, 1])
    i_end, j_end = U64(cuts[first + 1, 0]), U64(cuts[first + 1, 1])
    k_end, m_end = U64(cuts[first + 2, 0]), U64(cuts[first + 2, 1])
    one, two = U64(1), U64(1)
    # The rows of the first stretch need no bound: those behind them are not before its readers.
    steps = min(i_end - i, k_end - k, m_end - m) // _BLOCK
    while steps > U64(0):
        for _ in range(steps):
            i, j, one = block_step(time, event, slack, i, j, one, out)
            k, m, two = block_step(time, event, slack, k, m, two, out)
        steps = min(i_end - i, k_end - k, m_end - m) // _BLOCK
    place_rest(time, event, slack, int(i), int(i_end), int(j_end), out)
    place_rest(time, event, slack, int(k), int(k_end), int(m_end), out)


@kernel
def place_rest(
    time: Int64Array, event: Int64Array, slack: int, i: int, i_end: int, j_end: int, out: Int32Array
) -> None:
    """Finish one stretch of `merge_places` from spine row `i` on; its rows end before `j_end`."""
    if i >= i_end:
        return
    row, row_end = U64(rows_before(event, time[i], slack)), U64(j_end)
    for spine in range(U64(i), U64(i_end)):
        while row < row_end and event[row] - time[spine] - slack < 0:
            row += U64(1)
        out[spine] = I32(row) - I32(1)


@kernel
def apply_tolerance(
    time: Int64Array, event: Int64Array, tolerance: int, lo: int, hi: int, out: Int32Array
) -> None:
    """Forget earlier rows that are further away than the tolerance."""
    limit = U64(max(tolerance, 0))
    for i in range(lo, hi):
        if out[i] >= 0 and U64(time[i] - event[out[i]]) > limit:
            out[i] = -1


@kernel
def merge_back(
    time: Int64Array,
    codes: Int32Array,
    event: Int64Array,
    row_codes: Int32Array,
    slack: int,
    cuts: Int64Array,
    part: int,
    state: Int32Array,
    out: Int32Array,
) -> None:
    """Merge one stretch from its end to its beginning: the next row per entity instead of the last.

    Here `cuts` come from a merge whose slack excludes what this one includes, so that the rows from
    `cuts[part, 1]` on are those that are not before the stretch's first spine row.
    """
    spine, row = cuts[part + 1, 0] - 1, cuts[part + 1, 1] - 1
    while spine >= cuts[part, 0]:
        now = time[spine]
        while row >= cuts[part, 1] and not event[row] - now - slack < 0:
            state[row_codes[row] + 2] = I32(row) | (row_codes[row] >> I32(31))
            row -= 1
        out[spine] = state[codes[spine] + 2]
        spine -= 1
    while row >= cuts[part, 1]:
        state[row_codes[row] + 2] = I32(row) | (row_codes[row] >> I32(31))
        row -= 1


@kernel
def finish_merge(
    time: Int64Array,
    codes: Int32Array,
    event: Int64Array,
    states: Int32Array,
    cuts: Int64Array,
    part: int,
    step: int,
    tolerance: int,
    out: Int32Array,
) -> None:
    """Answer from the stretches before this one (after it, with step 1), then apply the tolerance."""
    limit = U64(max(tolerance, 0))
    parts = len(states)
    for begin in range(cuts[part, 0], cuts[part + 1, 0], _STRETCH):
        end = min(begin + _STRETCH, cuts[part + 1, 0])
        if tolerance < 0 and none_missing(out, begin, end):
            continue
        for i in range(U64(begin), U64(end)):
            row = out[i]
            other = part + step
            while row < 0 and 0 <= other < parts:
                row = states[other, codes[i] + 2]
                other += step
            if row >= 0 and tolerance >= 0:
                distance = time[i] - event[row] if step < 0 else event[row] - time[i]
                if U64(distance) > limit:
                    row = -1
            out[i] = row


@kernel
def merge_on(
    time: Int64Array,
    codes: Int32Array,
    event: Int64Array,
    row_codes: Int32Array,
    slack: int,
    tolerance: int,
    row: int,
    states: Int32Array,
    out: Int32Array,
) -> int:
    """Answer spine rows, in one thread, from a state that earlier ones have left, and go on with it.

    Args:
        tolerance: negative for none.
        row: the state holds the rows before it.
        states: `(2, entities + 2)`; the first one is the state, the second one scratch space.

    Returns:
        The first row that none of the spine rows sees: the state holds those before it.
    """
    spine = len(time)
    if spine == 0:
        return row
    end = row + rows_before(event[row:], time[spine - 1], slack)
    one, two = states[0], states[1]
    if len(one) > spine + end - row:
        # A second state costs more than the waiting that it saves.
        merge_one(time, codes, event, row_codes, slack, 0, spine, row, end, one, out)
        if tolerance >= 0:
            apply_tolerance(time, event, tolerance, 0, spine, out)
        return end
    cuts = np.empty((3, 2), np.int64)
    first, seen = cut_at(time, event[row:end], slack, (spine + end - row) >> 1)
    cuts[0, 0], cuts[0, 1] = 0, row
    cuts[1, 0], cuts[1, 1] = first, row + seen
    cuts[2, 0], cuts[2, 1] = spine, end
    two[:] = -1
    merge_two(time, codes, event, row_codes, slack, cuts, states, 0, out)
    if tolerance >= 0:
        finish_merge(time, codes, event, states, cuts, 0, -1, tolerance, out)
    finish_merge(time, codes, event, states, cuts, 1, -1, tolerance, out)
    for slot in range(2, len(two)):
        if two[slot] >= 0:
            one[slot] = two[slot]
    return end


@kernel
def take_nearer(
    time: Int64Array, event: Int64Array, after: Int32Array, lo: int, hi: int, out: Int32Array
) -> None:
    """Replace the backward choice by the forward one where that is strictly nearer, or the only one."""
    for i in range(lo, hi):
        row = after[i]
        if row >= 0 and (out[i] < 0 or event[row] - time[i] < time[i] - event[out[i]]):
            out[i] = row
