"""Where each reader's windows begin and end among the rows of its entity, and how the work is cut."""

import numpy as np
import numpy.typing as npt

from featurestore.core.time import INT64_MIN, BoolArray, Int64Array
from featurestore.temporal.jit import kernel

Int32Array2 = npt.NDArray[np.int32]

# Rows whose prefix sums fit the second-level cache of one core.
TASK_ROWS = 1 << 13
INSERT, REMOVE, READ = 0, 1, 2


@kernel
def find_late(known: Int64Array, starts: Int64Array, ends: Int64Array, late: BoolArray) -> None:
    """Mark the entities whose rows, in event order, did not become known in that order."""
    for e in range(len(starts)):
        for i in range(starts[e] + 1, ends[e]):
            if known[i] < known[i - 1]:
                late[e] = True
                break


@kernel
def window_start(t: int, window: int, tile: int) -> tuple[int, bool]:
    """Return the bound rows must be after, and whether every row is (the bound is before all time)."""
    if t < INT64_MIN + window:
        return INT64_MIN, True
    start = t - window
    if tile > 0:
        back = start % tile
        if start < INT64_MIN + back:
            return INT64_MIN, True
        start -= back
    return start, False


@kernel
def upper_bound(values: Int64Array, lo: int, hi: int, key: int) -> int:
    """Return the first place in sorted `values[lo:hi]` whose value is greater than `key`."""
    while lo < hi:
        mid = (lo + hi) >> 1
        if values[mid] <= key:
            lo = mid + 1
        else:
            hi = mid
    return lo


@kernel
def advance(values: Int64Array, at: int, lo: int, hi: int, key: int) -> int:
    """Return what `upper_bound` does, from a place near the answer: O(1) where keys ascend."""
    if at > lo and values[at - 1] > key:
        return upper_bound(values, lo, at - 1, key)
    step = 0
    while at < hi and values[at] <= key:
        at += 1
        step += 1
        if step == 64:
            return upper_bound(values, at, hi, key)
    return at


@kernel
def fill_ranges(
    entities: tuple[int, int],
    event: Int64Array,
    known: Int64Array,
    row_bounds: tuple[Int64Array, Int64Array],
    late: BoolArray,
    times: Int64Array,
    cutoffs: Int64Array,
    spine_bounds: tuple[Int64Array, Int64Array],
    window: Int64Array,
    tile: Int64Array,
    low: Int32Array2,
    high: npt.NDArray[np.int32],
) -> None:
    """Write, per window and spine row in sorted order, the rows `[low, high)` it may count.

    The rows of a late entity are bounded by event time alone: which of them are known is asked row by row.
    An empty `known` or `cutoffs` means: as the event times.
    """
    at = np.zeros(len(window), np.int64)
    for e in range(entities[0], entities[1]):
        lo, hi = row_bounds[0][e], row_bounds[1][e]
        at[:] = lo
        at_event, at_known = lo, lo
        for q in range(spine_bounds[0][e], spine_bounds[1][e]):
            t = times[q]
            cut = cutoffs[q] if len(cutoffs) else t
            if len(known) == 0:
                at_event = advance(event, at_event, lo, hi, min(t, cut))
                end = at_event
            else:
                at_event = advance(event, at_event, lo, hi, t)
                end = at_event
                if not late[e]:
                    at_known = advance(known, at_known, lo, hi, cut)
                    end = min(end, at_known)
            high[q] = end
            for w in range(len(window)):
                start, everything = window_start(t, window[w], tile[w])
                if everything:
                    low[w, q] = lo
                else:
                    at[w] = advance(event, at[w], lo, hi, start)
                    low[w, q] = at[w]
                low[w, q] = min(low[w, q], end)


@kernel
def cut_tasks(
    spine_bounds: tuple[Int64Array, Int64Array],
    low: Int32Array2,
    high: npt.NDArray[np.int32],
    out: Int64Array,
) -> int:
    """Cut the readers into runs of one entity whose rows fit the cache, or twice the longest window.

    Args:
        out: `(k, 5)`: spine from, spine to, row from, row to, entity; may be too small.

    Returns:
        How many tasks there are, also where `out` has no room for them.
    """
    count = 0
    for e in range(len(spine_bounds[0])):
        first, last = spine_bounds[0][e], spine_bounds[1][e]
        q = first
        while q < last:
            begin, a, b = q, int(high[q]), int(high[q])
            limit = int(TASK_ROWS)
            while q < last:
                next_a = a
                for w in range(low.shape[0]):
                    next_a = min(next_a, low[w, q])
                next_b = max(b, int(high[q]))
                if q == begin:
                    limit = max(limit, 2 * (next_b - next_a))
                elif next_b - next_a > limit:
                    break
                a, b = next_a, next_b
                q += 1
            if b > a:
                if count < len(out):
                    out[count, 0] = begin
                    out[count, 1] = q
                    out[count, 2] = a
                    out[count, 3] = b
                    out[count, 4] = e
                count += 1
    return count


@kernel
def find_steps_back(
    tasks: Int64Array,
    high: npt.NDArray[np.int32],
    cutoffs: Int64Array,
    late: BoolArray,
    out: BoolArray,
) -> None:
    """Mark the tasks in which a reader's windows end before those of the one before it, or it knows less."""
    for k in range(len(tasks)):
        is_late = late[tasks[k, 4]]
        for q in range(tasks[k, 0] + 1, tasks[k, 1]):
            if high[q] < high[q - 1] or (is_late and cutoffs[q] < cutoffs[q - 1]):
                out[k] = True
                break


@kernel
def known_order(known: Int64Array, lo: int, hi: int, late: bool) -> Int64Array:
    """Return places `[lo, hi)` in the order of what was (or may be) known; if not `late`, as they are."""
    if late:
        return lo + np.argsort(known[lo:hi], kind="mergesort")
    return np.arange(lo, hi)


@kernel
def moves(
    task: Int64Array,
    low: npt.NDArray[np.int32],
    high: npt.NDArray[np.int32],
    known: Int64Array,
    cutoffs: Int64Array,
    late: bool,
    by_known: Int64Array,
    live: BoolArray,
    out: Int64Array,
) -> int:
    """Write how the set of counted rows changes from reader to reader, as `value * 4 + operation`.

    No reader steps back (`find_steps_back`), so each row comes and goes once.

    Args:
        low, high: of one window.
        by_known: `(rows,)` the task's row places in the order they became known; used where `late`.
        live: `(rows,)` scratch.
        out: at least `2 * rows + readers` long.

    Returns:
        How many operations there are.
    """
    first_row = task[2]
    live[:] = False
    lo, hi, p, k = first_row, first_row, 0, 0
    for q in range(task[0], task[1]):
        new_lo, new_hi = int(low[q]), int(high[q])
        cut = int(cutoffs[q]) if late else 0
        for i in range(lo, min(new_lo, hi)):
            if live[i - first_row]:
                live[i - first_row] = False
                out[k] = i * 4 + REMOVE
                k += 1
        lo = new_lo
        for i in range(max(hi, lo), new_hi):
            if not late or known[i] <= cut:
                live[i - first_row] = True
                out[k] = i * 4 + INSERT
                k += 1
        hi = new_hi
        while late and p < len(by_known) and known[by_known[p]] <= cut:
            i = by_known[p]
            p += 1
            if lo <= i < hi and not live[i - first_row]:
                live[i - first_row] = True
                out[k] = i * 4 + INSERT
                k += 1
        out[k] = q * 4 + READ
        k += 1
    return k
