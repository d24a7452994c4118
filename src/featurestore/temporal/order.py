"""Rows grouped by entity and in time order: what every kernel but the plain merge works on."""

from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np

from featurestore.core.time import Int64Array
from featurestore.errors import SchemaError
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.rows import Int32Array, Rows, check_rows, frozen, one_of, scratch
from featurestore.temporal.threads import run_parallel, split, thread_count

_kernels: Any = lazy_module("featurestore.temporal.order_kernels")

NO_INT64: Int64Array = frozen(np.empty(0, np.int64))
NO_INT32: Int32Array = frozen(np.empty(0, np.int32))


@dataclass(frozen=True, slots=True)
class Partition:
    """Where each entity's rows lie, in (event, known, sequence, position) order.

    Attributes:
        order: `(k,)` positions in the source, or `None` where the source is in this order already (then
            `starts` and `ends` count in the source itself). Rows with a null key or time are left out.
        starts: `(entities,)` first place of an entity's rows; the entities may lie in any order.
        ends: `(entities,)` one past the last place.
    """

    order: Int32Array | None
    starts: Int64Array
    ends: Int64Array

    def take(self, values: Int64Array, *, threads: int | None = None) -> Int64Array:
        """Return `values` (one per source row) in this order; not copied where the order is the source's."""
        order = self.order
        if order is None:
            return frozen(values)
        out = scratch(len(order), np.dtype(np.int64))
        parts = split(len(order), thread_count(threads, len(order)))
        run_parallel([partial(_kernels.take_int64, frozen(values), order, lo, hi, out) for lo, hi in parts])
        return frozen(out)


def partition_rows(rows: Rows, *, entities: int, threads: int | None = None) -> Partition:
    """Group rows by entity and sort each group by (event, known, sequence, position).

    Order that is there already is found, not assumed: rows stored entity by entity and in time cost one
    read; rows in time order cost a counting sort; only entities that are out of order are sorted (radix).

    Raises:
        SchemaError: the arrays of `rows` do not fit together, or a code is not below `entities`.

    Cost: O(n) plus O(k) per unordered entity of k rows; 4 bytes per row and 16 per entity, and while an
    entity is sorted 24 bytes per row of it.
    """
    check_rows(rows, "rows")
    check_codes(rows, entities, "rows")
    event = frozen(rows.event_ns)
    known = NO_INT64 if rows.known_ns is None else frozen(rows.known_ns)
    sequence = NO_INT64 if rows.sequence is None else frozen(rows.sequence)
    codes = frozen(rows.codes)
    starts, ends = np.full(entities, -1, np.int64), np.zeros(entities, np.int64)
    if _kernels.contiguous_runs(codes, starts, ends) and _kernels.all_sorted(
        starts, ends, event, known, sequence
    ):
        return Partition(None, frozen(starts), frozen(ends))
    order = scratch(len(codes), np.dtype(np.int32))
    _kernels.group_rows(codes, starts, ends, order)
    order = order[: int(ends[-1])] if entities else order[:0]
    edges = _balanced(ends, thread_count(threads, len(order)))
    run_parallel(
        [
            partial(_kernels.sort_runs, order, starts, ends, event, known, sequence, first, last)
            for first, last in edges
        ]
    )
    return Partition(frozen(order), frozen(starts), frozen(ends))


def group_positions(codes: Int32Array, groups: int) -> tuple[Int32Array, Int64Array]:
    """Group positions by code, in position order within each group.

    Args:
        codes: `(n,)` in `[0, groups)`.

    Returns:
        `(n,)` positions, and `(groups,)` where each group ends among them.

    Raises:
        SchemaError: a code is not below `groups`.

    Cost: O(n + groups), a counting sort.
    """
    check_codes(Rows(codes, NO_INT64), groups, "codes")
    starts, ends = np.empty(groups, np.int64), np.empty(groups, np.int64)
    order = np.empty(len(codes), np.int32)
    _kernels.group_rows(frozen(codes), starts, ends, order)
    return frozen(order), frozen(ends)


def check_codes(rows: Rows, entities: int, what: str) -> None:
    """Check that no code lies outside the entities: kernels index by it.

    Raises:
        SchemaError: one does.
    """
    if not _kernels.codes_within(frozen(one_of(rows.codes)), entities):
        raise SchemaError(
            f"{what}.codes holds {int(rows.codes.min())} to {int(rows.codes.max())}, where there are "
            f"{entities} entities",
            hint="codes are -1 for null, or 0 to entities - 1",
        )


def _balanced(ends: Int64Array, parts: int) -> list[tuple[int, int]]:
    """Cut the entities, whose rows lie one after the other, into ranges of nearly equal row counts."""
    total = int(ends[-1]) if len(ends) else 0
    cuts = [int(np.searchsorted(ends, total * part // parts)) for part in range(1, parts)]
    edges = [0, *cuts, len(ends)]
    return list(pairwise(edges))
