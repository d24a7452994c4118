"""One side of a window join in entity order, and the cuts that keep what is held of it small."""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from featurestore.core.time import INT64_MAX, Int64Array
from featurestore.errors import SchemaError
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.order import NO_INT32, NO_INT64, partition_rows
from featurestore.temporal.rows import Int32Array, Rows, check_rows, frozen

_kernels: Any = lazy_module("featurestore.temporal.windows_order_kernels")
_order_kernels: Any = lazy_module("featurestore.temporal.order_kernels")

# Readers and rows that a thread works on at a time: what is held for them does not grow with the input.
BATCH_READERS: Final = 1 << 15
BATCH_ROWS: Final = 1 << 17
# Fewer readers of one entity than this stay together: their windows share most rows.
FEW_READERS: Final = 64
# Room for so many batches is made before they are counted.
_FIRST_BATCHES: Final = 1 << 10


@dataclass(frozen=True, slots=True)
class Grouped:
    """A side's rows in (entity, event, known, sequence, position) order, the entities ascending.

    Attributes:
        rows: the side as it came.
        order: `(k,)` source positions; `None`: the source is in this order.
        starts: `(entities,)` first place of an entity's rows; 0 where it has none.
        ends: `(entities,)` one past the last; 0 where it has none.
    """

    rows: Rows
    order: Int32Array | None
    starts: Int64Array
    ends: Int64Array

    def positions(self, first: int, last: int) -> Int32Array:
        """Return the source positions of places `[first, last)`."""
        if self.order is None:
            return frozen(np.arange(first, last, dtype=np.int32))
        return frozen(self.order[first:last])

    def taken(self, values: Int64Array | None, first: int, last: int) -> Int64Array:
        """Return `values` (one per source row) at places `[first, last)`; empty where there are none."""
        if values is None:
            return NO_INT64
        return frozen(values[first:last] if self.order is None else values[self.order[first:last]])

    def bounds(self, entities: tuple[int, int], first: int, last: int) -> tuple[Int64Array, Int64Array]:
        """Return where the rows of some entities begin and end among places `[first, last)`."""
        starts, ends = (side[entities[0] : entities[1]] - first for side in (self.starts, self.ends))
        return frozen(np.clip(starts, 0, last - first)), frozen(np.clip(ends, 0, last - first))


def group_rows(rows: Rows, *, entities: int, threads: int | None) -> Grouped:
    """Bring rows into order, the cheapest way that is right.

    Rows that are in order stay; rows in time order are grouped by counting; only entities out of order are
    sorted.

    Raises:
        SchemaError: arrays of `rows` that do not fit together.

    Cost: 4 bytes per row and 16 per entity.
    """
    check_rows(rows, "rows")
    check_codes(rows.codes, entities)
    partition = partition_rows(rows, entities=entities, threads=threads)
    order, starts, ends = partition.order, partition.starts, partition.ends
    present = ends > starts
    if order is None and bool((np.diff(starts[present]) < 0).any()):
        order, starts, ends = np.empty(len(rows), np.int32), starts.copy(), ends.copy()
        _order_kernels.group_rows(frozen(rows.codes), starts, ends, order)
        order, present = frozen(order), ends > starts
    return Grouped(rows, order, frozen(np.where(present, starts, 0)), frozen(np.where(present, ends, 0)))


def check_codes(codes: Int32Array, entities: int) -> None:
    """Check that every code is below `entities`: the kernels index by them.

    Raises:
        SchemaError: one is not.
    """
    most = int(codes.max()) if len(codes) else -1
    if most >= entities:
        raise SchemaError(f"a row has entity code {most}, where there are {entities} entities", code=most)


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
