"""Rows stored entity by entity, each entity's in (event, known, sequence, position) order: "parted"."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np

from featurestore.core.time import BoolArray, Int64Array
from featurestore.temporal.asof import knowledge_tree
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.order import NO_INT32, NO_INT64, Partition, group_positions, partition_rows
from featurestore.temporal.rows import Int32Array, Rows, frozen, scratch
from featurestore.temporal.threads import run_parallel, split, thread_count

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


def group_by_day(
    time_ns: Int64Array,
    groups_of: Callable[[int, int], Int32Array],
    groups: int,
    days: Int32Array,
    *,
    threads: int | None = None,
) -> tuple[Int32Array, Int64Array]:
    """Group readers by a group of theirs, and within it by the newest of some days that is not after theirs.

    Args:
        time_ns: `(n,)` when each reads.
        groups_of: Returns the groups of readers `lo` to `hi`, in `[0, groups)`; any other number is nobody's.
            Called from several threads.
        days: `(d,)` days since 1970, ascending, one at least.

    Returns:
        `(n,)` positions; nobody's and those before the first day come last. `(groups * d + 1,)` where the
        readers of each (group, day) end among them.

    Cost: O(n + groups * d + days between the first and the last).
    """
    count, first = len(time_ns), int(days[0])
    slots = np.searchsorted(days, np.arange(first, int(days[-1]) + 1), "right").astype(np.int32) - np.int32(1)
    code = scratch(count, np.dtype(np.int32))

    def part(lo: int, hi: int) -> None:
        group, time = frozen(groups_of(lo, hi)), frozen(time_ns[lo:hi])
        _kernels.day_groups(time, group, groups, frozen(slots), first, len(days), code[lo:hi])

    run_parallel([partial(part, lo, hi) for lo, hi in split(count, thread_count(threads, count))])
    return group_positions(code, groups * len(days) + 1)


def keep_known(readers: Rows, some: Int32Array, known: BoolArray) -> Int32Array:
    """Return those of some readers whose entity is known.

    Args:
        some: Positions.
        known: `(entities + 1,)` by code; the last place is where code -1 looks.
    """
    kept = np.empty(len(some), np.int32)
    return kept[: _kernels.keep_known(frozen(some), frozen(readers.codes), frozen(known), kept)]


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of stored rows, parted.

    Attributes:
        event_ns: `(m,)` ascending within each entity.
        known_ns: `(m,)` when each could be known, `INT64_MAX` for never; `None`: with its event.
        offsets: `(entities + 1,)` where each of its entities' rows begin.
        codes: `(entities,)` the readers' code of each of its entities.
        newest_ns: No row of this part, or of an earlier one, has a later event.
    """

    event_ns: Int64Array
    known_ns: Int64Array | None
    offsets: Int64Array
    codes: Int32Array
    newest_ns: int


@dataclass(frozen=True, slots=True)
class Taken:
    """What readers take of a part.

    Attributes:
        readers: `(k,)` the readers that found a row.
        rows: `(k,)` the row of the part that each takes.
        left: The readers that found none, and may find one in the part before; without those whose newest
            row lies too far back.
    """

    readers: Int32Array
    rows: Int64Array
    left: Int32Array


def take_newest(
    readers: Rows, pending: Int32Array, part: Part, slots: Int32Array, *, look_back_ns: int | None
) -> Taken:
    """Find the row of a part that each reader takes: the newest it may see (PIT-1, PIT-2).

    A reader that finds one needs nothing older: parts follow one another in time.

    Args:
        pending: Positions of the readers that look here, none without a key; fastest where an entity's
            readers come in the order of time.
        slots: `(codes,)` all -1, and again so on return: scratch for the place of each code in the part.
        look_back_ns: How far back a row may matter; `None`: for ever.

    Cost: O(log k) per reader for k rows between its answer and the one before of its entity; nothing is
        hashed. With a knowledge condition, one read of the part's `known_ns`.
    """
    time = frozen(readers.event_ns)
    if look_back_ns is not None:
        reaching = np.empty(len(pending), np.int32)
        count = _kernels.keep_reaching(frozen(pending), time, part.newest_ns, look_back_ns, reaching)
        pending = reaching[:count]
    slots[part.codes] = np.arange(len(part.codes), dtype=np.int32)
    ends = np.zeros(len(part.codes), np.int64)
    grouped, left = np.empty(len(pending), np.int32), np.empty(len(pending), np.int32)
    absent = _kernels.group_pending(
        frozen(pending), frozen(readers.codes), frozen(slots), ends, grouped, left
    )
    slots[part.codes] = -1
    cutoff, known, tree, levels = NO_INT64, NO_INT64, NO_INT64, NO_INT64
    if part.known_ns is not None or readers.known_ns is not None:
        cutoff = time if readers.known_ns is None else frozen(readers.known_ns)
        known = frozen(part.event_ns if part.known_ns is None else part.known_ns)
        tree, levels = knowledge_tree(known)
    who, place = np.empty(len(pending) - absent, np.int32), np.empty(len(pending) - absent, np.int64)
    found, missed = _kernels.find_newest(
        frozen(grouped), frozen(ends), time, cutoff, frozen(part.event_ns), known, tree, levels,
        frozen(part.offsets), -1 if look_back_ns is None else look_back_ns, who, place, left[absent:],
    )  # fmt: skip
    return Taken(who[:found], place[:found], left[: absent + missed])


def record_found(taken: Taken, part: Part, newest: Int32Array, event_ns: Int64Array) -> None:
    """Note for readers that what they take lies at their own place, and when it happened.

    Args:
        newest: `(n,)` gets `newest[i] = i`.
        event_ns: `(n,)` gets the event time of the row that reader i takes.
    """
    _kernels.record_found(frozen(taken.readers), frozen(taken.rows), frozen(part.event_ns), newest, event_ns)


def within_tolerance(readers: Rows, rows: Rows, newest: Int32Array, tolerance_ns: int | None) -> Int32Array:
    """Return each reader's newest row where its age is within the tolerance, bound included, else -1.

    Args:
        newest: `(n,)` positions in `rows`, each at or before its reader; -1 for none. Returned as it is where
            all are within.
    """
    if tolerance_ns is None or len(rows) == 0:
        return newest
    out = scratch(len(newest), np.dtype(np.int32))
    dropped = _kernels.within_tolerance(
        frozen(readers.event_ns), frozen(rows.event_ns), tolerance_ns, frozen(newest), out
    )
    return out if dropped else newest
