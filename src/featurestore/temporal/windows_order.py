"""The cuts that keep what a window join holds small: in time, and by entity, the sides in entity order."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from featurestore.core.time import INT64_MAX, INT64_MIN, Int64Array
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.merge import are_ascending
from featurestore.temporal.order import NO_INT32, NO_INT64, partition_rows
from featurestore.temporal.rows import Int32Array, Rows, frozen

_kernels: Any = lazy_module("featurestore.temporal.windows_order_kernels")
_order_kernels: Any = lazy_module("featurestore.temporal.order_kernels")

# Readers and rows of a period: what is read and written for them should stay in the third-level cache.
PERIOD_ROWS: Final = 1 << 20
# Of so many rows one at most may belong to two periods: it is sorted and summed in both.
_SHARED: Final = 4
# Readers and rows that a thread works on at a time: what is held for them does not grow with the input.
BATCH_READERS: Final = 1 << 15
BATCH_ROWS: Final = 1 << 17
# Fewer readers of one entity than this stay together: their windows share most rows.
FEW_READERS: Final = 64
# Room for so many batches is made before they are counted.
_FIRST_BATCHES: Final = 1 << 10


@dataclass(frozen=True, slots=True)
class Grouped:
    """A period's rows of a side in (entity, event, known, sequence, position) order, the entities ascending.

    Attributes:
        rows: the period's rows as they came.
        begin: source position of the first of them.
        order: `(k,)` their positions among `rows`; `None`: they are in this order.
        starts: `(entities,)` first place of an entity's rows; 0 where it has none.
        ends: `(entities,)` one past the last; 0 where it has none.
    """

    rows: Rows
    begin: int
    order: Int32Array | None
    starts: Int64Array
    ends: Int64Array

    @property
    def count(self) -> int:
        """How many of the rows have a key."""
        return int((self.ends - self.starts).sum())

    def positions(self, first: int, last: int) -> Int32Array:
        """Return the source positions of places `[first, last)`."""
        if self.order is None:
            return frozen(np.arange(self.begin + first, self.begin + last, dtype=np.int32))
        return frozen(self.order[first:last] + np.int32(self.begin))

    def taken(self, values: Int64Array | None, first: int, last: int) -> Int64Array:
        """Return `values`, one per row of the period, at places `[first, last)`; empty for `None`."""
        if values is None:
            return NO_INT64
        return frozen(values[first:last] if self.order is None else values[self.order[first:last]])

    def bounds(self, entities: tuple[int, int], first: int, last: int) -> tuple[Int64Array, Int64Array]:
        """Return where the rows of some entities begin and end among places `[first, last)`."""
        starts, ends = (side[entities[0] : entities[1]] - first for side in (self.starts, self.ends))
        return frozen(np.clip(starts, 0, last - first)), frozen(np.clip(ends, 0, last - first))


def periods(spine: Rows, rows: Rows, reach_ns: int, *, entities: int, threads: int | None) -> Int64Array:
    """Cut both sides in time: readers one after the other, each period with the rows its readers may see.

    Args:
        spine, rows: a side that is not in time order is not cut, nor is either where windows are so long
            that periods would share more than a few of their rows.
        reach_ns: a row so long before a reader, or longer, is out of its reach.

    Returns:
        `(k, 4)`, one at least: positions of readers from, to; positions of rows from, to.

    Cost: one read of the times.
    """
    count = min((len(spine) + len(rows)) // max(PERIOD_ROWS, 4 * entities), len(spine))
    sides = [(frozen(side.event_ns), NO_INT64) for side in (rows, spine) if not side.in_order]
    if count > 1 and not all(are_ascending(sides, threads=threads)):
        count = 1
    while count > 1:
        cuts = _cut_in_time(spine.event_ns, rows.event_ns, reach_ns, count)
        if _SHARED * int((cuts[:, 3] - cuts[:, 2]).sum()) <= (_SHARED + 1) * len(rows):
            return cuts
        count = count * 7 // 8
    return np.array([[0, len(spine), 0, len(rows)]], np.int64)


def _cut_in_time(time: Int64Array, event: Int64Array, reach_ns: int, count: int) -> Int64Array:
    edges = len(time) * np.arange(count + 1) // count
    out = np.empty((count, 4), np.int64)
    out[:, 0], out[:, 1] = edges[:-1], edges[1:]
    out[:, 3] = np.searchsorted(event, time[edges[1:] - 1], "right")
    for place, first in enumerate(time[edges[:-1]].tolist()):
        bound = first - reach_ns
        out[place, 2] = 0 if bound < INT64_MIN else np.searchsorted(event, bound, "right")
    return out


def group_rows(rows: Rows, *, begin: int = 0, entities: int, threads: int | None) -> Grouped:
    """Bring rows into order, the cheapest way that is right.

    Rows that are in order stay; rows in time order are grouped by counting; only entities out of order are
    sorted.

    Raises:
        SchemaError: arrays of `rows` that do not fit together.

    Cost: 4 bytes per row and 16 per entity.
    """
    partition = partition_rows(rows, entities=entities, threads=threads)
    order, starts, ends = partition.order, partition.starts, partition.ends
    present = ends > starts
    if order is None and bool((np.diff(starts[present]) < 0).any()):
        order, starts, ends = np.empty(len(rows), np.int32), starts.copy(), ends.copy()
        _order_kernels.group_rows(frozen(rows.codes), starts, ends, order)
        order, present = frozen(order), ends > starts
    starts, ends = (frozen(np.where(present, side, 0)) for side in (starts, ends))
    return Grouped(rows, begin, order, starts, ends)


def batches(spine: Grouped, rows: Grouped, reach_ns: int, parts: int) -> Int64Array:
    """Cut both sides into pieces that hold few readers and few rows: whole entities, or a part of one.

    The rows of a part of an entity reach `reach_ns` back from its first reader.

    Returns:
        `(k, 6)`: entities from, to; places of readers from, to; places of rows from, to.
    """
    count = (len(spine.rows) + len(rows.rows)) // max(4 * parts, 1)
    most_readers = min(BATCH_READERS, max(count, 1 << 10))
    most_rows = min(BATCH_ROWS, max(count, 1 << 12))
    sides = (spine.starts, spine.ends, rows.starts, rows.ends)
    times = (frozen(spine.rows.event_ns), _order(spine), frozen(rows.rows.event_ns), _order(rows))
    limits = (reach_ns if reach_ns <= INT64_MAX else -1, most_readers, most_rows, FEW_READERS)
    out = np.empty((_FIRST_BATCHES, 6), np.int64)
    made = _kernels.cut_batches(*sides, *times, *limits, out)
    if made > len(out):
        out = np.empty((made, 6), np.int64)
        made = _kernels.cut_batches(*sides, *times, *limits, out)
    return out[:made]


def _order(side: Grouped) -> Int32Array:
    return NO_INT32 if side.order is None else side.order
