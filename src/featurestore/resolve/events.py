"""Rows of a source with their times as arrays, and the spine that reads them."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from featurestore.core.names import near
from featurestore.core.time import INT64_MAX, BoolArray, Int64Array
from featurestore.errors import SchemaError
from featurestore.temporal.rows import Rows
from featurestore.temporal.times import add_saturating, times_ns


@dataclass(frozen=True, slots=True)
class EventTimes:
    """Which columns of a source say when.

    Attributes:
        timestamp: The event timestamp's column.
        created: The created timestamp's column, or `None`.
        sequence: The tie-breaking column, or `None`.
        delay_ns: How long after its created (else event) timestamp a row becomes visible.
    """

    timestamp: str
    created: str | None = None
    sequence: str | None = None
    delay_ns: int = 0

    def columns(self) -> tuple[str, ...]:
        """Return the columns that are there, event timestamp first."""
        return tuple(c for c in (self.timestamp, self.created, self.sequence) if c is not None)


@dataclass(frozen=True, slots=True)
class Events:
    """A table of events and its times.

    Attributes:
        table: `n` rows, in source order: the position of a row decides ties.
        event_ns: `(n,)` event timestamps, 0 where null.
        dead: `(n,)` True where the event timestamp is null: such a row matches nothing.
        known_ns: `(n,)` when each row becomes visible at the earliest; `None`: with its event.
        sequence: `(n,)` tie-breaker after event and known; `None`: the position decides.
    """

    table: pa.Table
    event_ns: Int64Array
    dead: BoolArray | None
    known_ns: Int64Array | None = None
    sequence: Int64Array | None = None

    def rows(self, codes: np.ndarray) -> Rows:
        """Return the kernel's view of these events, given their entity codes."""
        live = codes if self.dead is None else np.where(self.dead, np.int32(-1), codes)
        return Rows(live, self.event_ns, self.known_ns, self.sequence)


def source_events(table: pa.Table, times: EventTimes) -> Events:
    """Read the times of a source's rows.

    Raises:
        SchemaError: a time column is missing or holds no times.
        TimeOverflowError: a time does not fit int64 nanoseconds.
    """
    event_ns, dead = times_ns(column_of(table, times.timestamp), times.timestamp)
    known_ns = None
    if times.created is not None:
        created_ns, never = times_ns(column_of(table, times.created), times.created)
        known_ns = add_saturating(created_ns, times.delay_ns)
        if never is not None:
            known_ns = np.where(never, np.int64(INT64_MAX), known_ns)
    elif times.delay_ns:
        known_ns = add_saturating(event_ns, times.delay_ns)
    sequence = None
    if times.sequence is not None:
        sequence = _sequence(column_of(table, times.sequence), times.sequence)
    return Events(table, event_ns, dead, known_ns, sequence)


def spine_events(table: pa.Table, timestamp: str, *, as_of_ns: int | None = None) -> Events:
    """Read the times of a spine; with `as_of_ns`, rows known only later stay invisible.

    Raises:
        SchemaError: the time column is missing or holds no times.
    """
    event_ns, dead = times_ns(column_of(table, timestamp), timestamp)
    known_ns = None if as_of_ns is None else np.minimum(event_ns, np.int64(as_of_ns))
    return Events(table, event_ns, dead, known_ns)


def looking_ahead(spine: Events, horizon_ns: int) -> Events:
    """Return the spine moved to `t + horizon`, with every correction known: for labels only."""
    moved = add_saturating(spine.event_ns, horizon_ns)
    return replace(spine, event_ns=moved, known_ns=np.full(moved.size, INT64_MAX, np.int64))


def column_of(table: pa.Table, name: str) -> pa.ChunkedArray:
    """Return a column by name.

    Raises:
        SchemaError: there is none, or more than one.
    """
    count = table.column_names.count(name)
    if count != 1:
        raise SchemaError(
            f"column {name!r} is {'missing' if count == 0 else 'there more than once'}",
            hint=near(name, table.column_names),
            column=name,
        )
    return table.column(name)


def columns_of(table: pa.Table, names: Sequence[str]) -> list[pa.ChunkedArray]:
    """Return several columns by name."""
    return [column_of(table, name) for name in names]


def validity(column: pa.ChunkedArray) -> BoolArray | None:
    """Return `(n,)` True where there is a value; `None`: everywhere."""
    if column.null_count == 0:
        return None
    return np.asarray(column.is_valid().combine_chunks().to_numpy(zero_copy_only=False))


def _sequence(column: pa.ChunkedArray, name: str) -> Int64Array:
    if not pa.types.is_integer(column.type):
        raise SchemaError(
            f"sequence column {name!r} has type {column.type}",
            hint="a sequence is an integer that grows with every correction",
            column=name,
        )
    # A null sequence is older than every given one.
    values = column.cast(pa.int64()).fill_null(np.iinfo(np.int64).min)
    return np.asarray(values.combine_chunks().to_numpy(zero_copy_only=False), dtype=np.int64)
