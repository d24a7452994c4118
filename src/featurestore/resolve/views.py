"""`resolve_view`: the value of a view's features for each reader, by the PIT rules."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.catalog.aggregation import Aggregation
from featurestore.catalog.expressions import evaluate
from featurestore.core.time import INT64_MIN, Int64Array
from featurestore.resolve.events import Events, column_of, columns_of, source_events, validity
from featurestore.resolve.program import ViewProgram
from featurestore.temporal.asof import asof_indices, last_known_indices
from featurestore.temporal.gather import gather
from featurestore.temporal.keys import code_keys
from featurestore.temporal.parted import within_tolerance
from featurestore.temporal.rows import Int32Array, Rows, scratch
from featurestore.temporal.times import one_array
from featurestore.temporal.windows import Window, window_aggregate

PRESENT: Final = 0
NULL: Final = 1
NOT_FOUND: Final = 2
EXPIRED: Final = 3
STATUS_NAMES: Final = ("PRESENT", "NULL", "NOT_FOUND", "EXPIRED")

StatusArray = npt.NDArray[np.int8]


@dataclass(frozen=True)
class Resolved:
    """A view's answer for `n` readers.

    Attributes:
        columns: Each feature's values, `n` long, in the view's order.
        sides: What was joined.
        newest: `(n,)` the newest row within the ttl, -1 where there is none.
    """

    columns: dict[str, pa.Array]
    program: ViewProgram
    sides: "Sides"
    newest: Int32Array
    threads: int | None

    # Training reads values alone: the rest is computed when somebody asks.
    @cached_property
    def event_ns(self) -> Int64Array:
        """`(n,)` event timestamp of the newest row used, `INT64_MIN` where there is none."""
        return _event_of(self.sides, self.newest)

    @cached_property
    def row_status(self) -> StatusArray:
        """`(n,)` PRESENT, NOT_FOUND or EXPIRED by row; a null cell of a PRESENT row is NULL."""
        return _row_status(self.program, self.sides, self.newest, self.threads)

    def cell_status(self, name: str) -> StatusArray:
        """Return the status of each cell of one feature."""
        null = np.asarray(self.columns[name].is_null())
        present_null = (self.row_status == PRESENT) & null
        # A window's value (a count of 0, say) stands even where no row is visible.
        valued = np.where(null, self.row_status, np.int8(PRESENT))
        return np.where(present_null, np.int8(NULL), valued)


@dataclass(frozen=True, slots=True)
class Newest:
    """Rows that were found already: each of `n` readers' newest visible one, which lies at its own place.

    Attributes:
        places: `(n,)` that place, -1 where there is none.
        event_ns: `(n,)` the row's event timestamp, of no meaning where there is none.
    """

    places: Int32Array
    event_ns: Int64Array


@dataclass(frozen=True, slots=True)
class Sides:
    """Reader and rows on one set of entity codes.

    Attributes:
        spine: The readers.
        rows: The rows; positions refer to `events.table`.
        entities: How many entities the codes number.
        newest: Where it is known already, each reader's newest visible row, at its own place, null where
            there is none; codes do not count then.
    """

    spine: Rows
    rows: Rows
    events: Events
    entities: int
    newest: Int32Array | None = None


def resolve_view(
    program: ViewProgram,
    spine: Events,
    spine_keys: Sequence[str],
    rows: pa.Table,
    *,
    threads: int | None,
) -> Resolved:
    """Compute a view's features for each reader from source rows.

    Args:
        spine: The readers, in any order.
        spine_keys: Their key columns, in the order of the program's join keys.
        rows: Rows of the program's base source, in source order, with `source_columns()` at least.

    Raises:
        SchemaError: a column is missing or has another kind than its counterpart.
        ExpressionError: an expression failed on the values it met.
    """
    events = view_rows(program, rows, threads=threads)
    sides = code_sides(program, spine, spine_keys, events, threads=threads)
    return resolve_sides(program, sides, threads=threads)


def code_sides(
    program: ViewProgram, spine: Events, spine_keys: Sequence[str], events: Events, *, threads: int | None
) -> Sides:
    """Number the entities of both sides alike."""
    coded = code_keys(
        [columns_of(spine.table, spine_keys), columns_of(events.table, program.join_keys)],
        program.join_keys,
        threads=threads,
    )
    return Sides(spine.rows(coded.codes[0]), events.rows(coded.codes[1]), events, coded.entities)


def resolve_sides(program: ViewProgram, sides: Sides, *, threads: int | None) -> Resolved:
    """Compute a view's features where the entities are numbered already."""
    newest = _newest(sides, program.ttl_ns, threads)
    columns: dict[str, pa.Array] = {}
    if program.features:
        columns |= _feature_columns(program, sides, newest, threads)
    if program.aggregations:
        columns |= window_aggregate(
            sides.spine,
            sides.rows,
            {
                a.column: column_of(sides.events.table, a.column)
                for a in program.aggregations
                if a.column != "*"
            },
            [_window(a) for a in program.aggregations],
            entities=sides.entities,
            threads=threads,
        )
    typed = {f.name: _as_type(columns[f.name], f.type) for f in program.schema}
    return Resolved(typed, program, sides, newest, threads)


