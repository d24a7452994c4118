"""Historical features for a spine: from stored views where they answer exactly, else from the sources."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from featurestore.catalog.on_demand import OnDemandFeatureView
from featurestore.catalog.refs import Ref, parse_ref
from featurestore.core.names import near
from featurestore.core.python_values import as_pandas
from featurestore.core.time import INT64_MAX, INT64_MIN, format_instant
from featurestore.errors import DefinitionError, NotFoundError, SchemaError
from featurestore.materialize.context import Context
from featurestore.materialize.job import check_columns
from featurestore.materialize.parted_read import NewestRows, read_newest
from featurestore.materialize.stored_rows import Reach, StoredRows, Touched, stored_rows
from featurestore.resolve.events import EventTimes, spine_events
from featurestore.resolve.joins import JoinPlan, Need, compile_join, expand_refs
from featurestore.resolve.program import compile_view
from featurestore.resolve.training import Joined, resolve_features
from featurestore.resolve.views import Newest
from featurestore.storage.snapshots import Snapshot
from featurestore.storage.sources import SourceTable
from featurestore.temporal.tables import read_table
from featurestore.temporal.times import times_ns

if TYPE_CHECKING:
    import pandas as pd
    import polars as pl

_UTC = pa.timestamp("ns", "UTC")


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the rows of one source come from.

    Attributes:
        stored: Stored views whose rows answer exactly; `None`: the source itself.
        table: The source, where it can be reached.
        snapshot: What the source held when the job was made; every batch reads just that.
        spine_keys: The spine's key columns, for a stored view.
        newest: Where each reader uses one stored row, its newest: the time columns, and what is read of it;
            `None`: it needs more.
    """

    need: Need
    stored: StoredRows | None
    table: SourceTable | None
    snapshot: Snapshot | None
    spine_keys: tuple[str, ...]
    newest: tuple[EventTimes, tuple[str, ...]] | None


