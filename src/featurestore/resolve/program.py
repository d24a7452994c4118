"""ViewProgram: a feature view made ready to run, as plain data that pickles."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

import pyarrow as pa

from featurestore.catalog.aggregation import Aggregation
from featurestore.catalog.expressions import columns_of
from featurestore.catalog.feature_view import Feature, FeatureView
from featurestore.catalog.refs import Ref
from featurestore.catalog.snapshot import CatalogSnapshot
from featurestore.catalog.source import Source
from featurestore.resolve.events import EventTimes


@dataclass(frozen=True, slots=True)
class ViewProgram:
    """What it takes to compute a view's features from rows.

    Attributes:
        join_keys: Key columns, in the entities' order, as the rows name them.
        source: The name of the base source at the end of the chain of views.
        times: The time columns of the rows.
        features: Columns and expressions, in order.
        aggregations: Window functions, after the features.
        ttl_ns: Bound on a value's age, included; `None`: no bound.
        nulls: `keep` or `last_known`.
        schema: The output columns with their types.
        upstream: The program whose output is this one's rows; `None`: the rows are the source's.
    """

    name: str
    version: int
    digest: str
    join_keys: tuple[str, ...]
    source: str
    times: EventTimes
    features: tuple[Feature, ...]
    aggregations: tuple[Aggregation, ...]
    ttl_ns: int | None
    nulls: str
    online: bool
    schema: pa.Schema
    upstream: "ViewProgram | None" = None

    @property
    def ref(self) -> str:
        """The view and its version, such as `quote@2`."""
        return f"{self.name}@{self.version}"

    @property
    def is_row_by_row(self) -> bool:
        """Whether each output row depends on one row of the source alone, all the way down."""
        below = self.upstream is None or self.upstream.is_row_by_row
        return self.reads_one_row and below

    @property
    def reads_one_row(self) -> bool:
        """Whether each of its rows depends on one row of what it reads."""
        return self.nulls == "keep" and not self.aggregations

    @property
    def chain(self) -> "tuple[ViewProgram, ...]":
        """The program and those below it, down to the first whose rows each depend on one source row.

        That one's rows, the last's, are what a state holds: all values above them are computed from them.
        """
        if self.upstream is None or self.upstream.is_row_by_row:
            return (self,)
        return (self, *self.upstream.chain)

    @property
    def keys_are_kept(self) -> bool:
        """Whether the rows behind an entity's values all hold its key: no view of the chain computes it."""
        return all(set(self.join_keys) <= set(view.join_keys) for view in self.chain[1:])

    @property
    def is_bounded(self) -> bool:
        """Whether a state of bounded size answers every later reader, whatever rows come late.

        A newest non-null value of any age is not, where a late row can make older values null or not: each
        of them may become the newest.
        """
        endless = any(
            view.features and view.nulls == "last_known" and view.ttl_ns is None for view in self.chain[:-1]
        )
        return self.keys_are_kept and not endless

    @property
    def can_be_online(self) -> bool:
        """Whether an online store can keep it up to date from the rows that arrive, one by one."""
        return self.online and self.is_bounded

    def inputs(self) -> tuple[str, ...]:
        """Return the value columns that features read, in order of first use."""
        names: Iterable[str] = (
            name
            for feature in self.features
            for name in (
                [feature.name] if feature.expression is None else sorted(columns_of(feature.expression))
            )
        )
        return tuple(dict.fromkeys(names))

    def values(self) -> tuple[str, ...]:
        """Return the columns that features and windows read."""
        windows = (a.column for a in self.aggregations if a.column != "*")
        return tuple(dict.fromkeys([*self.inputs(), *windows]))

    def row_columns(self) -> tuple[str, ...]:
        """Return every column of the rows that the program reads."""
        return tuple(dict.fromkeys([*self.carried(), *self.values()]))

    def carried(self) -> tuple[str, ...]:
        """Return the columns that its rows keep of what it reads: keys and times."""
        return tuple(dict.fromkeys([*self.join_keys, *self.times.columns()]))

    def source_columns(self) -> tuple[str, ...]:
        """Return every column of the base source that the program and its upstream read."""
        return self.row_columns() if self.upstream is None else self.upstream.source_columns()

    def only(self, names: Iterable[str]) -> "ViewProgram":
        """Return the program without the features that are not named."""
        wanted = set(names)
        return replace(
            self,
            features=tuple(f for f in self.features if f.name in wanted),
            aggregations=tuple(a for a in self.aggregations if a.name in wanted),
            schema=pa.schema([f for f in self.schema if f.name in wanted]),
        )

    def window_ns(self) -> int:
        """Return the longest window of its own, tiles included; 0 without aggregations."""
        return max((a.window_ns + a.tile_ns for a in self.aggregations), default=0)

    def look_back_ns(self) -> int | None:
        """Return how far behind a reader a source row can still matter; `None`: for ever."""
        if self.features and self.ttl_ns is None:
            return None
        own = max(self.ttl_ns or 0, self.window_ns())
        if self.upstream is None:
            return own
        behind = self.upstream.look_back_ns()
        return None if behind is None else own + behind


def compile_view(snapshot: CatalogSnapshot, ref: Ref) -> ViewProgram:
    """Make a view ready to run.

    Raises:
        NotFoundError: the view, its source or an entity is not in the catalog.
    """
    record = snapshot.record(ref.whole(), FeatureView.kind)
    view = snapshot.view(Ref(record.name, record.version))
    rows = snapshot.record_of_source(record)
    base = rows.definition
    if isinstance(base, Source):
        upstream = None
        source, times = base.name, source_times(base)
    else:
        upstream = compile_view(snapshot, Ref(rows.name, rows.version))
        source, times = upstream.source, upstream.times
    return ViewProgram(
        name=view.name,
        version=record.version,
        digest=view.digest(),
        join_keys=join_keys(snapshot, view.entities),
        source=source,
        times=times,
        features=view.features,
        aggregations=view.aggregations,
        ttl_ns=view.ttl_ns,
        nulls=view.nulls,
        online=view.online,
        schema=pa.schema([record.schema.field(name) for name in view.feature_names]),
        upstream=upstream,
    )


def source_times(source: Source) -> EventTimes:
    """Return which columns of a source say when."""
    return EventTimes(
        source.timestamp_field,
        source.created_timestamp_column,
        source.sequence_column,
        source.availability_delay_ns,
    )


def join_keys(snapshot: CatalogSnapshot, entities: Iterable[str]) -> tuple[str, ...]:
    """Return the key columns of entities, in order, each once."""
    return tuple(dict.fromkeys(k for name in entities for k in snapshot.entity(name).join_keys))
