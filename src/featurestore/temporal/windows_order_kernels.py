"""Compiled loops that cut windows into batches, and bring answers back into the readers' order."""

from typing import Any

import numpy.typing as npt

from featurestore.core.time import INT64_MIN, Int64Array
from featurestore.temporal.jit import kernel
from featurestore.temporal.rows import Int32Array


@kernel
def place_after(time: Int64Array, order: Int32Array, lo: int, hi: int, bound: int) -> int:
    """Return the first place in `[lo, hi)` whose time is greater than `bound`, else `hi`."""
    while lo < hi:
        middle = (lo + hi) >> 1
        if time[order[middle] if len(order) else middle] <= bound:
            lo = middle + 1
        else:
            hi = middle
    return lo


@kernel
def cut_batches(
    spine_starts: Int64Array,
    spine_ends: Int64Array,
    row_starts: Int64Array,
    row_ends: Int64Array,
    time: Int64Array,
    spine_order: Int32Array,
    event: Int64Array,
    row_order: Int32Array,
    reach: int,
    most_readers: int,
    most_rows: int,
    few_readers: int,
    out: Int64Array,
) -> int:
    """Cut entities into batches of few readers and rows; an entity with more of them in parts.

    A part holds few of both, too, or about as many again as its first reader sees: so that all parts together
    hold a row a few times, however long the window is.

    Args:
        reach: a row so long before a reader's time is out of its reach; -1: every earlier row is in it.
        few_readers: a part of an entity is not cut below so many, whatever rows they see.
        out: `(k, 6)`; may be too small.

    Returns:
        How many batches there are, also where `out` has no room for them.
    """
    count, begin, row_at = 0, -1, 0
    first_reader, first_row, last_reader, last_row = 0, 0, 0, 0
    for e in range(len(spine_starts)):
        q, q_end = spine_starts[e], spine_ends[e]
        r, r_end = row_starts[e], row_ends[e]
        if r == r_end:
            r, r_end = row_at, row_at  # none, after those of the entities before
        row_at = r_end
        if q == q_end:
            continue
        is_large = q_end - q > most_readers or r_end - r > most_rows
        is_full = q_end - first_reader > most_readers or r_end - first_row > most_rows
        if begin >= 0 and (is_large or is_full):
            count = write_batch(out, count, begin, e, first_reader, last_reader, first_row, last_row)
            begin = -1
        if is_large:
            while q < q_end:
                now = time[spine_order[q] if len(spine_order) else q]
                a = r
                if reach >= 0 and now >= INT64_MIN + reach:
                    a = place_after(event, row_order, r, r_end, now - reach)
                # What the first reader sees is held anew by this part, which must be worth it.
                seen = place_after(event, row_order, a, r_end, now) - a
                limit = max(most_rows, 2 * seen)
                last = min(q + max(most_readers, seen >> 1), q_end)
                while True:
                    then = time[spine_order[last - 1] if len(spine_order) else last - 1]
                    b = place_after(event, row_order, a, r_end, then)
                    if b - a <= limit or last - q <= few_readers:
                        break
                    last = q + ((last - q) >> 1)
                count = write_batch(out, count, e, e + 1, q, last, a, b)
                q = last
            continue
        if begin < 0:
            begin, first_reader, first_row = e, q, r
        last_reader, last_row = q_end, r_end
    if begin >= 0:
        entities = len(spine_starts)
        count = write_batch(out, count, begin, entities, first_reader, last_reader, first_row, last_row)
    return count


@kernel
def write_batch(
    out: Int64Array,
    count: int,
    entity: int,
    entity_end: int,
    reader: int,
    reader_end: int,
    row: int,
    row_end: int,
) -> int:
    """Write one batch where there is room; return how many there are now."""
    if count < len(out):
        out[count, 0] = entity
        out[count, 1] = entity_end
        out[count, 2] = reader
        out[count, 3] = reader_end
        out[count, 4] = row
        out[count, 5] = row_end
    return count + 1


@kernel
def scatter(rows: npt.NDArray[Any], slot: int, places: Int32Array, out: npt.NDArray[Any]) -> None:
    """Write column `slot` of answers that lie reader by reader to the readers' own places."""
    for i in range(len(places)):
        out[places[i]] = rows[i, slot]


@kernel
def scatter_seen(rows: Int64Array, slot: int, places: Int32Array, out: npt.NDArray[Any]) -> None:
    """Write how many values each reader saw: none, one or more."""
    for i in range(len(places)):
        out[places[i]] = min(rows[i, slot], 2)