class RetrievalJob:
    """Features for a spine, computed when asked for: one row out per row in, in the spine's order.

    The result is a function of the rows that were visible when the job was made: every source is pinned.
    """

    def __init__(
        self,
        spine: Iterable[pa.RecordBatch] | pa.Table,
        join: JoinPlan,
        origins: Mapping[str, Origin],
        *,
        spine_schema: pa.Schema,
        as_of_ns: int | None,
        timestamps: bool,
        threads: int | None,
    ) -> None:
        self._spine = spine
        self._join = join
        self._origins = origins
        self._spine_schema = spine_schema
        self._as_of_ns = as_of_ns
        self._timestamps = timestamps
        self._threads = threads

    def __repr__(self) -> str:
        names = ", ".join(field.name for field in self.schema)
        return f"RetrievalJob({names})"

    @property
    def schema(self) -> pa.Schema:
        """The spine's columns, then each feature; with `timestamps` each view's event timestamp."""
        schema = self._join.schema(self._spine_schema)
        if self._timestamps:
            for view in self._join.views:
                schema = schema.append(pa.field(_time_name(view.key), _UTC))
        return schema

    def to_arrow(self) -> pa.Table:
        """Compute the whole result.

        Raises:
            SchemaError: columns that do not fit together.
            CorruptDataError: damaged stored files, or a source that changed meanwhile.
        """
        if isinstance(self._spine, pa.Table):
            return self._resolve(self._spine)
        return pa.Table.from_batches(self.to_arrow_batches(), self.schema)

    def to_arrow_batches(self) -> Iterator[pa.RecordBatch]:
        """Compute batch by batch, for spines larger than memory: one batch in, one batch out.

        Raises:
            SchemaError: columns that do not fit together.
            CorruptDataError: damaged stored files, or a source that changed meanwhile.
        """
        batches = self._spine.to_batches() if isinstance(self._spine, pa.Table) else self._spine
        for batch in batches:
            yield from self._resolve(pa.Table.from_batches([batch])).combine_chunks().to_batches()

    def to_polars(self) -> "pl.DataFrame":
        """Compute the result as a Polars frame."""
        import polars as pl  # noqa: PLC0415 -- only callers who want Polars pay for it

        frame = pl.from_arrow(self.to_arrow())
        return frame if isinstance(frame, pl.DataFrame) else frame.to_frame()

    def to_pandas(self) -> "pd.DataFrame":
        """Compute the result as a pandas frame.

        Raises:
            MissingDependencyError: pandas is not installed.
        """
        return as_pandas(self.to_arrow())

    def explain(self) -> str:
        """Say what would be read, from where."""
        lines = [f"join {len(self._join.views)} views onto {self._join.timestamp!r} of the spine"]
        reach = self._reach_of(self._spine) if isinstance(self._spine, pa.Table) else None
        for name, origin in self._origins.items():
            behind = (
                "for ever" if origin.need.look_back_ns is None else f"{origin.need.look_back_ns / 1e9:g} s"
            )
            where = f"source {name!r}"
            if origin.stored is not None:
                where = f"stored view {origin.stored.names()}"
                if reach is not None:
                    touched = self._touched(reach[2], origin, origin.stored, self._reach(origin, reach))
                    where += f": {touched.rows:,} rows of {touched.shards} of {touched.of} shards"
            lines.append(f"  {where}, looking back {behind}; columns {', '.join(origin.need.columns)}")
        if reach is not None and reach[1] >= reach[0]:
            lines.append(f"  spine from {format_instant(reach[0])} to {format_instant(reach[1])}")
        return "\n".join(lines)

    def _resolve(self, spine: pa.Table) -> pa.Table:
        joined = self._joined(spine)
        table = joined.table
        if self._timestamps:
            for view in self._join.views:
                event_ns = joined.resolved[view.key].event_ns
                column = pa.array(event_ns, mask=event_ns == INT64_MIN).view(_UTC)
                table = table.append_column(pa.field(_time_name(view.key), _UTC), column)
        return table

    def _joined(self, spine: pa.Table) -> Joined:
        low, high, keyed = self._reach_of(spine)
        rows: dict[str, pa.Table] = {}
        newest: dict[str, Newest] = {}
        for name, origin in self._origins.items():
            reach = self._reach(origin, (low, high, keyed))
            if origin.stored is not None and origin.newest is not None:
                found = self._newest(spine, origin.stored, *origin.newest, origin.need, reach)
                rows[name], newest[name] = found.table, found.newest
            else:
                rows[name] = self._rows(origin, reach)
        return resolve_features(
            self._join,
            spine,
            rows,
            newest=newest,
            as_of_ns=self._as_of_ns,
            values_only=not self._timestamps,
            threads=self._threads,
        )

    def _newest(
        self,
        spine: pa.Table,
        stored: StoredRows,
        times: EventTimes,
        columns: tuple[str, ...],
        need: Need,
        reach: Reach,
    ) -> NewestRows:
        return read_newest(
            stored,
            spine_events(spine, self._join.timestamp, as_of_ns=self._as_of_ns),
            reach.keys,
            times,
            columns,
            low_ns=reach.low_ns,
            look_back_ns=need.look_back_ns,
            threads=self._threads,
        )

    def _touched(self, spine: pa.Table, origin: Origin, stored: StoredRows, reach: Reach) -> Touched:
        if origin.newest is None:
            return stored.read(reach)[1]
        return self._newest(spine, stored, *origin.newest, origin.need, reach).touched

    def _rows(self, origin: Origin, found: Reach) -> pa.Table:
        if origin.stored is not None:
            return origin.stored.read(found)[0]
        if origin.table is None:
            raise NotFoundError("a source went away while its features were read")
        high = min(found.high_ns, INT64_MAX - 1) + 1
        span = None if found.low_ns == INT64_MIN and high == INT64_MAX else (found.low_ns, high)
        return origin.table.read(list(origin.need.columns), snapshot=origin.snapshot, time_range_ns=span)

    def _reach(self, origin: Origin, reach: tuple[int, int, pa.Table]) -> Reach:
        low, high, spine = reach
        behind = origin.need.look_back_ns
        first = INT64_MIN if behind is None else max(INT64_MIN, low - behind)
        keys = tuple(spine.column(k) for k in origin.spine_keys)
        return Reach(keys, first, high)

    def _reach_of(self, spine: pa.Table) -> tuple[int, int, pa.Table]:
        event_ns, null = times_ns(spine.column(self._join.timestamp), self._join.timestamp)
        if null is not None:
            event_ns = event_ns[~null]
        if event_ns.size == 0:
            return 0, -1, spine
        return int(np.min(event_ns)), int(np.max(event_ns)), spine


