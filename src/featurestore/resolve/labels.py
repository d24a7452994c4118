"""Labels: the only values that lie after their reader's time."""

from dataclasses import dataclass, replace

import pyarrow as pa

from featurestore.catalog.expressions import evaluate
from featurestore.catalog.feature_view import Feature
from featurestore.catalog.label import Label
from featurestore.catalog.label_terms import LabelTerm, parse_label
from featurestore.catalog.refs import Ref
from featurestore.catalog.snapshot import CatalogSnapshot, Record
from featurestore.catalog.source import Source
from featurestore.resolve.events import Events, column_of, looking_ahead, source_events
from featurestore.resolve.program import ViewProgram, compile_view, source_times
from featurestore.resolve.views import Sides, resolve_sides, view_events
from featurestore.temporal.windows import Window, window_aggregate


@dataclass(frozen=True, slots=True)
class LabelProgram:
    """A label made ready to run.

    Attributes:
        rows: The source or view it reads, as a program; a plain source is a view of its own columns.
        expression: SQL over plain columns, terms, and the struct `start`.
        plain: Columns whose newest value in `(t, t + horizon]` the expression reads.
        terms: Aggregates over `(t, t + horizon]`, each under its own name.
        start: Columns whose value at t the expression reads as `start.column`.
        horizon_ns: How far it looks ahead.
        type: The label's type.
    """

    name: str
    rows: ViewProgram
    expression: str
    plain: tuple[str, ...]
    terms: tuple[LabelTerm, ...]
    start: tuple[str, ...]
    horizon_ns: int
    type: pa.DataType

    def look_back_ns(self) -> int | None:
        """Return how far behind its reader a row can matter: 0 unless `start` is read."""
        return self.rows.look_back_ns() if self.start or self.rows.upstream else 0


def compile_label(snapshot: CatalogSnapshot, ref: Ref, row_keys: tuple[str, ...]) -> LabelProgram:
    """Make a label ready to run; a label on a plain source is matched on `row_keys`.

    Raises:
        NotFoundError: the label or its source is not in the catalog.
    """
    record = snapshot.record(ref, Label.kind)
    label = snapshot.label(Ref(record.name, record.version))
    parsed = parse_label(label.expression)
    below = snapshot.record_of_source(record)
    if isinstance(below.definition, Source):
        rows = _source_program(below, below.definition, row_keys)
    else:
        rows = compile_view(snapshot, Ref(below.name, below.version))
    read = {*parsed.plain, *parsed.start, *(t.column for t in parsed.terms if t.column != "*")}
    return LabelProgram(
        name=label.name,
        rows=rows.only([name for name in rows.schema.names if name in read]),
        expression=parsed.expression,
        plain=parsed.plain,
        terms=parsed.terms,
        start=parsed.start,
        horizon_ns=label.horizon_ns,
        type=record.schema.field(label.name).type,
    )


def _source_program(record: Record, source: Source, row_keys: tuple[str, ...]) -> ViewProgram:
    return ViewProgram(
        name=source.name,
        version=record.version,
        digest=source.digest(),
        join_keys=row_keys,
        source=source.name,
        times=source_times(source),
        features=tuple(Feature(name) for name in record.schema.names),
        aggregations=(),
        ttl_ns=None,
        nulls="keep",
        online=False,
        schema=record.schema,
    )


def resolve_label(
    label: LabelProgram, sides: Sides, spine: Events, rows: pa.Table, *, threads: int | None
) -> pa.Array:
    """Compute a label for each reader.

    Args:
        sides: The readers at their own time t and the label's rows, on one set of entity codes.
        spine: The same readers as events.
        rows: The base source's rows, needed where a term aggregates over a view's features.

    Raises:
        ExpressionError: the expression failed on the values it met.
    """
    ahead = looking_ahead(spine, label.horizon_ns)
    later = replace(sides, spine=ahead.rows(sides.spine.codes))
    columns: dict[str, pa.Array] = {}
    if label.plain:
        columns |= resolve_sides(_after_start(label), later, threads=threads).columns
    if label.terms:
        columns |= _term_columns(label, later, rows, threads)
    if label.start:
        at_start = resolve_sides(label.rows.only(label.start), sides, threads=threads).columns
        columns["start"] = pa.StructArray.from_arrays(
            [at_start[name] for name in label.start], names=list(label.start)
        )
    if not columns:
        columns["_"] = pa.nulls(sides.spine.codes.size)
    value: pa.Array = evaluate({label.name: label.expression}, pa.table(columns))[label.name]
    return value if value.type == label.type else value.cast(label.type)


def _after_start(label: LabelProgram) -> ViewProgram:
    """Bound the age at `t + horizon` so that nothing at or before t is seen."""
    program = label.rows.only(label.plain)
    bound = label.horizon_ns - 1
    return replace(program, ttl_ns=bound if program.ttl_ns is None else min(bound, program.ttl_ns))


def _term_columns(
    label: LabelProgram, later: Sides, rows: pa.Table, threads: int | None
) -> dict[str, pa.Array]:
    events = later.events
    if any(f.expression is not None for f in label.rows.features) or label.rows.aggregations:
        events = source_events(view_events(label.rows, rows, threads=threads), label.rows.times)
    found: dict[str, pa.Array] = window_aggregate(
        later.spine,
        events.rows(later.rows.codes),
        {t.column: column_of(events.table, t.column) for t in label.terms if t.column != "*"},
        [
            Window(column=t.column, function=t.function, window_ns=label.horizon_ns, name=t.name)
            for t in label.terms
        ],
        entities=later.entities,
        threads=threads,
    )
    return found
