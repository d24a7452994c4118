"""How many different values a window holds.

Readers who do not step back move a set of rows along with them. For others, a window has as many different
values as rows, less its pairs: a row and the one before it of the same
value, both inside. Pairs come and go as rows become known. Which of them lie inside which window is found for
all readers at once, in O(log rows) steps of a merge sort and O(log rows) in each of them.
"""

import numpy as np
import numpy.typing as npt

from featurestore.core.time import BoolArray, Int64Array
from featurestore.temporal.jit import kernel
from featurestore.temporal.rows import Int32Array
from featurestore.temporal.windows_range_kernels import INSERT, READ, known_order, moves

Int32Matrix = npt.NDArray[np.int32]

# What an event does to a pair; anything else is the reader that counts pairs.
PAIR, PARTED = -1, -2


@kernel
def distinct_by_moves(
    tasks: Int64Array,
    codes: Int64Array,
    distinct: int,
    low: Int32Matrix,
    high: npt.NDArray[np.int32],
    known: Int64Array,
    cutoffs: Int64Array,
    late: BoolArray,
    window: int,
    out: Int64Array,
) -> None:
    """Write how many different codes each reader sees in a window; a code of -1 (null) does not count.

    No reader may step back; those who do are for `distinct_by_pairs`.
    """
    seen = np.zeros(distinct, np.int32)
    for k in range(len(tasks)):
        task = tasks[k]
        lo, hi, is_late = task[2], task[3], late[task[4]]
        by_known = known_order(known, lo, hi, is_late)
        live = np.zeros(hi - lo, np.bool_)
        operations = np.empty(2 * (hi - lo) + task[1] - task[0], np.int64)
        different = 0
        for m in range(moves(task, low[window], high, known, cutoffs, is_late, by_known, live, operations)):
            code, at = operations[m] & 3, operations[m] >> 2
            if code == READ:
                out[at] = different
            elif codes[at] >= 0:
                if code == INSERT:
                    different += seen[codes[at]] == 0
                    seen[codes[at]] += 1
                else:
                    seen[codes[at]] -= 1
                    different -= seen[codes[at]] == 0
        forget(codes, lo, hi, seen)


@kernel
def distinct_by_pairs(
    tasks: Int64Array,
    codes: Int64Array,
    distinct: int,
    low: Int32Matrix,
    high: npt.NDArray[np.int32],
    known: Int64Array,
    cutoffs: Int64Array,
    late: BoolArray,
    window: int,
    out: Int64Array,
) -> None:
    """Answer what `distinct_by_moves` does, for readers in any order of windows and of what they know."""
    seen = np.zeros(distinct, np.int32)
    for k in range(len(tasks)):
        task = tasks[k]
        lo, hi, is_late = task[2], task[3], late[task[4]]
        by_known = known_order(known, lo, hi, is_late)
        by_cutoff = known_order(cutoffs, task[0], task[1], is_late)
        before, after = np.empty(hi - lo, np.int32), np.empty(hi - lo, np.int32)
        find_neighbours(codes, by_known, lo, hi, seen, before, after)
        events = np.empty((3 * (hi - lo) + task[1] - task[0], 3), np.int32)
        tree = np.zeros(hi - lo + 1, np.int32)
        made, entered = 0, 0
        for at in range(len(by_cutoff)):
            q = by_cutoff[at]
            while entered < len(by_known) and (not is_late or known[by_known[entered]] <= cutoffs[q]):
                i = by_known[entered] - lo
                if codes[lo + i] >= 0:
                    add_to(tree, i, 1)
                    made = put_pairs(before[i], i, after[i], events, made)
                entered += 1
            a, b = low[window, q] - lo, high[q] - lo
            out[q] = sum_before(tree, b) - sum_before(tree, a)
            made = put_event(a, b, q, events, made)
        tree[:] = 0
        subtract_pairs(events[:made], tree, out)


