"""JoinPlan: which features a spine asks for, in which order, under which names."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain

import pyarrow as pa

from featurestore.catalog.feature_view import Feature, FeatureView
from featurestore.catalog.on_demand import OnDemandFeatureView
from featurestore.catalog.refs import Ref
from featurestore.catalog.service import FeatureService
from featurestore.catalog.snapshot import CatalogSnapshot, Record
from featurestore.catalog.training_set import KeyMap
from featurestore.core.names import near
from featurestore.errors import DefinitionError, NotFoundError, SchemaError
from featurestore.resolve.labels import LabelProgram, compile_label
from featurestore.resolve.program import ViewProgram, compile_view

Cell = tuple[str, str]


@dataclass(frozen=True, slots=True)
class ViewJoin:
    """One view joined to a spine.

    Attributes:
        key: What tells it from the other joins of the plan: the alias, or `view@version`.
        program: The view, narrowed to the features that are asked for.
        spine_keys: The spine's key columns, in the order of the program's join keys.
    """

    key: str
    program: ViewProgram
    spine_keys: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class OnDemandJoin:
    """One on-demand view: expressions over other joins' features and the spine's own columns.

    Attributes:
        inputs: Input column name → the cell `(join key, feature)` it comes from.
        request: Spine columns it reads, with their types.
    """

    key: str
    inputs: tuple[tuple[str, Cell], ...]
    request: tuple[tuple[str, pa.DataType], ...]
    features: tuple[Feature, ...]
    schema: pa.Schema


@dataclass(frozen=True, slots=True)
class LabelJoin:
    """One label joined to a spine."""

    program: LabelProgram
    spine_keys: tuple[str, ...]

    @property
    def cell(self) -> Cell:
        """What its values are known by beside those of views."""
        return "", self.program.name


@dataclass(frozen=True, slots=True)
class OutputColumn:
    """A column of the result: its name, the cell it comes from, its type and its feature reference."""

    name: str
    cell: Cell
    type: pa.DataType
    feature: str


@dataclass(frozen=True, slots=True)
class Need:
    """What a plan reads of one source.

    Attributes:
        columns: The columns, keys and times included.
        look_back_ns: How far behind a reader its rows matter; `None`: for ever.
        look_ahead_ns: How far ahead (labels only).
    """

    columns: tuple[str, ...]
    look_back_ns: int | None
    look_ahead_ns: int


@dataclass(frozen=True, slots=True)
class JoinPlan:
    """A point-in-time join as data: pickles, compares, holds no rows.

    Attributes:
        timestamp: The spine's event timestamp column.
        columns: Feature columns in output order; they follow the spine's own, labels follow them.
    """

    timestamp: str
    views: tuple[ViewJoin, ...]
    on_demand: tuple[OnDemandJoin, ...]
    labels: tuple[LabelJoin, ...]
    columns: tuple[OutputColumn, ...]

    def needs(self) -> dict[str, Need]:
        """Return what is read of each source, by source name."""
        needs: dict[str, Need] = {}
        for join in self.views:
            program = join.program
            need = Need(program.source_columns(), program.look_back_ns(), 0)
            needs[program.source] = _widest(needs.get(program.source), need)
        for label in self.labels:
            rows = label.program.rows
            need = Need(rows.source_columns(), label.program.look_back_ns(), label.program.horizon_ns)
            needs[rows.source] = _widest(needs.get(rows.source), need)
        return needs

    def part(self, views: Collection[str], labels: Collection[str]) -> "JoinPlan":
        """Return the plan of some views, by join key, and labels: its columns are all of their cells."""
        kept = tuple(j for j in self.views if j.key in views)
        # Neither a key nor a feature holds a colon.
        columns = tuple(
            OutputColumn(f"{j.key}:{f.name}", (j.key, f.name), f.type, f"{j.program.name}:{f.name}")
            for j in kept
            for f in j.program.schema
        )
        rest = tuple(x for x in self.labels if x.program.name in labels)
        return JoinPlan(self.timestamp, kept, (), rest, columns)

    def cells(self) -> dict[Cell, str]:
        """Return the result's column of each cell; that of a label is `("", its name)`."""
        return {c.cell: c.name for c in self.columns} | {x.cell: x.program.name for x in self.labels}

    def spine_columns(self) -> tuple[str, ...]:
        """Return the spine's columns by which views and labels are matched, the time first."""
        keys = [*(j.spine_keys for j in self.views), *(x.spine_keys for x in self.labels)]
        return tuple(dict.fromkeys([self.timestamp, *chain.from_iterable(keys)]))

    def schema(self, spine: pa.Schema) -> pa.Schema:
        """Return the schema of the result for a spine."""
        fields = [pa.field(c.name, c.type) for c in self.columns]
        labels = [pa.field(x.program.name, x.program.type) for x in self.labels]
        return pa.schema([*spine, *fields, *labels])