def view_rows(program: ViewProgram, rows: pa.Table, *, threads: int | None) -> Events:
    """Return the rows that a program reads: the source's, or its upstream view's output."""
    if program.upstream is None:
        return source_events(rows, program.times)
    return source_events(view_events(program.upstream, rows, threads=threads), program.times)


def view_events(program: ViewProgram, rows: pa.Table, *, threads: int | None) -> pa.Table:
    """Compute a view as a table of events: one row per row of its source, in the same order.

    A row keeps its keys, event timestamp, created timestamp and sequence. A plain view's features are
    expressions over the row itself; with `last_known` or aggregations they are the values that a reader
    at the row's event timestamp would have, knowing what was known when the row itself became known.
    """
    events = view_rows(program, rows, threads=threads)
    kept = events.table.select(program.carried())
    columns = _row_columns(program, events, None, threads, row_by_row=program.reads_one_row)
    for field in program.schema:
        kept = kept.append_column(field, _as_type(columns[field.name], field.type))
    return kept


@dataclass(frozen=True, slots=True)
class Numbered:
    """Rows of the last program of a chain, numbered by the keys of the first.

    Attributes:
        program: The first.
        events: The rows: the columns that the last program reads, and of the keys and times that views
            above it read those that they do.
        codes: `(n,)` each row's entity.
        entities: How many there are.
    """

    program: ViewProgram
    events: Events
    codes: Int32Array
    entities: int

    def by_keys_of(self, view: ViewProgram) -> tuple[Int32Array, Int32Array | None]:
        """Number the rows by the keys of a view of the chain.

        Returns:
            `(n,)` codes, and by code the entity of the first program that it belongs to; `None`: it is the
            same one.
        """
        extra = [key for key in view.join_keys if key not in self.program.join_keys]
        if not extra:
            return self.codes, None
        first = pa.chunked_array([pa.array(self.codes, mask=self.codes < 0)])
        coded = code_keys([[first, *columns_of(self.events.table, extra)]], ("", *extra))
        codes = coded.codes[0]
        there = codes >= 0
        whole = np.zeros(coded.entities, np.int32)
        whole[codes[there]] = self.codes[there]
        return codes, whole


def resolve_numbered(rows: Numbered, spine: Rows, *, threads: int | None) -> Resolved:
    """Compute a view's features for each reader from rows of the last program of its chain.

    Args:
        spine: The readers, numbered as the rows are.
    """
    program = rows.program
    events = _rows_of(program, rows, threads)
    sides = Sides(spine, events.rows(rows.codes), events, rows.entities)
    return resolve_sides(program, sides, threads=threads)


def _rows_of(view: ViewProgram, rows: Numbered, threads: int | None) -> Events:
    """Return the rows that a view of the chain reads."""
    if view.upstream is None or view.upstream.is_row_by_row:
        return rows.events
    below = _rows_of(view.upstream, rows, threads)
    upstream = view.upstream.only(view.row_columns())
    codes, whole = rows.by_keys_of(upstream)
    coded = codes, rows.entities if whole is None else whole.size
    values = _row_columns(upstream, below, coded, threads, row_by_row=view.upstream.reads_one_row)
    table = {
        name: below.table.column(name) for name in below.table.column_names if name in upstream.carried()
    }
    table |= {f.name: _as_type(values[f.name], f.type) for f in upstream.schema}
    return replace(below, table=pa.table(table or {"_": pa.nulls(below.table.num_rows)}))