@kernel
def forget(codes: Int64Array, lo: int, hi: int, seen: Int32Array) -> None:
    """Set what is kept per code back to 0, for the codes of some rows."""
    for i in range(lo, hi):
        if codes[i] >= 0:
            seen[codes[i]] = 0


@kernel
def find_neighbours(
    codes: Int64Array,
    by_known: Int64Array,
    lo: int,
    hi: int,
    seen: Int32Array,
    before: Int32Array,
    after: Int32Array,
) -> None:
    """Write the rows of the same code next to each row, among those known before it; -1: there is none.

    All rows are linked, and taken out again from the last one that became known to the first.

    Args:
        seen: zeros, one per code.
    """
    for i in range(lo, hi):
        if codes[i] >= 0:
            last = seen[codes[i]] - 1
            before[i - lo], after[i - lo] = last, -1
            if last >= 0:
                after[last] = i - lo
            seen[codes[i]] = i - lo + 1
    forget(codes, lo, hi, seen)
    for r in range(len(by_known) - 1, -1, -1):
        i = by_known[r]
        if codes[i] >= 0:
            left, right = before[i - lo], after[i - lo]
            if left >= 0:
                after[left] = right
            if right >= 0:
                before[right] = left


@kernel
def put_pairs(left: int, row: int, right: int, events: npt.NDArray[np.int32], made: int) -> int:
    """Write what a row that becomes known does to pairs of its value; returns how many events there are."""
    if left >= 0:
        made = put_event(left, row, PAIR, events, made)
    if right >= 0:
        made = put_event(row, right, PAIR, events, made)
        if left >= 0:
            made = put_event(left, right, PARTED, events, made)
    return made


@kernel
def put_event(begin: int, end: int, what: int, events: npt.NDArray[np.int32], made: int) -> int:
    """Write one event more; returns how many there are now."""
    events[made, 0] = begin
    events[made, 1] = end
    events[made, 2] = what
    return made + 1


@kernel
def subtract_pairs(events: npt.NDArray[np.int32], tree: Int32Array, out: Int64Array) -> None:
    """Take from each reader's rows the pairs in its window: those of the events before it.

    A merge sort by where events begin, the last row first. Wherever an earlier half meets a later one, those
    pairs of the earlier half that begin in a window are in the tree when the later half's reader asks.
    """
    order, merged = np.arange(len(events)), np.empty(len(events), np.int64)
    half = 1
    while half < len(events):
        for begin in range(0, len(events) - half, 2 * half):
            middle, end = begin + half, min(begin + 2 * half, len(events))
            i, at = begin, begin
            for j in range(middle, end):
                event = events[order[j]]
                while i < middle and events[order[i], 0] >= event[0]:
                    change_pairs(events[order[i]], 1, tree)
                    merged[at] = order[i]
                    i += 1
                    at += 1
                if event[2] >= 0:
                    out[event[2]] -= sum_before(tree, event[1])
                merged[at] = order[j]
                at += 1
            for k in range(begin, i):
                change_pairs(events[order[k]], -1, tree)
            merged[at:end] = order[i:middle]
            order[begin:end] = merged[begin:end]
        half *= 2


@kernel
def change_pairs(event: Int32Array, by: int, tree: Int32Array) -> None:
    """Add what an event does to the pairs that end at its row, or take it back; readers do nothing."""
    if event[2] == PAIR:
        add_to(tree, event[1], by)
    elif event[2] == PARTED:
        add_to(tree, event[1], -by)


@kernel
def add_to(tree: Int32Array, place: int, by: int) -> None:
    """Add to one place of a Fenwick tree, whose node n ends with place n - 1."""
    node = place + 1
    while node < len(tree):
        tree[node] += by
        node += node & -node


@kernel
def sum_before(tree: Int32Array, place: int) -> int:
    """Return the sum of the places before one."""
    total = 0
    while place > 0:
        total += tree[place]
        place -= place & -place
    return total
