"""Rows stored entity by entity, each entity's in (event, known, sequence, position) order: "parted"."""

from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.core.time import Int64Array
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.order import NO_INT32, Partition, partition_rows
from featurestore.temporal.rows import Int32Array, Rows

_kernels: Any = lazy_module("featurestore.temporal.parted_kernels")


@dataclass(frozen=True, slots=True)
class Parted:
    """Where rows go so that they lie parted.

    Attributes:
        positions: `(n,)` source positions in the new order; `None`: they lie so already.
        codes: `(n,)` the entity of each row in the new order, ascending; -1, at the end, without a key.
        offsets: `(entities + 1,)` where each entity's rows begin, and where the last one's end.
    """

    positions: Int64Array | None
    codes: Int32Array
    offsets: Int64Array


@dataclass(frozen=True, slots=True)
class Grouped:
    """Rows grouped by entity, before the entities have an order.

    Attributes:
        firsts: `(k,)` the source position of one row of each entity that has rows: where its key is read.
    """

    rows: Rows
    partition: Partition
    present: Int64Array
    firsts: Int64Array

    def parted(self, ranked: Int64Array) -> Parted:
        """Put the entities in an order; rows without a key come last, by their clocks.

        Args:
            ranked: `(k,)` which of the entities comes first, second, …

        Cost: one pass over the rows.
        """
        rows, partition = self.rows, self.partition
        positions, codes = np.empty(len(rows), np.int64), np.empty(len(rows), np.int32)
        offsets = np.empty(len(ranked) + 1, np.int64)
        order = NO_INT32 if partition.order is None else partition.order
        stays = _kernels.place_entities(
            order, partition.starts, partition.ends, self.present[ranked], positions, codes, offsets
        )
        last = int(offsets[-1])
        if last < len(rows):
            keyless = _keyless(rows)
            stays = stays and bool(np.array_equal(keyless, np.arange(last, len(rows))))
            positions[last:] = keyless
            codes[last:] = -1
        return Parted(None if stays else positions, codes, offsets)


def group_rows(rows: Rows, *, entities: int, threads: int | None = None) -> Grouped:
    """Group rows by entity, each entity's in (event, known, sequence, position) order.

    Args:
        entities: codes are below this; those without rows do not count.

    Raises:
        SchemaError: arrays that do not fit together.

    Cost: O(n) where each entity's rows are in time order, plus O(k) for every one that is not.
    """
    partition = partition_rows(rows, entities=entities, threads=threads)
    present = np.flatnonzero(partition.ends > partition.starts)
    firsts = partition.starts[present]
    if partition.order is not None:
        firsts = partition.order[firsts].astype(np.int64)
    return Grouped(rows, partition, present, firsts)


def _keyless(rows: Rows) -> Int64Array:
    found = np.flatnonzero(rows.codes < 0)
    clocks = [c[found] for c in (rows.sequence, rows.known_ns, rows.event_ns) if c is not None]
    return found[np.lexsort(clocks)]
