"""One side of a stream: what its tables must be, and the rows of them that it holds."""

from collections import deque
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.core.table_rows import filter_rows
from featurestore.core.time import INT64_MAX, BoolArray, Int64Array
from featurestore.errors import SchemaError
from featurestore.temporal.streaming_columns import HeldColumns
from featurestore.temporal.streaming_rows import HeldRows
from featurestore.temporal.tables import check_unique, column_of, read_table
from featurestore.temporal.times import is_time_type, times_ns


class Side:
    """What both sides have in common: their checks, and the keys and clocks of the rows held.

    Attributes:
        what: left or right, for messages.
        on: its time column.
        by: its key columns.
        created_on: its column of when a row could have been known.
        columns: what is kept of its tables; `None`: everything.
        schema: of its tables; without columns until it is known.
        is_known: whether it is.
        rows: the codes and times of the rows held.
    """

    def __init__(
        self,
        what: str,
        on: str,
        by: tuple[str, ...],
        created_on: str | None = None,
        columns: tuple[str, ...] | None = None,
    ) -> None:
        self.what, self.on, self.by, self.created_on = what, on, by, created_on
        self.columns = None if columns is None else tuple(dict.fromkeys((on, *by, *columns)))
        self.rows = HeldRows(with_known=created_on is not None)
        self.schema: pa.Schema = pa.schema([])
        self.is_known = False
        self._checked: pa.Schema | None = None

    def read(self, data: Any) -> pa.Table:
        """Return a table's columns that are kept, checked before any of them is used.

        Raises:
            SchemaError: it is no table; a column is missing, comes twice, is no time, or is not what it was
                on an earlier push.
            StorageError: the stream behind it failed.
        """
        table = read_table(data, self.what)
        if self._checked is None or not table.schema.equals(self._checked):
            self._check(table)
            self._checked = table.schema
        return table if self.columns is None else table.select(self.columns)

    def _check(self, table: pa.Table) -> None:
        check_unique(table.column_names, f"{self.what} has two columns named")
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
        found = table.schema if self.columns is None else table.select(self.columns).schema
        if self.is_known and not found.equals(self.schema):
            raise SchemaError(_difference(self.what, found, self.schema), hint="cast it before the push")

    def learn(self, schema: pa.Schema) -> None:
        """Take the schema of the first table that came in as that of all."""
        if not self.is_known:
            self.schema, self.is_known = schema, True

    def times(self, table: pa.Table) -> tuple[Int64Array, BoolArray | None]:
        """Return event times, and which of them are null.

        Raises:
            TimeOverflowError: a time that int64 nanoseconds cannot hold.
        """
        return times_ns(table.column(self.on), self.on)

    def put_known(self, table: pa.Table, at: int) -> None:
        """Write from place `at` on when rows could have been known, never where that is null.

        Raises:
            TimeOverflowError: a time that int64 nanoseconds cannot hold.
        """
        if self.created_on is not None and self.rows.known_ns is not None:
            known, unknown = times_ns(table.column(self.created_on), self.created_on)
            if unknown is not None:
                known = np.where(unknown, np.int64(INT64_MAX), known)
            self.rows.known_ns[at : at + len(table)] = known


class LeftSide(Side):
    """Rows that wait, in tables as they were pushed: they come out untouched."""

    def __init__(self, on: str, by: tuple[str, ...]) -> None:
        super().__init__("left", on, by)
        self._tables: deque[pa.Table] = deque()

    def clear(self) -> None:
        """Hold nothing."""
        self.rows.clear()
        self._tables.clear()

    def hold(self, table: pa.Table, fall: int) -> None:
        """Hold a table whose codes and times lie in the room of `rows`."""
        if len(table):
            self._tables.append(table)
            self.rows.add(len(table), fall)

    def first(self, count: int) -> pa.Table:
        """Return the first `count` rows held, without a copy."""
        parts: list[pa.Table] = []
        for table in self._tables:
            rows = table.num_rows
            if count <= rows:
                parts.append(table.slice(0, count))
                break
            parts.append(table)
            count -= rows
        if not parts:
            return self.schema.empty_table()
        return parts[0] if len(parts) == 1 else pa.concat_tables(parts)

    def drop(self, count: int) -> None:
        """Let go of the first `count` rows."""
        self.rows.drop(count)
        tables = self._tables
        while tables and count >= tables[0].num_rows:
            count -= tables.popleft().num_rows
        if count:
            tables[0] = tables[0].slice(count)

    def table(self) -> pa.Table:
        """Return everything held."""
        return self.first(len(self.rows))


class RightSide(Side):
    """Rows that readers may still use, column by column."""

    def __init__(
        self,
        on: str,
        by: tuple[str, ...],
        created_on: str | None,
        columns: tuple[str, ...] | None,
    ) -> None:
        super().__init__("right", on, by, created_on, columns)
        self.values: HeldColumns | None = None

    def clear(self) -> None:
        """Hold nothing."""
        self.rows.clear()
        self.values = None

    def hold(self, table: pa.Table, fall: int) -> None:
        """Hold the rows of a table whose codes and times lie in the room of `rows`."""
        if self.values is None:
            self.values = HeldColumns(table.schema)
        self.values.append(table)
        self.rows.add(len(table), fall)

    def matchable(self, table: pa.Table, fall: int) -> tuple[pa.Table, int]:
        """Leave out the rows of a table in the room of `rows` whose key or time is null.

        Returns:
            The rest of it, and where its times go back last.
        """
        usable = self.rows.codes[self.rows.end : self.rows.end + len(table)] >= 0
        if usable.all():
            return table, fall
        return filter_rows(table, usable), self.rows.thin_room(usable, fall)

    def keep(self, places: Int64Array) -> None:
        """Hold the rows at these ascending places alone."""
        self.rows.keep(places)
        if self.values is not None:
            self.values.keep(places)

    def table(self) -> pa.Table:
        """Return everything held; it is good until that changes."""
        return self.schema.empty_table() if self.values is None else self.values.table()


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
