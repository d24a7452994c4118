"""Job: a training set or a view compiled into what a run needs to know; plain data that pickles."""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.refs import Ref, parse_ref
from featurestore.catalog.schemas import check_schema
from featurestore.catalog.source import Source
from featurestore.catalog.training_set import TrainingSet
from featurestore.core.canonical import digest_json
from featurestore.core.fingerprint import logical_type
from featurestore.core.names import near
from featurestore.core.table_rows import decoded_type
from featurestore.errors import DefinitionError, SchemaError
from featurestore.materialize.context import Context, source_spec
from featurestore.resolve.events import EventTimes
from featurestore.resolve.joins import JoinPlan, Need, compile_join, expand_refs
from featurestore.resolve.program import ViewProgram, compile_view, join_keys, source_times
from featurestore.storage.sources import SourceSpec

ENGINE = "featurestore 0.1.0"
# Raised when equal inputs would give other bytes of meaning than before: part of every run's digest.
_SEMANTICS = 1


@dataclass(frozen=True, slots=True)
class Rows:
    """How the rows of one source are read for a job.

    Attributes:
        columns: Columns to read, keys and times included.
        keys: Columns that place a row in the same bucket as its readers; `None`: readers of any bucket may
            need it.
        look_back_ns: How far behind a reader its rows matter; `None`: for ever.
        look_ahead_ns: How far ahead.
        renamed: What else a spine may call join keys: its own column by the join key, once per alias.
        beside: Whether the source is also read by the keys of buckets.
    """

    source: SourceSpec
    times: EventTimes
    columns: tuple[str, ...]
    keys: tuple[str, ...] | None
    look_back_ns: int | None
    look_ahead_ns: int = 0
    renamed: tuple[Mapping[str, str], ...] = ()
    beside: bool = False

    @property
    def name(self) -> str:
        """The source's name; where it is read in both ways, `name*` is the one for readers of any bucket."""
        return f"{self.source.name}*" if self.beside else self.source.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What is to be computed.

    Attributes:
        spine: The rows that become output rows, one each.
        rows: What each source contributes, by `Rows.name`; a view has its own source only.
        join: The join of a training set, `None` for a view.
        whole: The part of the join that is matched on other keys than the bucket's, so that rows of any
            bucket may answer; `None`: all of it stays within buckets.
        view: The program of a view, `None` for a training set.
        raw: For a view: source columns that readers need and features do not already hold, and the
            stored name of each.
        keys: The spine's key columns: the order of entities, and what the bucket is computed from.
        schema: The logical output columns.
        roles: Role and view of each output column.
    """

    kind: str
    name: str
    spine: Rows
    rows: Mapping[str, Rows]
    join: JoinPlan | None
    whole: JoinPlan | None
    view: ViewProgram | None
    raw: tuple[tuple[str, str], ...]
    keys: tuple[str, ...]
    schema: pa.Schema
    roles: Mapping[str, tuple[str, str | None]]
    features: tuple[str, ...]
    labels: tuple[str, ...]
    horizons_ns: Mapping[str, int]
    windows_ns: Mapping[str, int | None]
    buckets: int
    range_ns: tuple[int | None, int | None]
    catalog_version: int
    definition: Mapping[str, Any]
    definitions: Mapping[str, str]

    def sources(self) -> dict[str, SourceSpec]:
        """Return every source the job reads, the spine's first."""
        return {s.name: s for s in (self.spine.source, *(r.source for r in self.rows.values()))}

    def digest(self, inputs: Iterable[Mapping[str, Any]]) -> str:
        """Return the digest of everything that decides the content: definitions, inputs, range, layout."""
        return digest_json(
            {
                "semantics": _SEMANTICS,
                "name": self.name,
                "definitions": dict(self.definitions),
                "inputs": sorted((dict(i) for i in inputs), key=lambda i: str(i["source"])),
                "range": list(self.range_ns),
                "buckets": self.buckets,
                "schema": [[f.name, str(f.type)] for f in self.schema],
            }
        )


