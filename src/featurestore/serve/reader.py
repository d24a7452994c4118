"""The read path: features and entities in, values with statuses out."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import pyarrow as pa

from featurestore.catalog.refs import Ref
from featurestore.catalog.snapshot import CatalogSnapshot
from featurestore.catalog.training_set import KeyMap, TrainingSet
from featurestore.core.names import near
from featurestore.core.time import format_instant
from featurestore.errors import DefinitionError, SchemaError
from featurestore.resolve.joins import Cell, JoinPlan, compile_join, expand_refs
from featurestore.resolve.preprocessing import Preprocessing, Transform
from featurestore.resolve.program import ViewProgram
from featurestore.resolve.training import resolve_on_demand
from featurestore.serve.answers import Answer, OneReading, SteadyAnswers, answer_plain, answer_resolved
from featurestore.serve.fitted import fitted_columns, transformed
from featurestore.serve.request import Column, Readers
from featurestore.serve.response import OnlineResponse
from featurestore.serve.store import OnlineStore
from featurestore.serve.tracing import NO_TRACING, Tracing
from featurestore.serve.views import OnlineView, check_kept, online_view

_CLOCK = "__now__"
_STEADY_BYTES = 16 << 20


@dataclass(frozen=True)
class ViewRead:
    """One view of a plan: what is asked of the store, and how the answer is made."""

    key: str
    view: OnlineView
    program: ViewProgram
    spine_keys: tuple[str, ...]
    one: OneReading | None
    steady: SteadyAnswers


@dataclass(frozen=True)
class Asked:
    """What is asked, whoever asks: a plan is made once for each.

    Attributes:
        key_map: As for training: join key → entity column, or alias → join key → entity column.
        preprocessing: What was fitted on a dataset version, to be applied to its columns.
    """

    features: Sequence[Ref]
    full_feature_names: bool
    key_map: KeyMap
    preprocessing: Preprocessing | None = None


@dataclass(frozen=True)
class ReadPlan:
    """What a list of features means for callers with certain entity columns.

    Attributes:
        join: Output columns, on-demand views and their cells.
        reads: One per view.
        one: Whether a single reader can be answered without arrays.
        cells: For that case, each output column's view (by number in `reads`) and position in its schema.
        views: The views that are read, as `view@version`, for counts and traces.
        origins: By output column: the cell that it comes from, before preprocessing.
        transforms: By output column's position: what is applied to it.
        replayable: Whether a historical read of the same references gives the same columns, so that answers
            may be logged for `verify-online`.
    """

    join: JoinPlan
    reads: tuple[ViewRead, ...]
    names: tuple[str, ...]
    schema: pa.Schema
    one: bool
    views: tuple[str, ...]
    origins: tuple[Cell, ...]
    cells: tuple[tuple[int, int], ...] = field(default=())
    transforms: Mapping[int, Transform] = field(default_factory=dict)
    replayable: bool = True


def plan_read(snapshot: CatalogSnapshot, asked: Asked, entity_columns: Sequence[str]) -> ReadPlan:
    """Plan a read; a training set alone stands for its features, under its names and key map.

    Raises:
        NotFoundError: an unknown view, feature, service or version, or a fitted column that is not asked for.
        SchemaError: an entity column or request field that a view needs is not there.
        DefinitionError: two output columns of one name, or a view that is not kept online.
    """
    given, asked = asked, _unfolded(snapshot, asked)
    spine = pa.schema([*[(name, pa.null()) for name in entity_columns], (_CLOCK, pa.int64())])
    try:
        join = compile_join(
            snapshot,
            expand_refs(snapshot, asked.features),
            spine=spine,
            timestamp=_CLOCK,
            labels=[],
            key_map=asked.key_map,
            full_feature_names=asked.full_feature_names,
        )
    except SchemaError as error:
        column = str(error.context.get("column", ""))
        message = error.message.replace("the spine has", "the entity rows have")
        raise SchemaError(message, hint=near(column, entity_columns), column=column) from error
    reads = tuple(_view_read(snapshot, v.key, v.program, v.spine_keys) for v in join.views)
    origins = tuple(c.cell for c in join.columns)
    transforms: Mapping[int, Transform] = {}
    if asked.preprocessing is not None:
        columns, transforms = fitted_columns(join.columns, asked.preprocessing)
        join = replace(join, columns=columns)
    one = not join.on_demand and not transforms and all(r.one is not None for r in reads)
    numbers = {r.key: (at, r.view.codec.schema) for at, r in enumerate(reads)}
    cells = (
        tuple((numbers[c.cell[0]][0], numbers[c.cell[0]][1].get_field_index(c.cell[1])) for c in join.columns)
        if one
        else ()
    )
    schema = pa.schema([pa.field(c.name, c.type) for c in join.columns])
    names = tuple(c.name for c in join.columns)
    views = tuple(read.program.ref for read in reads)
    replayable = given is asked and not asked.key_map and not transforms
    return ReadPlan(join, reads, names, schema, one, views, origins, cells, transforms, replayable)


def _unfolded(snapshot: CatalogSnapshot, asked: Asked) -> Asked:
    """Replace a training set by what it joins."""
    if len(asked.features) != 1 or asked.features[0].feature is not None:
        return asked
    found = snapshot.get(asked.features[0].whole())
    if not isinstance(found, TrainingSet):
        return asked
    return replace(
        asked,
        features=[found.service] if found.service else found.features,
        full_feature_names=asked.full_feature_names or found.full_feature_names,
        key_map={**found.key_map, **asked.key_map},
    )


def _view_read(
    snapshot: CatalogSnapshot, key: str, program: ViewProgram, spine_keys: tuple[str, ...]
) -> ViewRead:
    check_kept(program)
    view = online_view(snapshot, Ref(program.name, program.version))
    reading = OneReading(view) if view.is_plain else None
    one = reading if reading is not None and reading.possible else None
    return ViewRead(key, view, program, spine_keys, one, SteadyAnswers(max_bytes=_STEADY_BYTES))


def read_features(
    store: OnlineStore, plan: ReadPlan, readers: Readers, now_ns: int, tracing: Tracing = NO_TRACING
) -> OnlineResponse:
    """Answer readers at one instant; all views are read as of one moment of the store.

    Raises:
        SchemaError: a key of the wrong kind, or a request field that cannot be read as its type.
        OnlineStoreError: the store failed.
    """
    with tracing.stage("read"):
        found = _read(store, plan, readers)
    with tracing.stage("evaluate"):
        return _evaluate(plan, readers, found, now_ns)


def _evaluate(
    plan: ReadPlan, readers: Readers, found: Sequence[Sequence[bytes | None]], now_ns: int
) -> OnlineResponse:
    answers = {
        read.key: _answer(read, values, now_ns) for read, values in zip(plan.reads, found, strict=True)
    }
    computed: dict[Cell, pa.Array] = {}
    if plan.join.on_demand:
        request = readers.arrow()
        for demand in plan.join.on_demand:
            cells = computed | {
                cell: answers[cell[0]].array(cell[1]) for _, cell in demand.inputs if cell[0] in answers
            }
            columns = resolve_on_demand(demand, cells, request)
            computed |= {(demand.key, name): column for name, column in columns.items()}
    for at, transform in plan.transforms.items():
        view, name = origin = plan.origins[at]
        column = answers[view].array(name) if view in answers else computed[origin]
        computed[plan.join.columns[at].cell] = transformed(transform, column)
    return OnlineResponse(plan, readers, answers, computed, now_ns)


def _read(store: OnlineStore, plan: ReadPlan, readers: Readers) -> list[Sequence[bytes | None]]:
    """Return what the readers' keys hold, by view and reader."""
    encoded: dict[tuple[object, ...], list[bytes | None]] = {}
    requests: list[tuple[str, Sequence[bytes]]] = []
    keys_of: list[list[bytes | None]] = []
    for read in plan.reads:
        same = (read.spine_keys, read.view.key_types)
        keys = encoded.get(same)
        if keys is None:
            keys = encoded[same] = encode_keys(read.view, read.spine_keys, readers)
        keys_of.append(keys)
        requests.append((read.view.table, keys if None not in keys else [k for k in keys if k is not None]))  # type: ignore[arg-type]
    out: list[Sequence[bytes | None]] = []
    for keys, values in zip(keys_of, store.read(requests), strict=True):
        if len(values) == len(keys):
            out.append(values)
            continue
        found = iter(values)
        out.append([None if key is None else next(found) for key in keys])
    return out


