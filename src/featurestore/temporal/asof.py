"""The as-of join on arrays: which row each spine row may see (PIT-1), and which of them it takes (PIT-2)."""

from collections.abc import Sequence
from functools import partial
from typing import Any, Final

import numpy as np

from featurestore.core.time import BoolArray, Int64Array
from featurestore.errors import DefinitionError, SchemaError
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.merge import is_mergeable, merge_indices
from featurestore.temporal.order import NO_INT32, NO_INT64, Partition, check_codes, partition_rows
from featurestore.temporal.rows import (
    BOUNDARIES,
    DIRECTIONS,
    Int32Array,
    Rows,
    check_choice,
    check_rows,
    frozen,
    scratch,
)
from featurestore.temporal.threads import run_in_turn, run_parallel, split, thread_count

_kernels: Any = lazy_module("featurestore.temporal.asof_kernels")

# A spine without order is sorted so many rows at a time: 40 bytes per row of them and thread.
_TANGLED_ROWS: Final = 1 << 16
# Of so many rows in the middle of a spine, a quarter must go back in time for it to count as without order.
_SAMPLE_ROWS: Final = 1 << 12


def asof_indices(
    spine: Rows,
    rows: Rows,
    *,
    entities: int,
    direction: str,
    tolerance_ns: int | None,
    boundary: str,
    threads: int | None = None,
) -> Int32Array:
    """Point each spine row at the row it takes.

    Backward takes the greatest visible (event, known, sequence, position), forward the least, nearest the
    one at the smaller distance and the backward one where they are equal. The tolerance bounds the distance
    of the two events, itself included; it is applied to the row that was chosen, which is the same as
    applying it before.

    Args:
        spine: `(n,)`, any order.
        rows: `(m,)`, any order.
        entities: codes are below this.
        direction: backward, forward or nearest.
        tolerance_ns: `None` for no bound.
        boundary: inclusive: a row of the same instant is visible; exclusive: it is not.
        threads: `None` for one per core.

    Returns:
        `(n,)` positions in `rows`, -1 where none is visible.

    Raises:
        SchemaError: arrays that do not fit together.
        DefinitionError: an unknown direction or boundary, a negative tolerance.

    Cost: O(n + m) where rows are in time order and O(k log k) for what is not; a spine row out of order
    costs the logarithm of how far it jumps.
    """
    _check(spine, rows, entities, direction, tolerance_ns, boundary)
    return chosen_rows(
        spine,
        rows,
        entities=entities,
        direction=direction,
        tolerance_ns=tolerance_ns,
        boundary=boundary,
        threads=threads,
    )


def chosen_rows(
    spine: Rows,
    rows: Rows,
    *,
    entities: int,
    direction: str,
    tolerance_ns: int | None,
    boundary: str,
    threads: int | None,
) -> Int32Array:
    """Do what `asof_indices` does with arguments that were checked, and codes that are known to be right."""
    if is_mergeable(spine, rows, threads=threads):
        return merge_indices(
            spine,
            rows,
            entities=entities,
            direction=direction,
            tolerance_ns=tolerance_ns,
            boundary=boundary,
            threads=threads,
        )
    partition = partition_rows(rows, entities=entities, threads=threads)
    return _search(spine, rows, partition, direction, tolerance_ns, boundary, threads)


def last_known_indices(
    spine: Rows,
    rows: Rows,
    valid: Sequence[BoolArray | None],
    *,
    entities: int,
    tolerance_ns: int | None,
    boundary: str,
    threads: int | None = None,
) -> list[Int32Array]:
    """Point each spine row, per column, at the newest visible row whose value is not null.

    Args:
        spine: `(n,)`, any order.
        rows: `(m,)`, any order.
        valid: per column `(m,)` True where there is a value; `None`: everywhere.
        entities: codes are below this.
        tolerance_ns: the greatest age of the value itself, bound included; `None` for no bound.
        boundary: inclusive or exclusive.
        threads: `None` for one per core.

    Returns:
        Per column `(n,)` positions in `rows`, -1 where there is none.

    Raises:
        SchemaError: arrays that do not fit together.
        DefinitionError: an unknown boundary, a negative tolerance.
    """
    _check(spine, rows, entities, "backward", tolerance_ns, boundary)
    for mask in valid:
        if mask is not None and mask.shape != (len(rows),):
            raise SchemaError(f"a valid mask has shape {mask.shape}, where there are {len(rows)} rows")
    partition = partition_rows(rows, entities=entities, threads=threads)
    whole: Int32Array | None = None
    found: list[Int32Array] = []
    for mask in valid:
        if mask is not None and not mask.all():
            kept = _valid_rows(partition, mask)
            found.append(_search(spine, rows, kept, "backward", tolerance_ns, boundary, threads))
            continue
        if whole is None:
            whole = _search(spine, rows, partition, "backward", tolerance_ns, boundary, threads)
        found.append(whole)
    return found


