"""The read path: features and entities in, values with statuses out."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import pyarrow as pa

from featurestore.catalog.refs import Ref
from featurestore.catalog.snapshot import CatalogSnapshot
from featurestore.core.names import near
from featurestore.core.time import format_instant
from featurestore.errors import DefinitionError, SchemaError
from featurestore.resolve.joins import JoinPlan, compile_join, expand_refs
from featurestore.resolve.program import ViewProgram
from featurestore.resolve.training import resolve_on_demand
from featurestore.serve.answers import Answer, OneReading, SteadyAnswers, answer_plain, answer_resolved
from featurestore.serve.request import Column, Readers
from featurestore.serve.response import OnlineResponse
from featurestore.serve.store import OnlineStore
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
class ReadPlan:
    """What a list of features means for callers with certain entity columns.

    Attributes:
        join: Output columns, on-demand views and their cells.
        reads: One per view.
        one: Whether a single reader can be answered without arrays.
        cells: For that case, each output column's view (by number in `reads`) and position in its schema.
    """

    join: JoinPlan
    reads: tuple[ViewRead, ...]
    names: tuple[str, ...]
    schema: pa.Schema
    one: bool
    cells: tuple[tuple[int, int], ...] = field(default=())


def plan_read(
    snapshot: CatalogSnapshot,
    features: Iterable[Ref],
    entity_columns: Sequence[str],
    *,
    full_feature_names: bool,
) -> ReadPlan:
    """Plan a read.

    Raises:
        NotFoundError: an unknown view, feature, service or version.
        SchemaError: an entity column or request field that a view needs is not there.
        DefinitionError: two output columns of one name, or a view that is not kept online.
    """
    spine = pa.schema([*[(name, pa.null()) for name in entity_columns], (_CLOCK, pa.int64())])
    try:
        join = compile_join(
            snapshot,
            expand_refs(snapshot, features),
            spine=spine,
            timestamp=_CLOCK,
            labels=[],
            key_map={},
            full_feature_names=full_feature_names,
        )
    except SchemaError as error:
        column = str(error.context.get("column", ""))
        message = error.message.replace("the spine has", "the entity rows have")
        raise SchemaError(message, hint=near(column, entity_columns), column=column) from error
    reads = tuple(_view_read(snapshot, v.key, v.program, v.spine_keys) for v in join.views)
    one = not join.on_demand and all(r.one is not None for r in reads)
    numbers = {r.key: (at, r.view.codec.schema) for at, r in enumerate(reads)}
    cells = (
        tuple((numbers[c.cell[0]][0], numbers[c.cell[0]][1].get_field_index(c.cell[1])) for c in join.columns)
        if one
        else ()
    )
    schema = pa.schema([pa.field(c.name, c.type) for c in join.columns])
    return ReadPlan(join, reads, tuple(c.name for c in join.columns), schema, one, cells)


def _view_read(
    snapshot: CatalogSnapshot, key: str, program: ViewProgram, spine_keys: tuple[str, ...]
) -> ViewRead:
    check_kept(program)
    view = online_view(snapshot, Ref(program.name, program.version))
    reading = OneReading(view) if view.is_plain else None
    one = reading if reading is not None and reading.possible else None
    return ViewRead(key, view, program, spine_keys, one, SteadyAnswers(max_bytes=_STEADY_BYTES))


def read_features(store: OnlineStore, plan: ReadPlan, readers: Readers, now_ns: int) -> OnlineResponse:
    """Answer readers at one instant; all views are read as of one moment of the store.

    Raises:
        SchemaError: a key of the wrong kind, or a request field that cannot be read as its type.
        OnlineStoreError: the store failed.
    """
    answers = _answers(store, plan, readers, now_ns)
    computed: dict[tuple[str, str], pa.Array] = {}
    if plan.join.on_demand:
        request = readers.arrow()
        for demand in plan.join.on_demand:
            cells = computed | {
                cell: answers[cell[0]].array(cell[1]) for _, cell in demand.inputs if cell[0] in answers
            }
            columns = resolve_on_demand(demand, cells, request)
            computed |= {(demand.key, name): column for name, column in columns.items()}
    return OnlineResponse(plan, readers, answers, computed, now_ns)


def _answers(store: OnlineStore, plan: ReadPlan, readers: Readers, now_ns: int) -> dict[str, Answer]:
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
    answers: dict[str, Answer] = {}
    for read, keys, values in zip(plan.reads, keys_of, store.read(requests), strict=True):
        if len(values) != len(keys):
            found = iter(values)
            values = [None if key is None else next(found) for key in keys]  # noqa: PLW2901 -- put back in place
        answers[read.key] = _answer(read, values, now_ns)
    return answers


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
                hint="read the past with get_historical_features, or keep more with history=…",
                view=read.view.table,
            )


def entity_columns_of(plan: ReadPlan) -> Mapping[str, pa.DataType]:
    """Return the key columns that a plan reads, with their types."""
    return {
        name: kind
        for read in plan.reads
        for name, kind in zip(read.spine_keys, read.view.key_types, strict=True)
    }
