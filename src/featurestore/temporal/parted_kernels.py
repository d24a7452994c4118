"""Compiled loops over rows that lie entity by entity, in time order: as stored data does."""

import numpy as np
import numpy.typing as npt

from featurestore.core.time import DAY_NS, INT64_MAX, Int64Array
from featurestore.temporal.asof_kernels import count_before, known_before
from featurestore.temporal.jit import kernel
from featurestore.temporal.rows import Int32Array


@kernel
def place_entities(
    order: Int32Array,
    starts: Int64Array,
    ends: Int64Array,
    chosen: Int64Array,
    positions: Int64Array,
    codes: Int32Array,
    offsets: Int64Array,
) -> bool:
    """Put grouped rows one entity after the other; returns whether every row stays where it is.

    Args:
        order: source position of each grouped row; empty where that is the place itself.
        chosen: `(e,)` which groups, in the order wanted.
        positions: gets source positions; `codes` the place of each row's group in `chosen`.
        offsets: `(e + 1,)` gets where each group begins.
    """
    place = 0
    stays = True
    for rank in range(len(chosen)):
        offsets[rank] = place
        for k in range(starts[chosen[rank]], ends[chosen[rank]]):
            row = k if len(order) == 0 else order[k]
            stays &= row == place
            positions[place] = row
            codes[place] = rank
            place += 1
    offsets[len(chosen)] = place
    return stays


@kernel
def day_groups(
    time: Int64Array,
    group: Int32Array,
    groups: int,
    slots: Int32Array,
    first: int,
    days: int,
    out: Int32Array,
) -> None:
    """Number (group, day) for each reader.

    Args:
        group: in `[0, groups)`; any other is nobody's.
        slots: of each day from `first` on, which of the `days` days is the newest not after it.
        out: gets `group * days + day`; `groups * days` for nobody's and for readers before the first day.
    """
    last = len(slots) - 1
    for i in range(len(time)):
        day = time[i] // DAY_NS - first
        if day < 0 or group[i] < 0 or group[i] >= groups:
            out[i] = groups * days
        else:
            out[i] = group[i] * days + slots[min(day, last)]


@kernel
def keep_known(readers: Int32Array, codes: Int32Array, known: npt.NDArray[np.bool_], kept: Int32Array) -> int:
    """Keep the readers whose entity is known (code -1 looks at the last place); returns their number."""
    count = 0
    for k in range(len(readers)):
        if known[codes[readers[k]]]:
            kept[count] = readers[k]
            count += 1
    return count


@kernel
def record_found(
    readers: Int32Array, rows: Int64Array, event: Int64Array, newest: Int32Array, event_ns: Int64Array
) -> None:
    """Note for each of these readers its own place, and when the row that it takes happened."""
    for k in range(len(readers)):
        newest[readers[k]] = readers[k]
        event_ns[readers[k]] = event[rows[k]]


@kernel
def group_pending(
    pending: Int32Array,
    codes: Int32Array,
    slots: Int32Array,
    ends: Int64Array,
    grouped: Int32Array,
    absent: Int32Array,
) -> int:
    """Put readers in the order of a part's entities, so that its rows are read from front to back.

    Args:
        slots: the part's entity of each code, -1 where the part has no row of it.
        ends: `(entities,)` zeros; gets where each entity's readers end in `grouped`.
        absent: gets the readers whose entity is not there; their number is returned.
    """
    count = 0
    for k in range(len(pending)):
        slot = slots[codes[pending[k]]]
        if slot >= 0:
            ends[slot] += 1
        else:
            absent[count] = pending[k]
            count += 1
    total = 0
    for e in range(len(ends)):
        size = ends[e]
        ends[e] = total
        total += size
    for k in range(len(pending)):
        slot = slots[codes[pending[k]]]
        if slot >= 0:
            grouped[ends[slot]] = pending[k]
            ends[slot] += 1
    return count


@kernel
def find_newest(
    grouped: Int32Array,
    ends: Int64Array,
    time: Int64Array,
    cutoff: Int64Array,
    event: Int64Array,
    known: Int64Array,
    tree: Int64Array,
    levels: Int64Array,
    offsets: Int64Array,
    reach: int,
    who: Int32Array,
    place: Int64Array,
    left: Int32Array,
) -> tuple[int, int]:
    """Find the row that each reader takes of one part.

    Args:
        grouped: readers, entity by entity (`ends`); neighbours in time are answered fastest.
        cutoff: what each reader may know; empty where there is no knowledge condition.
        reach: how far back of a reader a row may lie; negative: for ever. Who finds an older one is done.
        who: gets the readers that found a row, and `place` that row.
        left: gets those that found none.

    Returns:
        How many found one, and how many did not.
    """
    found, missed = 0, 0
    limit = np.uint64(max(reach, 0))
    start = 0
    for e in range(len(ends)):
        lo, hi = offsets[e], offsets[e + 1]
        edge = lo
        for k in range(start, ends[e]):
            i = grouped[k]
            edge = count_before(event, lo, hi, int(edge), time[i], True)
            row = edge - 1 if edge > lo else -1
            if row >= 0 and len(cutoff) > 0:
                row = known_before(known, tree, levels, lo, row, min(cutoff[i], INT64_MAX - 1))
            if row < 0:
                left[missed] = i
                missed += 1
            elif reach < 0 or np.uint64(time[i] - event[row]) <= limit:
                who[found] = i
                place[found] = row
                found += 1
        start = ends[e]
    return found, missed


@kernel
def keep_reaching(readers: Int32Array, time: Int64Array, newest: int, reach: int, kept: Int32Array) -> int:
    """Keep the readers from whose time `reach` goes back to `newest`; returns their number."""
    limit = np.uint64(reach)
    count = 0
    for k in range(len(readers)):
        now = time[readers[k]]
        if now <= newest or np.uint64(now - newest) <= limit:
            kept[count] = readers[k]
            count += 1
    return count


@kernel
def within_tolerance(
    time: Int64Array, event: Int64Array, tolerance: int, newest: Int32Array, out: Int32Array
) -> bool:
    """Copy `newest` without the rows that lie further back than the tolerance; returns whether any were."""
    limit = np.uint64(tolerance)
    dropped = False
    for i in range(len(newest)):
        row = newest[i]
        if row >= 0 and np.uint64(time[i] - event[row]) > limit:
            row = -1
            dropped = True
        out[i] = row
    return dropped
