"""Which rows a later reader may still need: the state that is carried from one partition to the next."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from featurestore.core.time import INT64_MIN, BoolArray, Int64Array
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.order import NO_INT64
from featurestore.temporal.rows import Rows, check_rows, frozen
from featurestore.temporal.windows_order import check_codes

_NO_BOOL: BoolArray = frozen(np.zeros(0, np.bool_))

_kernels: Any = lazy_module("featurestore.temporal.retain_kernels")


def retained_indices(
    rows: Rows,
    *,
    entities: int,
    at_ns: int,
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
        at_ns: No later reader has an older event or knowledge time than this.
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
    check_codes(rows.codes, entities)
    known = NO_INT64 if rows.known_ns is None else frozen(rows.known_ns)
    sequence = NO_INT64 if rows.sequence is None else frozen(rows.sequence)
    codes, event = frozen(rows.codes), frozen(rows.event_ns)
    keep = np.zeros(len(rows), np.bool_)
    oldest = INT64_MIN if ttl_ns is None else max(at_ns - ttl_ns, INT64_MIN)
    masks = ([None] if newest else []) + list(last_known)
    for mask in masks:
        best = np.full(entities, -1, np.int64)
        valid = _NO_BOOL if mask is None else frozen(mask)
        _kernels.mark_newest(codes, event, known, sequence, valid, at_ns, oldest, best, keep)
    if window_ns > 0:
        start = at_ns - window_ns
        _kernels.mark_window(codes, event, known, max(start, INT64_MIN), start < INT64_MIN, keep)
    return np.flatnonzero(keep)