def _check(
    spine: Rows, rows: Rows, entities: int, direction: str, tolerance_ns: int | None, boundary: str
) -> None:
    check_rows(spine, "spine")
    check_rows(rows, "rows")
    check_codes(spine, entities, "spine")
    check_codes(rows, entities, "rows")
    check_choice(direction, DIRECTIONS, "direction")
    check_choice(boundary, BOUNDARIES, "boundary")
    if tolerance_ns is not None and tolerance_ns < 0:
        raise DefinitionError(f"tolerance is {tolerance_ns} ns: it cannot be negative", value=tolerance_ns)


def _valid_rows(partition: Partition, valid: BoolArray) -> Partition:
    order = NO_INT32 if partition.order is None else partition.order
    kept = np.empty(np.count_nonzero(valid), np.int32)
    starts, ends = np.empty_like(partition.starts), np.empty_like(partition.ends)
    total = _kernels.keep_valid(frozen(valid), order, partition.starts, partition.ends, kept, starts, ends)
    return Partition(frozen(kept[:total]), frozen(starts), frozen(ends))


def _search(
    spine: Rows,
    rows: Rows,
    partition: Partition,
    direction: str,
    tolerance_ns: int | None,
    boundary: str,
    threads: int | None,
) -> Int32Array:
    time = frozen(spine.event_ns)
    event = partition.take(frozen(rows.event_ns), threads=threads)
    cutoff, known = NO_INT64, NO_INT64
    tree, levels = NO_INT64, NO_INT64
    if spine.known_ns is not None or rows.known_ns is not None:
        cutoff = time if spine.known_ns is None else frozen(spine.known_ns)
        known = event
        if rows.known_ns is not None:
            known = partition.take(frozen(rows.known_ns), threads=threads)
        tree, levels = knowledge_tree(known)
    out = scratch(len(spine), np.dtype(np.int32))
    order = NO_INT32 if partition.order is None else partition.order
    codes, entities = frozen(spine.codes), len(partition.starts)

    def answer(first: int, last: int, turns: Int32Array, of_codes: Int32Array, of_times: Int64Array) -> None:
        _kernels.search(
            of_codes, of_times, cutoff, event, known, tree, levels, partition.starts, partition.ends, order,
            direction != "forward", direction != "backward", boundary == "inclusive",
            -1 if tolerance_ns is None else tolerance_ns, first, last, turns, out,
        )  # fmt: skip

    wide = parts = thread_count(threads, len(spine))
    if not _is_tangled(spine):
        run_parallel([partial(answer, *part, NO_INT32, codes, time) for part in split(len(spine), parts)])
        return out
    parts = max(parts, -(-len(spine) // _TANGLED_ROWS))
    # As many as there are threads: allocated anew for each part, such sizes would stay with the threads.
    spare: list[_Turns] = []

    def untangle(first: int, last: int) -> None:
        turns = spare.pop() if spare else _Turns(-(-len(spine) // parts))
        _kernels.turns_of(codes, time, entities, first, last, *turns.written)
        answer(first, last, *turns.read)
        spare.append(turns)

    run_in_turn([partial(untangle, *part) for part in split(len(spine), parts)], wide)
    return out


class _Turns:
    """Room for part of a spine in the order in which it is answered.

    Attributes:
        written: what `turns_of` fills, and its scratch space.
        read: turns, codes and times, for `search`.
    """

    def __init__(self, count: int) -> None:
        turns, codes, times = np.empty(count, np.int32), np.empty(count, np.int32), np.empty(count, np.int64)
        self.written = (turns, codes, times, np.empty((2, count), np.int32), np.empty((2, count), np.uint64))
        self.read = (frozen(turns), frozen(codes), frozen(times))


def _is_tangled(spine: Rows) -> bool:
    """Whether the spine's times go back so often that sorting it costs less than its jumps."""
    count = min(len(spine), _SAMPLE_ROWS)
    first = (len(spine) - count) // 2
    return bool(4 * _kernels.count_falls(frozen(spine.event_ns), first, first + count) > _SAMPLE_ROWS)


def knowledge_tree(known: Int64Array) -> tuple[Int64Array, Int64Array]:
    """Return minima over 16, 256, … neighbours, and where each level begins: what kernels search by."""
    count, sizes = len(known), []
    while count > 1:
        count = (count + 15) // 16
        sizes.append(count)
    tree, levels = np.empty(sum(sizes), np.int64), np.empty(len(sizes), np.int64)
    _kernels.knowledge_tree(known, tree, levels)
    return frozen(tree), frozen(levels)