def compile_join(
    snapshot: CatalogSnapshot,
    features: Sequence[Ref],
    *,
    spine: pa.Schema,
    timestamp: str,
    labels: Sequence[Ref],
    key_map: KeyMap,
    full_feature_names: bool,
) -> JoinPlan:
    """Plan the join of features and labels onto a spine.

    Raises:
        NotFoundError: an unknown view or feature.
        SchemaError: the spine lacks a key, request or time column.
        DefinitionError: two output columns of one name.
    """
    if timestamp not in spine.names:
        error = _missing(timestamp, "event timestamp", spine)
        raise error
    builder = _Builder(snapshot, spine, key_map, full_feature_names)
    for ref in features:
        builder.add(ref)
    compiled = tuple(builder.label(ref) for ref in labels)
    _check_clashes(spine, builder.columns, compiled)
    return JoinPlan(
        timestamp=timestamp,
        views=tuple(builder.views.values()),
        on_demand=tuple(builder.on_demand.values()),
        labels=compiled,
        columns=tuple(builder.columns),
    )


def expand_refs(snapshot: CatalogSnapshot, features: Iterable[Ref]) -> list[Ref]:
    """Replace feature services by their features, at the versions that the service was applied with.

    Raises:
        NotFoundError: no such definition.
    """
    out: list[Ref] = []
    for ref in features:
        record = snapshot.record(ref.whole())
        found = record.definition
        if isinstance(found, FeatureService):
            out += [_as_applied(record, feature) for feature in found.features]
        else:
            out.append(ref)
    return out


def _as_applied(holder: Record, ref: Ref) -> Ref:
    """Give a reference without a version the one that it meant when its holder was applied."""
    pin = holder.pinned(ref.name, FeatureView.kind, OnDemandFeatureView.kind)
    return ref if ref.version is not None or pin is None else replace(ref, version=pin[2])