def compile_job(
    context: Context,
    name: str,
    *,
    buckets: int,
    range_ns: tuple[int | None, int | None],
) -> Job:
    """Compile a training set or a view.

    Raises:
        NotFoundError: it, or something it names, is not in the catalog, or a source is not there.
        SchemaError: a source lacks a column.
        DefinitionError: its rows have no entity key.
    """
    ref = parse_ref(name)
    found = context.snapshot.get(ref.whole(), TrainingSet.kind, FeatureView.kind)
    if isinstance(found, TrainingSet):
        return _training_job(context, found, buckets, range_ns)
    return _view_job(context, ref, buckets, range_ns)


def _training_job(
    context: Context, found: TrainingSet, buckets: int, range_ns: tuple[int | None, int | None]
) -> Job:
    snapshot = context.snapshot
    spine = snapshot.source(found.spine)
    schema = context.open(spine).schema
    check_columns(context, spine, schema, snapshot.schema_of(found.spine, Source.kind).names)
    refs = expand_refs(snapshot, [found.service] if found.service else found.features)
    join = compile_join(
        snapshot,
        refs,
        spine=schema,
        timestamp=spine.timestamp_field,
        labels=found.labels,
        key_map=found.key_map,
        full_feature_names=found.full_feature_names,
    )
    keys = _spine_keys(context, found, spine, join, schema)
    own, whole, placed = _split(join, keys)
    names = {c.name: ("feature", c.feature.partition(":")[0] or None) for c in join.columns}
    labels = tuple(x.program.name for x in join.labels)
    roles = dict.fromkeys(schema.names, ("spine", None)) | names | dict.fromkeys(labels, ("label", None))
    return Job(
        kind="training_set",
        name=found.name,
        spine=Rows(
            source_spec(spine),
            source_times(spine),
            tuple(schema.names),
            keys,
            0,
            renamed=renamed_keys(found.key_map),
        ),
        rows=_join_rows(context, own, whole, placed),
        join=join,
        whole=whole if whole.views or whole.labels else None,
        view=None,
        raw=(),
        keys=keys,
        schema=_stored_logical(join.schema(schema), source_times(spine)),
        roles=roles,
        features=tuple(c.name for c in join.columns),
        labels=labels,
        horizons_ns={x.program.name: x.program.horizon_ns for x in join.labels},
        windows_ns=_windows(join),
        buckets=buckets,
        range_ns=range_ns,
        catalog_version=snapshot.version,
        definition=found.spec(),
        definitions=_definitions(context, found, join),
    )


def _view_job(context: Context, ref: Ref, buckets: int, range_ns: tuple[int | None, int | None]) -> Job:
    snapshot = context.snapshot
    program = compile_view(snapshot, ref.whole())
    source = _base_source(context, program)
    schema = context.open(source).schema
    columns = tuple(dict.fromkeys([*program.source_columns(), *_reader_columns(program)]))
    check_columns(context, source, schema, columns)
    same = {f.name for f in program.features if f.expression is None} if program.nulls == "keep" else set()
    read = (
        [] if program.upstream is not None else [*program.inputs(), *(a.column for a in program.aggregations)]
    )
    kept = [*program.join_keys, *program.times.columns()]
    raw = tuple(
        (n, f"source__{n}") for n in dict.fromkeys(read) if n != "*" and n not in same and n not in kept
    )
    fields = [schema.field(n) for n in dict.fromkeys(kept)]
    output = [*fields, *program.schema, *(pa.field(stored, schema.field(n).type) for n, stored in raw)]
    # Upstream views with other keys need all rows in one place.
    buckets = buckets if _one_key(program) else 1
    rows = Rows(source_spec(source), program.times, columns, program.join_keys, view_look_back_ns(program))
    features = tuple(program.schema.names)
    windows = {f.name: program.ttl_ns for f in program.features}
    windows |= {a.name: a.window_ns + a.tile_ns for a in program.aggregations}
    return Job(
        kind="view",
        name=program.ref,
        spine=rows,
        rows={source.name: rows},
        join=None,
        whole=None,
        view=program,
        raw=raw,
        keys=program.join_keys,
        schema=_stored_logical(pa.schema(output), program.times),
        roles={f.name: ("feature" if f.name in features else "spine", None) for f in output},
        features=features,
        labels=(),
        horizons_ns={},
        windows_ns=windows,
        buckets=buckets,
        range_ns=range_ns,
        catalog_version=snapshot.version,
        definition=snapshot.view(Ref(program.name, program.version)).spec(),
        definitions={program.ref: program.digest, **_view_definitions(context, program)},
    )


