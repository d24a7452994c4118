"""`resolve_features`: a whole point-in-time join, rows in, one row per spine row out (PIT-3)."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa

from featurestore.catalog.expressions import evaluate
from featurestore.core.table_rows import filter_rows
from featurestore.core.time import INT64_MIN
from featurestore.errors import SchemaError
from featurestore.resolve.events import Events, column_of, columns_of, spine_events
from featurestore.resolve.joins import Cell, JoinPlan, OnDemandJoin
from featurestore.resolve.labels import resolve_label
from featurestore.resolve.program import ViewProgram
from featurestore.resolve.views import Newest, Resolved, Sides, resolve_sides, view_rows
from featurestore.temporal.keys import code_keys
from featurestore.temporal.times import rows_from, times_ns


@dataclass(frozen=True, slots=True)
class Joined:
    """The result of a join.

    Attributes:
        table: The spine's columns, then features, then labels; one row per spine row, in its order.
        resolved: Each view's answer with times and statuses, by join key (alias or `view@version`).
    """

    table: pa.Table
    resolved: Mapping[str, Resolved]


def resolve_features(
    plan: JoinPlan,
    spine: pa.Table,
    rows: Mapping[str, pa.Table],
    *,
    newest: Mapping[str, Newest] | None = None,
    found: Mapping[Cell, pa.ChunkedArray] | None = None,
    as_of_ns: int | None = None,
    values_only: bool = False,
    threads: int | None = None,
) -> Joined:
    """Join features and labels onto a spine.

    Args:
        spine: `n` rows, in any order; its columns pass through untouched.
        rows: Rows of each source in `plan.needs()`, in source order, with at least the needed columns; rows
            further from the spine than a source's look-back and look-ahead may be left out.
        newest: Of sources whose views read one row each, all matched on the same spine columns: what was
            found already. Their `rows` hold at each spine row's place the row that it takes.
        found: The values of whole views and labels that were computed already, by cell: their sources are
            not asked for, and they are not among the resolved.
        as_of_ns: Rows known only after this instant stay invisible to features.
        values_only: Times and statuses are not asked for: each view's rows beyond its own reach are left
            out before they are matched, where another view of the same source looks further back.

    Raises:
        SchemaError: a column is missing or of the wrong kind.
        ExpressionError: an expression failed on the values it met.

    Cost:
        One pass over spine and rows per view; entity keys are coded once per distinct key columns.
    """
    cells: dict[Cell, pa.Array | pa.ChunkedArray] = dict(found or {})
    rest = _without(plan, cells)
    readers = spine_events(spine, plan.timestamp, as_of_ns=as_of_ns)
    sides = _Coder(readers, rows, newest or {}, _first_ns(rest, readers) if values_only else {}, threads)
    sides.code(rest)
    resolved: dict[str, Resolved] = {}
    for join in rest.views:
        answer = resolve_sides(join.program, sides.of(join.program, join.spine_keys), threads=threads)
        resolved[join.key] = answer
        cells |= {(join.key, name): column for name, column in answer.columns.items()}
    for demand in plan.on_demand:
        columns = resolve_on_demand(demand, cells, spine)
        cells |= {(demand.key, name): column for name, column in columns.items()}
    out = spine
    for column in plan.columns:
        out = out.append_column(pa.field(column.name, column.type), cells[column.cell])
    for label in rest.labels:
        program = label.program
        side = sides.of(program.rows, label.spine_keys)
        cells[label.cell] = resolve_label(program, side, readers, rows[program.rows.source], threads=threads)
    for label in plan.labels:
        out = out.append_column(pa.field(label.program.name, label.program.type), cells[label.cell])
    return Joined(out, resolved)


def _without(plan: JoinPlan, found: Collection[Cell]) -> JoinPlan:
    """Return what is left to match."""
    done = {key for key, _ in found}
    views = tuple(j for j in plan.views if j.key not in done)
    return replace(plan, views=views, labels=tuple(x for x in plan.labels if x.cell not in found))


def resolve_on_demand(
    demand: OnDemandJoin, cells: Mapping[Cell, pa.Array | pa.ChunkedArray], request: pa.Table
) -> dict[str, pa.Array]:
    """Evaluate an on-demand view over resolved features and request columns, row by row.

    Raises:
        SchemaError: a request column is missing or cannot be read as its declared type.
    """
    columns: dict[str, pa.Array | pa.ChunkedArray] = {n: cells[cell] for n, cell in demand.inputs}
    for name, kind in demand.request:
        column = column_of(request, name)
        try:
            columns[name] = column if column.type == kind else column.cast(kind)
        except (pa.ArrowInvalid, pa.ArrowNotImplementedError) as error:
            raise SchemaError(
                f"request field {name!r} has type {column.type}, declared as {kind}",
                hint=str(error),
                column=name,
            ) from error
    table = pa.table(columns) if columns else pa.table({"_": pa.nulls(request.num_rows)})
    expressions = {f.name: f.expression or f'"{f.name}"' for f in demand.features}
    values = evaluate(expressions, table)
    return {
        field.name: values[field.name].cast(field.type)
        if values[field.name].type != field.type
        else values[field.name]
        for field in demand.schema
    }


class _Coder:
    """Entity codes shared by every view that is matched on the same spine columns."""

    def __init__(
        self,
        spine: Events,
        rows: Mapping[str, pa.Table],
        newest: Mapping[str, Newest],
        first_ns: Mapping[object, int],
        threads: int | None,
    ) -> None:
        self.spine = spine
        self.rows = rows
        self.newest = newest
        self.first_ns = first_ns
        self.threads = threads
        self.events: dict[object, Events] = {}
        self.sides: dict[object, Sides] = {}

    def code(self, plan: JoinPlan) -> None:
        groups: dict[tuple[str, ...], dict[object, ViewProgram]] = {}
        joins = [(j.program, j.spine_keys) for j in plan.views]
        joins += [(x.program.rows, x.spine_keys) for x in plan.labels]
        for program, spine_keys in joins:
            if program.source in self.newest:
                self._take_found(spine_keys, program)
            else:
                groups.setdefault(spine_keys, {})[_rows_key(program)] = program
        for spine_keys, programs in groups.items():
            self._code_group(spine_keys, programs)

    def of(self, program: ViewProgram, spine_keys: tuple[str, ...]) -> Sides:
        return self.sides[spine_keys, _rows_key(program)]

    def _take_found(self, spine_keys: tuple[str, ...], program: ViewProgram) -> None:
        newest = self.newest[program.source]
        events = Events(self.rows[program.source], newest.event_ns, None)
        none = np.broadcast_to(np.int32(0), newest.places.size)
        sides = Sides(self.spine.rows(none), events.rows(none), events, 1, newest.places)
        self.sides[spine_keys, _rows_key(program)] = sides

    def _code_group(self, spine_keys: tuple[str, ...], programs: Mapping[object, ViewProgram]) -> None:
        tables = [columns_of(self.spine.table, spine_keys)]
        for key, program in programs.items():
            if key not in self.events:
                rows = _from(self.rows[program.source], program, self.first_ns.get(key, INT64_MIN))
                self.events[key] = view_rows(program, rows, threads=self.threads)
            tables.append(columns_of(self.events[key].table, program.join_keys))
        coded = code_keys(tables, next(iter(programs.values())).join_keys, threads=self.threads)
        spine = self.spine.rows(coded.codes[0])
        for (key, events), codes in zip(
            ((k, self.events[k]) for k in programs), coded.codes[1:], strict=True
        ):
            self.sides[spine_keys, key] = Sides(spine, events.rows(codes), events, coded.entities)


def _first_ns(plan: JoinPlan, readers: Events) -> dict[object, int]:
    """Return the oldest event timestamp that matters to the readers, by what `_rows_key` tells apart."""
    live = readers.event_ns if readers.dead is None else readers.event_ns[~readers.dead]
    oldest = int(live.min()) if live.size else INT64_MIN
    first: dict[object, int] = {}
    for join in plan.views:
        key, behind = _rows_key(join.program), join.program.look_back_ns()
        own = INT64_MIN if behind is None else max(oldest - behind, INT64_MIN)
        first[key] = min(own, first.get(key, own))
    # A label reads its source's rows once more, by their positions.
    return first | {_rows_key(label.program.rows): INT64_MIN for label in plan.labels}


def _from(rows: pa.Table, program: ViewProgram, first_ns: int) -> pa.Table:
    """Leave out rows with older event timestamps; where they lie in front nothing is copied."""
    if first_ns == INT64_MIN:
        return rows
    event_ns, _ = times_ns(column_of(rows, program.times.timestamp), program.times.timestamp)
    near = rows_from(event_ns, first_ns)
    return rows.slice(near) if isinstance(near, int) else filter_rows(rows, near)


def _rows_key(program: ViewProgram) -> tuple[object, ...]:
    """Programs with equal keys here read the same rows under the same codes."""
    upstream = program.upstream
    above = None if upstream is None else (upstream.ref, upstream.digest)
    return program.source, above, program.times, program.join_keys
