"""The as-of join of two tables."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from featurestore.core.time import Duration
from featurestore.errors import DefinitionError
from featurestore.temporal.align import AsOf, aligned
from featurestore.temporal.tables import names_of


def asof_join(
    left: Any,
    right: Any,
    *,
    on: str,
    right_on: str | None = None,
    by: str | Sequence[str] | None = None,
    right_by: str | Sequence[str] | None = None,
    direction: str = "backward",
    tolerance: Duration | None = None,
    boundary: str = "inclusive",
    created_on: str | None = None,
    columns: Sequence[str] | None = None,
    prefix: str = "",
    matched_timestamp: str | None = None,
) -> pa.Table:
    """Give each row of `left` the row of `right` it may see at its time, and no other (PIT-1 to PIT-4).

    Neither side needs to be sorted; chunks, slices and empty tables are fine. Times of any unit and zone,
    dates and int64 ns compare exactly.

    Args:
        left: anything with the Arrow PyCapsule protocol: Arrow, Polars, pandas, DuckDB.
        right: the same.
        on: left's time column.
        right_on: right's time column; by default named as left's.
        by: left's key column or columns; none: every row may see every row.
        right_by: right's key columns, in the order of left's; by default named as left's.
        direction: `backward` takes the newest row that is not later, `forward` the oldest that is not
            earlier, `nearest` the closer of the two (equidistant: backward).
        tolerance: the greatest distance in time, bound included: `"5s"`, a timedelta or integer ns.
        boundary: `inclusive`: a row of the very same instant matches; `exclusive`: it does not.
        created_on: right's column of when a row could have been known. Rows known only after left's
            time do not exist for it (a null, or the last ns that int64 holds: never known).
        columns: which of right's columns to take; by default all but its time and key columns.
        prefix: put before the names of right's columns.
        matched_timestamp: name of an extra column with the matched row's time, null where none is.

    Returns:
        One row per row of `left`, in left's order: left's columns untouched, then right's.

    Raises:
        SchemaError: a missing or mistyped column, keys of different kinds, two output columns of a name.
        DefinitionError: an unknown direction or boundary, a negative tolerance, unequal key counts.
        TimeOverflowError: a time or tolerance that int64 ns cannot hold.

    Cost: linear in both sides where they are in time order or grouped by key; no order is assumed, it is
    found. About 8 bytes per left row and 4 per right row beyond inputs and output.
    """
    if right_by is not None and names_of(right_by) and not names_of(by):
        raise DefinitionError(
            f"right_by is {right_by!r} without by", hint="name left's key columns in by, in the same order"
        )
    rule = AsOf(
        right,
        columns=columns,
        tolerance=tolerance,
        direction=direction,
        boundary=boundary,
        on=on if right_on is None else right_on,
        by=by if right_by is None else right_by,
        created_on=created_on,
        prefix=prefix,
        matched_timestamp=matched_timestamp,
    )
    return aligned(left, {"right": rule}, on, by, threads=None, count=False, spine_name="left").table
