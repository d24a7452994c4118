"""Which rows a later reader may still need: the state that is carried from one partition to the next."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from featurestore.core.time import INT64_MIN, BoolArray, Int64Array
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.order import NO_INT64, check_codes
from featurestore.temporal.rows import Rows, check_rows, frozen
from featurestore.temporal.times import add_saturating

_NO_BOOL: BoolArray = frozen(np.zeros(0, np.bool_))

_kernels: Any = lazy_module("featurestore.temporal.retain_kernels")


def retained_indices(
    rows: Rows,
    *,
    entities: int,
    at_ns: int | Int64Array,
    ttl_ns: int | None,
    newest: bool,
    last_known: Sequence[BoolArray | None],
    window_ns: int,
) -> Int64Array:
    """Choose the rows that some spine row with `event >= at_ns` and `known >= at_ns` could still use.

    Partition by partition, incremental, streaming and the online store's retention all use this rule:
    `concat(rows[retained], newer rows)` answers exactly like all rows, bit for bit.

    Args:
        rows: In any order; positions are kept in order, so that ties stay as they were.
        at_ns: No later reader has an older event or knowledge time than this; one for all, or `(entities,)`.
        ttl_ns: The greatest age a row may have when read, bound included; `None`: any.
        newest: Keep what the newest visible row may be, with either boundary and in any direction.
        last_known: Per column its validity (`None`: never null): keep what its newest non-null row may be.
        window_ns: The longest look-back of an aggregation, the length of its tile added; 0: none.

    Returns:
        Sorted positions in `rows`.

    Raises:
        SchemaError: arrays of `rows` that do not fit together.

    Cost: two passes per mask, 8 bytes per entity. At most one row per entity and mask remains of what was
    visible before `at_ns`; rows known later than `at_ns` stay only while they can still win.
    """
    check_rows(rows, "rows")
    check_codes(rows, entities, "rows")
    known = NO_INT64 if rows.known_ns is None else frozen(rows.known_ns)
    sequence = NO_INT64 if rows.sequence is None else frozen(rows.sequence)
    codes, event = frozen(rows.codes), frozen(rows.event_ns)
    keep = np.zeros(len(rows), np.bool_)
    at = frozen(np.atleast_1d(np.asarray(at_ns, np.int64)))
    oldest = frozen(np.full(1, INT64_MIN, np.int64) if ttl_ns is None else add_saturating(at, -ttl_ns))
    masks = ([None] if newest else []) + list(last_known)
    for mask in masks:
        best = np.full(entities, -1, np.int64)
        valid = _NO_BOOL if mask is None else frozen(mask)
        _kernels.mark_newest(codes, event, known, sequence, valid, at, oldest, best, keep)
    if window_ns > 0:
        _kernels.mark_window(codes, event, known, frozen(_window_start(at, window_ns)), keep)
    return np.flatnonzero(keep)


def earliest_used(
    rows: Rows, *, entities: int, at_ns: Int64Array, ttl_ns: int | None, newest: bool, window_ns: int
) -> Int64Array:
    """Return how far back readers from `at_ns` on go: no row that they use has an older event.

    Rows that come later, in whatever order, do not change it: one that the newest visible row beats is used
    by no reader.

    Args:
        at_ns: `(entities,)` the earliest reader of each.
        newest: Readers use the newest visible row within the ttl; else none that is older than they are, but
            for windows.
        window_ns: The longest look-back of an aggregation, the length of its tile added; 0: none.

    Returns:
        `(entities,)` ns, `at_ns` at the latest; `INT64_MIN` where any row may be used.
    """
    earliest = at_ns
    if newest:
        live = np.flatnonzero(rows.codes >= 0)
        codes, event = rows.codes[live], rows.event_ns[live]
        at = at_ns[codes]
        seen = event <= at
        if rows.known_ns is not None:
            seen &= rows.known_ns[live] <= at
        earliest = np.full(entities, INT64_MIN, np.int64)
        np.maximum.at(earliest, codes[seen], event[seen])
        if ttl_ns is not None:
            earliest = np.maximum(earliest, add_saturating(at_ns, -ttl_ns))
    if window_ns > 0:
        earliest = np.minimum(earliest, _window_start(at_ns, window_ns))
    return earliest


def _window_start(at_ns: Int64Array, window_ns: int) -> Int64Array:
    """Return the first event that the window `(at - window, at]` holds."""
    return add_saturating(at_ns, max(1 - window_ns, INT64_MIN))