def view_look_back_ns(program: ViewProgram) -> int | None:
    """Return how far behind a row of the view its own features reach; 0 where they read the row alone."""
    behind = None if program.upstream is None else view_look_back_ns(program.upstream)
    if program.nulls == "keep" and not program.aggregations:
        own: int | None = 0
    elif program.nulls == "last_known" and program.features and program.ttl_ns is None:
        own = None
    else:
        own = max(program.ttl_ns or 0, program.window_ns())
    if program.upstream is None:
        return own
    return None if own is None or behind is None else own + behind


def _reader_columns(program: ViewProgram) -> Iterable[str]:
    return program.row_columns() if program.upstream is None else ()


def _base_source(context: Context, program: ViewProgram) -> Source:
    return context.snapshot.source(program.source)


def _spine_keys(
    context: Context, found: TrainingSet, spine: Source, join: JoinPlan, schema: pa.Schema
) -> tuple[str, ...]:
    names = found.entities or spine.entities
    wanted = join_keys(context.snapshot, names)
    renamed = {k: v for k, v in found.key_map.items() if isinstance(v, str)}
    keys = tuple(k if k in schema.names else renamed.get(k, k) for k in wanted)
    if not keys and join.views:
        keys = join.views[0].spine_keys
    if not keys:
        raise DefinitionError(
            f"training set {found.name!r} has no entity to place its rows by",
            hint="give the training set or its spine source entities=[…]",
        )
    for key in keys:
        if key not in schema.names:
            raise SchemaError(
                f"the spine of training set {found.name!r} has no key column {key!r}",
                hint=near(key, schema.names),
                column=key,
            )
    return keys


def renamed_keys(key_map: Mapping[str, Any]) -> tuple[Mapping[str, str], ...]:
    """Return what a training set's spine calls join keys: for all views, and for each alias."""
    plain = {k: v for k, v in key_map.items() if isinstance(v, str)}
    aliases = [dict(v) for v in key_map.values() if not isinstance(v, str)]
    return tuple(names for names in [plain, *aliases] if names)


def _join_rows(
    context: Context, own: JoinPlan, whole: JoinPlan, placed: Mapping[str, tuple[str, ...]]
) -> dict[str, Rows]:
    out = [_rows_of(context, name, need, placed[name]) for name, need in own.needs().items()]
    for name, need in whole.needs().items():
        out.append(replace(_rows_of(context, name, need, None), beside=name in placed))
    return {rows.name: rows for rows in out}


def _rows_of(context: Context, name: str, need: Need, keys: tuple[str, ...] | None) -> Rows:
    source = context.snapshot.source(name)
    check_columns(context, source, context.open(source).schema, need.columns)
    times = source_times(source)
    columns = tuple(dict.fromkeys([*need.columns, *times.columns()]))
    return Rows(source_spec(source), times, columns, keys, need.look_back_ns, need.look_ahead_ns)


def _split(join: JoinPlan, keys: tuple[str, ...]) -> tuple[JoinPlan, JoinPlan, dict[str, tuple[str, ...]]]:
    """Tell what is answered by rows of a reader's own bucket from what any row may answer.

    Returns:
        The two parts of the join, and the columns by which each source of the first is split.
    """
    views = [(j.key, j.program.source, _bucket_columns(j.program, j.spine_keys, keys)) for j in join.views]
    labels = [
        (x.program.name, x.program.rows.source, _bucket_columns(x.program.rows, x.spine_keys, keys))
        for x in join.labels
    ]
    found: dict[str, Counter[tuple[str, ...]]] = {}
    for _, source, columns in (*views, *labels):
        if columns is not None:
            found.setdefault(source, Counter())[columns] += 1
    # A source is split in one way: the one that most of its readers share.
    placed = {source: counts.most_common(1)[0][0] for source, counts in found.items()}
    own, rest = [], []
    for side in (views, labels):
        own.append({name for name, source, columns in side if columns and columns == placed[source]})
        rest.append({name for name, _, _ in side} - own[-1])
    return join.part(*own), join.part(*rest), placed


