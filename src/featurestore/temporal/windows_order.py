"""One side of a window join in entity order, and how its columns come there."""

from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.core.time import Int64Array
from featurestore.errors import SchemaError
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.order import NO_INT32, NO_INT64, partition_rows
from featurestore.temporal.rows import Int32Array, Rows, check_rows, frozen
from featurestore.temporal.threads import run_parallel, split, thread_count

_kernels: Any = lazy_module("featurestore.temporal.windows_order_kernels")
_order_kernels: Any = lazy_module("featurestore.temporal.order_kernels")


@dataclass(frozen=True, slots=True)
class Grouped:
    """Rows in (entity, event, known, sequence, position) order.

    Attributes:
        starts: `(entities,)` first place of an entity's rows.
        ends: `(entities,)` one past the last.
        event: `(k,)` event times in this order.
        known: `(k,)` in this order; empty: as the event times.
        order: `(k,)` source positions; `None`: the source is in this order.
        codes: of the source, where grouping alone made the order (its entities were in time already).
        threads: how many to use.
    """

    starts: Int64Array
    ends: Int64Array
    event: Int64Array
    known: Int64Array
    order: Int32Array | None
    codes: Int32Array | None
    threads: int | None

    @property
    def places(self) -> Int32Array:
        """Source positions; empty where they are the places themselves."""
        return NO_INT32 if self.order is None else self.order

    def sorted(self, values: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Bring one value per source row into this order; not copied where it is the source's."""
        order = self.order
        if order is None:
            return frozen(values)
        if self.codes is not None:
            return _scattered(self.codes, self.starts, values, len(order))
        out = np.empty(len(order), values.dtype)
        parts = split(len(order), thread_count(self.threads, len(order)))
        run_parallel([partial(_kernels.take, frozen(values), order, lo, hi, out) for lo, hi in parts])
        return frozen(out)


def group_rows(rows: Rows, *, entities: int, threads: int | None) -> Grouped:
    """Bring rows into order, the cheapest way that is right.

    Rows that are in order stay; rows in time order are grouped by writing to one stream per entity, which
    is several times faster than reading from as many; only entities out of order are sorted.

    Raises:
        SchemaError: arrays of `rows` that do not fit together.
    """
    check_rows(rows, "rows")
    check_codes(rows.codes, entities)
    grouped = _grouped_only(rows, entities, threads)
    if grouped is not None:
        return grouped
    partition = partition_rows(rows, entities=entities, threads=threads)
    known = NO_INT64 if rows.known_ns is None else frozen(rows.known_ns)
    return Grouped(
        partition.starts,
        partition.ends,
        partition.take(rows.event_ns, threads=threads),
        partition.take(known, threads=threads) if len(known) else known,
        partition.order,
        None,
        threads,
    )


def check_codes(codes: Int32Array, entities: int) -> None:
    """Check that every code is below `entities`: the kernels index by them.

    Raises:
        SchemaError: one is not.
    """
    most = int(codes.max()) if len(codes) else -1
    if most >= entities:
        raise SchemaError(f"a row has entity code {most}, where there are {entities} entities", code=most)


def _grouped_only(rows: Rows, entities: int, threads: int | None) -> Grouped | None:
    """Group rows whose entities are each in order; `None` where sorting (or nothing at all) is needed."""
    codes = frozen(rows.codes)
    starts, ends = np.full(entities, -1, np.int64), np.zeros(entities, np.int64)
    if _order_kernels.contiguous_runs(codes, starts, ends):
        return None
    total = _kernels.count_codes(codes, starts, ends)
    clocks = [rows.event_ns, rows.known_ns, rows.sequence]
    sides: list[npt.NDArray[Any]] = [NO_INT64, NO_INT64, NO_INT64]
    order = np.empty(total, np.int32)

    def bring(place: int) -> None:
        values = clocks[place]
        if values is not None:
            sides[place] = _scattered(codes, starts, values, total)

    tasks = [partial(bring, place) for place in range(3) if clocks[place] is not None]
    run_parallel([*tasks, partial(_kernels.scatter_places, codes, frozen(starts), order)])
    event, known, sequence = sides
    if not _order_kernels.all_sorted(starts, ends, event, known, sequence):
        return None
    return Grouped(frozen(starts), frozen(ends), event, known, frozen(order), codes, threads)


def _scattered(
    codes: Int32Array, starts: Int64Array, values: npt.NDArray[Any], total: int
) -> npt.NDArray[Any]:
    out = np.empty(total, values.dtype)
    _kernels.scatter(codes, frozen(starts), frozen(values), out)
    return frozen(out)


def columns_of(rows: Int64Array, *, threads: int | None) -> Int64Array:
    """Turn answers written reader by reader, `(n, f)`, into `(f, n)` columns."""
    out = np.empty((rows.shape[1], rows.shape[0]), np.int64)
    parts = split(len(rows), thread_count(threads, len(rows)))
    run_parallel([partial(_kernels.transpose, rows, lo, hi, out) for lo, hi in parts])
    return out