class _Builder:
    """Collects joins; each view (by alias or version) is joined once."""

    def __init__(
        self, snapshot: CatalogSnapshot, spine: pa.Schema, key_map: KeyMap, full_names: bool
    ) -> None:
        self.snapshot = snapshot
        self.spine = spine
        self.key_map = key_map
        self.full_names = full_names
        self.views: dict[str, ViewJoin] = {}
        self.on_demand: dict[str, OnDemandJoin] = {}
        self.columns: list[OutputColumn] = []

    def add(self, ref: Ref) -> None:
        definition = self.snapshot.get(ref.whole())
        if isinstance(definition, FeatureView):
            self._add_view(ref)
        elif isinstance(definition, OnDemandFeatureView):
            self._add_on_demand(ref, definition)
        else:
            raise DefinitionError(
                f"{ref} is a {definition.kind.replace('_', ' ')}, which has no features",
                hint="name a feature view, an on-demand view or a feature service",
            )

    def label(self, ref: Ref) -> LabelJoin:
        entities = self._row_keys(ref)
        program = compile_label(self.snapshot, ref, entities)
        keys = tuple(self._spine_key(None, key, str(ref)) for key in program.rows.join_keys)
        return LabelJoin(program, keys)

    def _row_keys(self, ref: Ref) -> tuple[str, ...]:
        """Key columns of a label on a plain source: those of the source's entities, else of the views."""
        names = self.snapshot.source_of(self.snapshot.label(ref)).entities
        keys = tuple(dict.fromkeys(k for n in names for k in self.snapshot.entity(n).join_keys))
        if not keys and self.views:
            keys = next(iter(self.views.values())).program.join_keys
        return keys

    def _add_view(self, ref: Ref) -> None:
        program = compile_view(self.snapshot, ref)
        names = _named(program.schema.names, ref)
        key = self._join_view(ref, program, names)
        prefix = ref.alias or (program.name if self.full_names else None)
        self._emit(key, prefix, program.name, [program.schema.field(n) for n in names])

    def _join_view(self, ref: Ref, program: ViewProgram, names: Sequence[str]) -> str:
        key = ref.alias or program.ref
        if key in self.views:
            names = [*self.views[key].program.schema.names, *names]
        keys = tuple(self._spine_key(ref.alias, k, str(ref)) for k in program.join_keys)
        self.views[key] = ViewJoin(key, program.only(names), keys)
        return key

    def _add_on_demand(self, ref: Ref, view: OnDemandFeatureView) -> None:
        record = self.snapshot.record(ref.whole(), OnDemandFeatureView.kind)
        schema = record.schema
        key = f"{view.name}@{record.version}"
        if key not in self.on_demand:
            self.on_demand[key] = OnDemandJoin(
                key=key,
                inputs=tuple(self._input_cells(record, view)),
                request=tuple((name, self._request_type(view, name)) for name in view.request),
                features=view.features,
                schema=pa.schema([schema.field(n) for n in view.feature_names]),
            )
        names = _named(view.feature_names, ref)
        prefix = ref.alias or (view.name if self.full_names else None)
        self._emit(key, prefix, view.name, [schema.field(n) for n in names])

    def _input_cells(self, record: Record, view: OnDemandFeatureView) -> Iterable[tuple[str, Cell]]:
        for ref in (_as_applied(record, given) for given in view.inputs):
            program = compile_view(self.snapshot, ref)
            names = _named(program.schema.names, ref)
            key = self._join_view(ref, program, names)
            yield from ((name, (key, name)) for name in names)

    def _request_type(self, view: OnDemandFeatureView, name: str) -> pa.DataType:
        if name not in self.spine.names:
            raise _missing(name, f"request field of on-demand view {view.name!r}", self.spine)
        return request_type(view.request[name])

    def _spine_key(self, alias: str | None, key: str, what: str) -> str:
        mapped = self.key_map.get(alias) if alias else None
        if isinstance(mapped, str) or mapped is None:
            whole = self.key_map.get(key)
            column = whole if isinstance(whole, str) else key
        else:
            column = mapped.get(key, key)
        if column not in self.spine.names:
            raise _missing(column, f"join key of {what}", self.spine)
        return column

    def _emit(self, key: str, prefix: str | None, view: str, fields: Iterable[pa.Field]) -> None:
        for field in fields:
            name = f"{prefix}__{field.name}" if prefix else field.name
            self.columns.append(OutputColumn(name, (key, field.name), field.type, f"{view}:{field.name}"))


def request_type(name: str) -> pa.DataType:
    """Return the Arrow type of a request field."""
    return pa.timestamp("ns", "UTC") if name == "timestamp" else pa.type_for_alias(name)


def _named(known: Sequence[str], ref: Ref) -> list[str]:
    if ref.feature is None:
        return list(known)
    if ref.feature not in known:
        raise NotFoundError(
            f"{ref.whole()} has no feature {ref.feature!r}",
            hint=near(ref.feature, known),
            feature=ref.feature,
        )
    return [ref.feature]


def _missing(column: str, what: str, spine: pa.Schema) -> SchemaError:
    return SchemaError(
        f"the spine has no column {column!r}, the {what}",
        hint=near(column, spine.names) + "; key_map names a join key that the spine calls otherwise",
        column=column,
    )


def _check_clashes(spine: pa.Schema, columns: Sequence[OutputColumn], labels: Sequence[LabelJoin]) -> None:
    seen: dict[str, str] = dict.fromkeys(spine.names, "the spine")
    if len(spine.names) != len(seen):
        repeated = next(n for n in spine.names if spine.names.count(n) > 1)
        raise SchemaError(
            f"the spine has column {repeated!r} twice", hint="rename or drop one of the two", column=repeated
        )
    named = [(c.name, c.feature) for c in columns]
    named += [(x.program.name, f"label {x.program.name}") for x in labels]
    for name, origin in named:
        if name in seen:
            raise DefinitionError(
                f"output column {name!r} would come from both {seen[name]} and {origin}",
                hint="full_feature_names=True names columns view__feature; or leave one of them out",
                column=name,
            )
        seen[name] = origin


def _widest(one: Need | None, other: Need) -> Need:
    if one is None:
        return other
    unbounded = one.look_back_ns is None or other.look_back_ns is None
    return Need(
        columns=tuple(dict.fromkeys([*one.columns, *other.columns])),
        look_back_ns=None if unbounded else max(one.look_back_ns or 0, other.look_back_ns or 0),
        look_ahead_ns=max(one.look_ahead_ns, other.look_ahead_ns),
    )