def _bucket_columns(
    program: ViewProgram, spine_keys: tuple[str, ...], keys: tuple[str, ...]
) -> tuple[str, ...] | None:
    """Return the columns that hold the bucket's keys in every row that a reader can be answered from.

    A program may be matched on more keys than these, and its rows may be computed by more, not by others.
    """
    if not set(keys) <= set(spine_keys):
        return None
    columns = tuple(program.join_keys[spine_keys.index(key)] for key in keys)
    below = program.upstream
    while below is not None:
        if not set(columns) <= set(below.join_keys):
            return None
        below = below.upstream
    return columns


def _one_key(program: ViewProgram) -> bool:
    upstream = program.upstream
    return upstream is None or (upstream.join_keys == program.join_keys and _one_key(upstream))


def _windows(join: JoinPlan) -> dict[str, int | None]:
    reach = {}
    for view in join.views:
        program = view.program
        behind = 0 if program.upstream is None else program.upstream.look_back_ns()
        for feature in program.features:
            reach[view.key, feature.name] = _plus(program.ttl_ns, behind)
        for a in program.aggregations:
            reach[view.key, a.name] = _plus(a.window_ns + a.tile_ns, behind)
    for demand in join.on_demand:
        inputs = [reach[cell] for _, cell in demand.inputs]
        widest = None if None in inputs else max((i for i in inputs if i is not None), default=0)
        reach |= {(demand.key, f.name): widest for f in demand.features}
    return {c.name: reach[c.cell] for c in join.columns}


def _plus(one: int | None, other: int | None) -> int | None:
    return None if one is None or other is None else one + other


def _stored_logical(schema: pa.Schema, times: EventTimes) -> pa.Schema:
    """Time columns become `timestamp[ns, UTC]`, dictionaries their values; the rest stays."""
    clock = {times.timestamp, times.created}
    fields = []
    for field in schema:
        kind = pa.timestamp("ns", "UTC") if field.name in clock else field.type
        fields.append(pa.field(field.name, decoded_type(kind)))
    return pa.schema(fields)


def check_columns(context: Context, source: Source, schema: pa.Schema, columns: Sequence[str]) -> None:
    """Check that a source holds what is read of it, as it was when it was applied; only layouts may differ.

    Raises:
        SchemaError: a column is missing, or its values have another type: it would have to be cast.
    """
    for column in columns:
        if column not in schema.names:
            raise SchemaError(
                f"source {source.name!r} has no column {column!r}",
                hint=near(column, schema.names),
                source=source.name,
                column=column,
            )
    applied = (r for r in context.snapshot.versions_of(source.name, Source.kind) if r.definition == source)
    for record in applied:
        recorded = {f.name: f.type for f in record.schema}
        drifted = [
            c for c in columns
            if c in recorded and logical_type(recorded[c]) != logical_type(schema.field(c).type)
        ]  # fmt: skip
        check_schema(f"source {source.name!r}", record.schema, schema, drifted)


def _definitions(context: Context, found: TrainingSet, join: JoinPlan) -> dict[str, str]:
    snapshot = context.snapshot
    spine = snapshot.source(found.spine)
    out = {f"{found.name}@{snapshot.version_of(found.name, TrainingSet.kind)}": found.digest()}
    out[f"{spine.name}@{snapshot.version_of(spine.name, Source.kind)}"] = spine.digest()
    for view in join.views:
        original = snapshot.view(Ref(view.program.name, view.program.version))
        out[view.program.ref] = original.digest()
        out |= _view_definitions(context, view.program)
    for demand in join.on_demand:
        out[demand.key] = snapshot.on_demand(demand.key).digest()
    for label, ref in zip(join.labels, found.labels, strict=True):
        out[f"{label.program.name}@{snapshot.version_of(label.program.name, 'label')}"] = snapshot.label(
            ref
        ).digest()
        out |= _view_definitions(context, label.program.rows)
    return out


def _view_definitions(context: Context, program: ViewProgram) -> dict[str, str]:
    snapshot = context.snapshot
    source = snapshot.source(program.source)
    out = {f"{source.name}@{snapshot.version_of(source.name, Source.kind)}": source.digest()}
    if program.upstream is not None:
        out[program.upstream.ref] = program.upstream.digest
        out |= _view_definitions(context, program.upstream)
    return out