def _row_columns(
    program: ViewProgram,
    events: Events,
    coded: tuple[Int32Array, int] | None,
    threads: int | None,
    *,
    row_by_row: bool,
) -> Mapping[str, pa.Array]:
    """Compute a view's features for each of the rows that it reads.

    Args:
        coded: `(n,)` entity codes of the rows, and how many entities there are; `None`: by their keys.
        row_by_row: Whether the whole view, of which the program may be a part, reads one row for each.
    """
    if row_by_row:
        inputs = {name: column_of(events.table, name) for name in program.inputs()}
        return evaluate_features(program, inputs, None, events.table.num_rows)
    known = events.event_ns if events.known_ns is None else np.maximum(events.event_ns, events.known_ns)
    spine = Events(events.table, events.event_ns, events.dead, known)
    if coded is None:
        sides = code_sides(program, spine, program.join_keys, events, threads=threads)
    else:
        codes, entities = coded
        sides = Sides(spine.rows(codes), events.rows(codes), events, entities)
    return resolve_sides(program, sides, threads=threads).columns


def _newest(sides: Sides, ttl_ns: int | None, threads: int | None) -> Int32Array:
    if sides.newest is not None:
        # The very array where nothing is too old: what lies at each place is the answer.
        return within_tolerance(sides.spine, sides.rows, sides.newest, ttl_ns)
    return asof_indices(
        sides.spine,
        sides.rows,
        entities=sides.entities,
        direction="backward",
        tolerance_ns=ttl_ns,
        boundary="inclusive",
        threads=threads,
    )


def _feature_columns(
    program: ViewProgram, sides: Sides, newest: Int32Array, threads: int | None
) -> dict[str, pa.Array]:
    table = sides.events.table
    names = program.inputs()
    if program.nulls == "keep":
        picked = dict.fromkeys(names, newest)
    else:
        found = last_known_indices(
            sides.spine,
            sides.rows,
            [validity(column_of(table, name)) for name in names],
            entities=sides.entities,
            tolerance_ns=program.ttl_ns,
            boundary="inclusive",
            threads=threads,
        )
        picked = dict(zip(names, found, strict=True))
    inputs = {
        name: column_of(table, name) if rows is sides.newest else gather(column_of(table, name), rows)
        for name, rows in picked.items()
    }
    return evaluate_features(program, inputs, newest, newest.size)


def evaluate_features(
    program: ViewProgram,
    inputs: Mapping[str, pa.Array | pa.ChunkedArray],
    newest: Int32Array | None,
    rows: int,
) -> dict[str, pa.Array]:
    """Compute a program's features from its input columns, row by row.

    Args:
        inputs: The columns of `program.inputs()`, each `rows` long.
        newest: `(rows,)` negative where a reader has no row: it gets nulls, not f(nulls). `None`: all have.

    Raises:
        ExpressionError: an expression failed on the values it met.
    """
    columns = {f.name: one_array(inputs[f.name]) for f in program.features if f.expression is None}
    expressions = {f.name: f.expression for f in program.features if f.expression is not None}
    if expressions:
        table = pa.table(dict(inputs)) if inputs else pa.table({"_": pa.nulls(rows)})
        values = evaluate(expressions, table)
        if newest is not None and newest.size and int(newest.min()) < 0:
            seen = np.where(newest < 0, np.int64(-1), np.arange(newest.size, dtype=np.int64))
            values = {name: gather(column, seen) for name, column in values.items()}
        columns |= values
    return columns


def _row_status(program: ViewProgram, sides: Sides, newest: Int32Array, threads: int | None) -> StatusArray:
    status = np.where(newest >= 0, np.int8(PRESENT), np.int8(NOT_FOUND))
    if program.ttl_ns is not None and newest.size and int(newest.min()) < 0:
        ever = _newest(sides, None, threads)
        status[(newest < 0) & (ever >= 0)] = EXPIRED
    return status


def _event_of(sides: Sides, newest: Int32Array) -> Int64Array:
    out = scratch(newest.size, np.dtype(np.int64))
    if sides.events.event_ns.size:
        np.take(sides.events.event_ns, newest, mode="wrap", out=out)
    out[newest < 0] = INT64_MIN
    return out


def _window(aggregation: Aggregation) -> Window:
    return Window(
        column=aggregation.column,
        function=aggregation.base_function,
        window_ns=aggregation.window_ns,
        tile_ns=aggregation.tile_ns,
        n=aggregation.last_n,
        name=aggregation.name,
    )


def _as_type(column: pa.Array, kind: pa.DataType) -> pa.Array:
    """Give a column its recorded type; a safe cast, because the schema was inferred from this very text."""
    return column if column.type == kind else column.cast(kind)