def historical_features(
    context: Context,
    spine: Any,
    features: Sequence[str],
    *,
    full_feature_names: bool,
    as_of_ns: int | None,
    timestamps: bool,
    timestamp_field: str | None,
    key_map: Mapping[str, Any],
) -> RetrievalJob:
    """Plan the features of a spine; nothing is computed before the job is asked.

    Args:
        spine: Any Arrow PyCapsule table, a mapping of columns, or an iterable of record batches.

    Raises:
        DefinitionError: no features.
        NotFoundError: an unknown view or feature.
        SchemaError: the spine lacks a key or a time, or has several times and none was named.
    """
    if not features:
        raise DefinitionError(
            "no features were asked for", hint='give ["view:feature"], a view or a feature service'
        )
    rows, schema = _spine(spine)
    refs = expand_refs(context.snapshot, [parse_ref(f) for f in features])
    join = compile_join(
        context.snapshot,
        refs,
        spine=schema,
        timestamp=timestamp_field or _timestamp_of(context, refs, schema),
        labels=[],
        key_map=key_map,
        full_feature_names=full_feature_names,
    )
    origins = {name: _origin(context, join, name, need) for name, need in join.needs().items()}
    return RetrievalJob(
        rows,
        join,
        origins,
        spine_schema=schema,
        as_of_ns=as_of_ns,
        timestamps=timestamps,
        threads=context.config.threads or None,
    )


def _origin(context: Context, join: JoinPlan, name: str, need: Need) -> Origin:
    readers = [(j.program, j.spine_keys) for j in join.views if j.program.source == name]
    try:
        table: SourceTable | None = context.open(context.snapshot.source(name))
    except NotFoundError:
        table = None
    snapshot = None if table is None else table.snapshot()
    stored = None
    if len({(program.join_keys, spine_keys) for program, spine_keys in readers}) == 1:
        stored = stored_rows(context, [program for program, _ in readers], need.columns, snapshot)
    if stored is None and table is None:
        table = context.open(context.snapshot.source(name))
    if stored is None and table is not None:
        check_columns(context, context.snapshot.source(name), table.schema, need.columns)
    newest = None
    if all(program.is_row_by_row for program, _ in readers):
        times = readers[0][0].times
        inputs = (name for program, _ in readers for name in program.inputs())
        newest = times, tuple(dict.fromkeys(inputs))
    return Origin(need, stored, table, snapshot, readers[0][1], newest)


def _spine(spine: Any) -> tuple[pa.Table | Iterable[pa.RecordBatch], pa.Schema]:
    """Return the spine's rows and columns.

    Raises:
        SchemaError: it holds no rows that Arrow can read.
    """
    if isinstance(spine, Iterator):
        first = next(spine, None)
        if first is None:
            raise SchemaError(
                "the spine is an iterator without a batch, so its columns are unknown",
                hint="yield at least one batch, an empty one will do",
            )
        return _chained(first, spine), first.schema
    table = read_table(spine, "the spine")
    return table, table.schema


def _chained(first: pa.RecordBatch, rest: Iterator[pa.RecordBatch]) -> Iterator[pa.RecordBatch]:
    yield first
    yield from rest


def _timestamp_of(context: Context, refs: Sequence[Ref], schema: pa.Schema) -> str:
    """Find the spine's event timestamp: the one named as the views' sources name theirs, or the only one.

    Raises:
        SchemaError: neither decides.
    """
    views = [view.whole() for ref in refs for view in _views_of(context, ref)]
    named = [compile_view(context.snapshot, view).times.timestamp for view in views]
    for name in named:
        if name in schema.names:
            return str(name)
    times = [f.name for f in schema if pa.types.is_timestamp(f.type) or pa.types.is_date(f.type)]
    if len(times) == 1:
        return str(times[0])
    wanted = near(named[0] if named else "event_timestamp", schema.names)
    raise SchemaError(
        f"the spine's event timestamp is not clear: it has {', '.join(times) or 'no column of times'}",
        hint=f"name it with timestamp_field=…; {wanted}",
    )


def _views_of(context: Context, ref: Ref) -> Sequence[Ref]:
    found = context.snapshot.get(ref.whole())
    return found.inputs if isinstance(found, OnDemandFeatureView) else (ref,)


def _time_name(key: str) -> str:
    return f"{key.partition('@')[0]}__event_timestamp"