def _answer(read: ViewRead, values: Sequence[bytes | None], now_ns: int) -> Answer:
    if read.one is not None and len(values) == 1:
        one = read.one.read(values[0], now_ns)
        if one is not None:
            return one
    if read.view.is_plain:
        return answer_plain(read.view, values, now_ns)
    if len(values) == 1 and values[0] is not None:
        return read.steady.answer(read.view, read.program, values[0], now_ns)
    return answer_resolved(read.view, read.program, values, now_ns)


def encode_keys(view: OnlineView, columns: Sequence[str], readers: Readers) -> list[bytes | None]:
    """Write each reader's key; `None` where a part is null."""
    parts: list[Column] = [readers.columns[name] for name in columns]
    if all(isinstance(part, pa.ChunkedArray) for part in parts):
        return view.encode_key_arrays(parts)
    return view.encode_keys([p.to_pylist() if isinstance(p, pa.ChunkedArray) else p for p in parts])


def check_now(store: OnlineStore, plan: ReadPlan, now_ns: int) -> None:
    """Check that the store still holds what a reader at `now_ns` would see.

    Raises:
        DefinitionError: rows that it would need have been let go.
    """
    for read in plan.reads:
        floor = store.floor_ns(read.view.table)
        if now_ns < floor:
            raise DefinitionError(
                f"{read.view.table} was asked for its values at {format_instant(now_ns)}; the online store "
                f"answers exactly from {format_instant(floor)} on",
                hint="read the past with get_historical_features; for longer `online: {history: 1h}` in "
                "feature_store.yaml keeps more from now on",
                view=read.view.table,
            )


def entity_columns_of(plan: ReadPlan) -> Mapping[str, pa.DataType]:
    """Return the key columns that a plan reads, with their types."""
    return {
        name: kind
        for read in plan.reads
        for name, kind in zip(read.spine_keys, read.view.key_types, strict=True)
    }
