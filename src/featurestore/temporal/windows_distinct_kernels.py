"""How many different values a window holds.

Readers who come in the order of their windows and of what they know move a set of rows along with them. For
others, a window has as many different values as rows, less its pairs: a row and the one before it of the same
value, both inside. Pairs come and go as rows become known. Which of them lie inside which window is found for
all readers at once, in O(log rows) steps of a merge sort and O(log rows) in each of them.
"""

import numpy as np
import numpy.typing as npt

from featurestore.core.time import BoolArray, Int64Array
from featurestore.temporal.jit import kernel
from featurestore.temporal.rows import Int32Array
from featurestore.temporal.windows_range_kernels import INSERT, READ, moves

Int32Matrix = npt.NDArray[np.int32]

# What an event does to a pair; anything else is the reader that counts pairs.
PAIR, PARTED = -1, -2


@kernel
def count_distinct(
    tasks: Int64Array,
    codes: Int64Array,
    distinct: int,
    low: Int32Matrix,
    high: npt.NDArray[np.int32],
    known: Int64Array,
    cutoffs: Int64Array,
    late: BoolArray,
    windows: Int64Array,
    out: npt.NDArray[np.int64],
) -> None:
    """Write how many different codes there are per window and reader; a code of -1 (null) does not count."""
    # Per code: how many rows are in the set, or the last row seen. All 0 between tasks.
    seen = np.zeros(distinct, np.int32)
    for k in range(len(tasks)):
        task = tasks[k]
        lo, hi = task[2], task[3]
        is_late = late[task[4]]
        by_known = lo + (np.argsort(known[lo:hi], kind="mergesort") if is_late else np.arange(hi - lo))
        for w in range(len(windows)):
            ranges = (low[windows[w]], high)
            if goes_back(task, ranges, cutoffs, is_late):
                count_less_pairs(task, codes, seen, ranges, (known, cutoffs), is_late, by_known, out[w])
            else:
                count_by_moves(task, codes, seen, ranges, (known, cutoffs), is_late, by_known, out[w])


@kernel
def goes_back(
    task: Int64Array, ranges: tuple[Int32Array, Int32Array], cutoffs: Int64Array, late: bool
) -> bool:
    """Say whether a reader's window begins or ends before that of the one before it, or it knows less."""
    low, high = ranges
    for q in range(task[0] + 1, task[1]):
        if low[q] < low[q - 1] or high[q] < high[q - 1] or (late and cutoffs[q] < cutoffs[q - 1]):
            return True
    return False


@kernel
def count_by_moves(
    task: Int64Array,
    codes: Int64Array,
    seen: Int32Array,
    ranges: tuple[Int32Array, Int32Array],
    knowledge: tuple[Int64Array, Int64Array],
    late: bool,
    by_known: Int64Array,
    out: Int64Array,
) -> None:
    """Write the readers' answers where none goes back: each row comes into the set and leaves it once."""
    lo, hi = task[2], task[3]
    live = np.zeros(hi - lo, np.bool_)
    operations = np.empty(4 * (hi - lo) + 2 * (task[1] - task[0]) + 2, np.int64)
    different = 0
    for m in range(moves(task, *ranges, *knowledge, late, by_known, live, operations)):
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
    forget(codes, seen, lo, hi)


@kernel
def count_less_pairs(
    task: Int64Array,
    codes: Int64Array,
    seen: Int32Array,
    ranges: tuple[Int32Array, Int32Array],
    knowledge: tuple[Int64Array, Int64Array],
    late: bool,
    by_known: Int64Array,
    out: Int64Array,
) -> None:
    """Write the readers' answers in any order of what they may know: rows, less pairs of the same value."""
    first, last, lo, hi = task[0], task[1], task[2], task[3]
    cutoffs = knowledge[1]
    by_cutoff = first + (
        np.argsort(cutoffs[first:last], kind="mergesort") if late else np.arange(last - first)
    )
    before, after = np.empty(hi - lo, np.int32), np.empty(hi - lo, np.int32)
    find_neighbours(codes, seen, by_known, lo, hi, before, after)
    events = np.empty((3 * (hi - lo) + last - first, 3), np.int32)
    tree = np.zeros(hi - lo + 1, np.int32)
    made = list_events(
        lo, codes, ranges, knowledge, late, by_known, by_cutoff, (before, after), tree, events, out
    )
    tree[:] = 0
    subtract_pairs(events[:made], tree, out)


@kernel
def forget(codes: Int64Array, seen: Int32Array, lo: int, hi: int) -> None:
    """Set what is kept per code back to 0, for the codes of some rows."""
    for i in range(lo, hi):
        if codes[i] >= 0:
            seen[codes[i]] = 0


@kernel
def find_neighbours(
    codes: Int64Array,
    seen: Int32Array,
    by_known: Int64Array,
    lo: int,
    hi: int,
    before: Int32Array,
    after: Int32Array,
) -> None:
    """Write the rows of the same code next to each row, among those known before it; -1: there is none.

    All rows are linked, and taken out again from the last one that became known to the first.
    """
    for i in range(lo, hi):
        if codes[i] >= 0:
            last = seen[codes[i]] - 1
            before[i - lo], after[i - lo] = last, -1
            if last >= 0:
                after[last] = i - lo
            seen[codes[i]] = i - lo + 1
    forget(codes, seen, lo, hi)
    for r in range(len(by_known) - 1, -1, -1):
        i = by_known[r]
        if codes[i] >= 0:
            left, right = before[i - lo], after[i - lo]
            if left >= 0:
                after[left] = right
            if right >= 0:
                before[right] = left


@kernel
def list_events(
    lo: int,
    codes: Int64Array,
    ranges: tuple[Int32Array, Int32Array],
    knowledge: tuple[Int64Array, Int64Array],
    late: bool,
    by_known: Int64Array,
    by_cutoff: Int64Array,
    neighbours: tuple[Int32Array, Int32Array],
    tree: Int32Array,
    events: npt.NDArray[np.int32],
    out: Int64Array,
) -> int:
    """Write how pairs come and go and who counts them, as they become known; and each reader's rows.

    Args:
        tree: `(rows + 1,)` zeros.
        events: `(3 * rows + readers, 3)`: a pair's rows, or where a window begins and ends; what happens.

    Returns:
        How many events there are.
    """
    made, entered = 0, 0
    for at in range(len(by_cutoff)):
        q = by_cutoff[at]
        while entered < len(by_known) and (not late or knowledge[0][by_known[entered]] <= knowledge[1][q]):
            i = by_known[entered]
            entered += 1
            if codes[i] < 0:
                continue
            left, here, right = neighbours[0][i - lo], i - lo, neighbours[1][i - lo]
            add_to(tree, here, 1)
            if left >= 0:
                made = put_event(events, made, left, here, PAIR)
            if right >= 0:
                made = put_event(events, made, here, right, PAIR)
                if left >= 0:
                    made = put_event(events, made, left, right, PARTED)
        a, b = ranges[0][q] - lo, ranges[1][q] - lo
        out[q] = sum_before(tree, b) - sum_before(tree, a)
        made = put_event(events, made, a, b, q)
    return made


@kernel
def put_event(events: npt.NDArray[np.int32], made: int, begin: int, end: int, what: int) -> int:
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
