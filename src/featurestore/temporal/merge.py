"""The plain merge: what the as-of join is where both sides are in time order."""

from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import Any, Final

import numpy as np

from featurestore.core.time import INT64_MAX, Int64Array
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.order import NO_INT64
from featurestore.temporal.rows import Int32Array, Rows, frozen, one_of, scratch
from featurestore.temporal.threads import run_in_turn, run_parallel, split, thread_count

_kernels: Any = lazy_module("featurestore.temporal.merge_kernels")

# Up to this many entities two states fit the second-level cache, and two stretches run side by side.
_FEW_ENTITIES: Final = 1 << 16


def is_mergeable(spine: Rows, rows: Rows, *, threads: int | None = None) -> bool:
    """Whether `merge_indices` can answer: no knowledge condition, both sides in time order.

    Cost: one read of the times, less where an early row is out of order.
    """
    if spine.known_ns is not None or rows.known_ns is not None or len(spine) == 0 or len(rows) == 0:
        return False
    ends = [int(t) for side in (spine, rows) for t in (side.event_ns[0], side.event_ns[-1])]
    # Differences of times must not wrap in the branchless steps.
    if max(ends) - min(ends) >= INT64_MAX:
        return False
    ties = NO_INT64 if rows.sequence is None else frozen(rows.sequence)
    unknown = [
        (side.event_ns, order) for side, order in ((rows, ties), (spine, NO_INT64)) if not side.in_order
    ]
    return all(are_ascending(unknown, threads=threads))


def are_ascending(sides: Sequence[tuple[Int64Array, Int64Array]], *, threads: int | None) -> list[bool]:
    """Whether (time, tie) never goes back on each of several sides; empty ties are no key."""
    rises = [True] * len(sides)

    def look(side: int, times: Int64Array, ties: Int64Array, first: int, last: int) -> None:
        if not _kernels.is_ascending(times, ties, first, last):
            rises[side] = False

    run_in_turn(
        [
            partial(look, side, frozen(times), ties, *part)
            for side, (times, ties) in enumerate(sides)
            for part in split(len(times), thread_count(threads, len(times)))
        ],
        thread_count(threads, sum(len(times) for times, _ in sides)),
    )
    return rises


def merge_indices(
    spine: Rows,
    rows: Rows,
    *,
    entities: int,
    direction: str,
    tolerance_ns: int | None,
    boundary: str,
    threads: int | None,
) -> Int32Array:
    """Do what `asof_indices` does where `is_mergeable` holds.

    Cost: one read of both sides; 4 bytes per spine row for the answer, and per entity and stretch (two per
    thread while entities are few, at most 16 bytes per entity when they are many).
    """
    wide = thread_count(threads, len(spine) + len(rows))
    before, after = None, None
    if direction != "forward" and _is_one_entity(spine, rows, entities):
        before = _merge_places(spine, rows, tolerance_ns, boundary == "inclusive", wide)
    elif direction != "forward":
        before = _merge(spine, rows, entities, tolerance_ns, boundary == "inclusive", wide, -1)
    if direction != "backward":
        after = _merge(spine, rows, entities, tolerance_ns, boundary == "inclusive", wide, 1)
    if before is None or after is None:
        return before if after is None else after  # type: ignore[return-value]
    time, event, after = frozen(spine.event_ns), frozen(rows.event_ns), frozen(after)
    run_parallel(
        [
            partial(_kernels.take_nearer, time, event, after, lo, hi, before)
            for lo, hi in split(len(spine), wide)
        ]
    )
    return before


def _merge(
    spine: Rows,
    rows: Rows,
    entities: int,
    tolerance_ns: int | None,
    inclusive: bool,
    wide: int,
    step: int,
) -> Int32Array:
    pairs = step < 0 and entities <= _FEW_ENTITIES
    parts = _stretches(len(spine), entities, 2 * wide if pairs else wide)
    # Forward excludes from "before" exactly what backward includes in it.
    slack = int(inclusive) if step < 0 else int(not inclusive)
    time, codes, event = frozen(spine.event_ns), frozen(spine.codes), frozen(rows.event_ns)
    sides = (time, codes, event, frozen(rows.codes), slack)
    tolerance = -1 if tolerance_ns is None else tolerance_ns
    if pairs and wide == 1:
        state: Int32Array = np.full((2, entities + 2), -1, np.int32)
        out = scratch(len(spine), np.dtype(np.int32))
        _kernels.merge_on(*sides, tolerance, 0, state, out)
        return out
    cuts = np.zeros((parts + 1, 2), np.int64)
    _kernels.cut_merge(time, event, slack, cuts)
    states: Int32Array = np.full((parts, entities + 2), -1, np.int32)
    out = scratch(len(spine), np.dtype(np.int32))
    if pairs:
        run_parallel(
            [partial(_kernels.merge_two, *sides, cuts, states, part, out) for part in range(0, parts, 2)]
        )
    elif step < 0:
        bounds = [(int(a), int(b), int(c), int(d)) for (a, c), (b, d) in pairwise(cuts)]
        run_parallel(
            [
                partial(_kernels.merge_one, *sides, *bound, state, out)
                for bound, state in zip(bounds, states, strict=True)
            ]
        )
    else:
        run_parallel(
            [partial(_kernels.merge_back, *sides, cuts, part, states[part], out) for part in range(parts)]
        )
    shared = (time, codes, event, states, cuts)
    first = 0 if step < 0 else parts - 1
    run_parallel(
        [
            partial(_kernels.finish_merge, *shared, part, step, tolerance, out)
            for part in range(parts)
            if part != first or tolerance_ns is not None
        ]
    )
    return out


def _merge_places(
    spine: Rows, rows: Rows, tolerance_ns: int | None, inclusive: bool, wide: int
) -> Int32Array:
    """Merge backward where every row is of the one entity: no state, so nothing to finish."""
    time, event, slack = frozen(spine.event_ns), frozen(rows.event_ns), int(inclusive)
    cuts = np.zeros((2 * wide + 1, 2), np.int64)
    _kernels.cut_merge(time, event, slack, cuts)
    out = scratch(len(spine), np.dtype(np.int32))

    def lane(part: int) -> None:
        _kernels.merge_places(time, event, slack, cuts, part, out)
        if tolerance_ns is not None:
            lo, hi = int(cuts[part, 0]), int(cuts[part + 2, 0])
            _kernels.apply_tolerance(time, event, tolerance_ns, lo, hi, out)

    run_parallel([partial(lane, part) for part in range(0, 2 * wide, 2)])
    return out


def _is_one_entity(spine: Rows, rows: Rows, entities: int) -> bool:
    return entities == 1 and all(int(one_of(side.codes).min()) >= 0 for side in (spine, rows))


def _stretches(rows: int, entities: int, wanted: int) -> int:
    """How many stretches the memory for states allows: 16 bytes per entity, or a byte per row."""
    allowed = max(4, rows // (4 * (entities + 2)))
    return min(wanted, allowed) if entities > _FEW_ENTITIES else wanted
