"""One side of a stream: the rows it holds, their codes and times, in the order they were pushed."""

from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from featurestore.core.table_rows import take_rows
from featurestore.core.time import INT64_MAX, BoolArray, Int64Array
from featurestore.errors import SchemaError
from featurestore.temporal.rows import Int32Array, Rows
from featurestore.temporal.tables import column_of
from featurestore.temporal.times import is_time_type, times_ns

# Event times, which of them are null, and when rows could have been known.
Clocks = tuple[Int64Array, BoolArray | None, Int64Array | None]


@dataclass(frozen=True, slots=True)
class Batch:
    """Rows that were pushed together."""

    table: pa.Table
    codes: Int32Array
    event_ns: Int64Array
    known_ns: Int64Array | None

    def __len__(self) -> int:
        return len(self.codes)

    @property
    def rows(self) -> Rows:
        """The keys and clocks, as the kernels take them."""
        return Rows(self.codes, self.event_ns, self.known_ns)

    def slice(self, first: int, last: int) -> "Batch":
        """Return rows `[first, last)`, without a copy."""
        known = None if self.known_ns is None else self.known_ns[first:last]
        table = self.table.slice(first, last - first)
        return Batch(table, self.codes[first:last], self.event_ns[first:last], known)

    def take(self, places: Int64Array) -> "Batch":
        """Return the rows at `places`, copied."""
        known = None if self.known_ns is None else self.known_ns[places]
        table = take_rows(self.table, places).combine_chunks()
        return Batch(table, self.codes[places], self.event_ns[places], known)


@dataclass(slots=True)
class Side:
    """What a stream holds of one side.

    Attributes:
        what: left or right, for messages.
        on: its time column.
        by: its key columns.
        created_on: its column of when a row could have been known.
        columns: what is kept of its tables; `None`: everything.
        schema: of its tables, once known.
    """

    what: str
    on: str
    by: tuple[str, ...]
    created_on: str | None
    columns: tuple[str, ...] | None
    schema: pa.Schema | None = None
    batches: list[Batch] = field(default_factory=list)

    def __len__(self) -> int:
        return sum(map(len, self.batches))

    def check(self, table: pa.Table) -> pa.Table:
        """Check a table before any of it is used; return the columns that are kept.

        Raises:
            SchemaError: a column is missing, is no time, or is not what it was on an earlier push.
        """
        for name in (self.on, self.created_on):
            if name is None:
                continue
            kind = column_of(table, name, self.what).type
            if not is_time_type(kind):
                raise SchemaError(
                    f"time column {name!r} of {self.what} is of type {kind}",
                    hint="a timestamp of any unit and zone, a date, or int64 nanoseconds since 1970 UTC",
                    column=name,
                )
        for name in (*self.by, *(self.columns or ())):
            column_of(table, name, self.what)
        if self.columns is not None:
            table = table.select(list(dict.fromkeys((self.on, *self.by, *self.columns))))
        if self.schema is not None and not table.schema.equals(self.schema):
            raise SchemaError(
                _difference(self.what, table.schema, self.schema), hint="cast it before the push"
            )
        return table

    def joined(self) -> Batch | None:
        """Return everything held as one batch, `None` where nothing is."""
        if len(self.batches) > 1:
            parts = self.batches
            known = [b.known_ns for b in parts if b.known_ns is not None]
            self.batches = [
                Batch(
                    pa.concat_tables([b.table for b in parts]),
                    np.concatenate([b.codes for b in parts]),
                    np.concatenate([b.event_ns for b in parts]),
                    np.concatenate(known) if known else None,
                )
            ]
        return self.batches[0] if self.batches else None

    def hold(self, batch: Batch) -> None:
        """Hold this batch and nothing else."""
        self.batches = [batch] if len(batch) else []


def _difference(what: str, found: pa.Schema, wanted: pa.Schema) -> str:
    for name in dict.fromkeys([*wanted.names, *found.names]):
        if name not in found.names:
            return f"{what} has no column {name!r}, which an earlier push had"
        if name not in wanted.names:
            return f"{what} has a column {name!r}, which no earlier push had"
        if found.field(name).type != wanted.field(name).type:
            return (
                f"column {name!r} of {what} is {found.field(name).type}; an earlier push had "
                f"{wanted.field(name).type}"
            )
    return f"{what} has columns {found.names} in another order, nullability or metadata than {wanted.names}"


def clocks(table: pa.Table, on: str, created_on: str | None) -> Clocks:
    """Read event times, which of them are null, and when rows could have been known (never where null).

    Raises:
        TimeOverflowError: a time that int64 nanoseconds cannot hold.
    """
    event, null = times_ns(table.column(on), on)
    if created_on is None:
        return event, null, None
    known, unknown = times_ns(table.column(created_on), created_on)
    return event, null, known if unknown is None else np.where(unknown, np.int64(INT64_MAX), known)
