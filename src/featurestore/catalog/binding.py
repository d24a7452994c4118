"""Binding: what each definition's references mean, and the schema that follows from them."""

from collections.abc import Callable, Iterable, Mapping
from typing import Final

import pyarrow as pa

from featurestore.catalog.aggregation import Aggregation
from featurestore.catalog.desired import ROWS, Dependency, Desired, described
from featurestore.catalog.entity import Entity
from featurestore.catalog.expressions import check_expressions, parse_expression
from featurestore.catalog.feature_view import Feature, FeatureView
from featurestore.catalog.queries import check_query
from featurestore.catalog.refs import Ref
from featurestore.catalog.schemas import bare, field_of, is_time, key_kind
from featurestore.catalog.snapshot import Record
from featurestore.catalog.source import Source
from featurestore.core.names import near
from featurestore.errors import DefinitionError, LeakageError, NotFoundError, SchemaError

SchemaReader = Callable[[Source], pa.Schema]

_COUNTS: Final = frozenset({"count", "n_distinct"})
_MOMENTS: Final = frozenset({"mean", "std", "var"})


def bind_source(desired: Desired, source: Source, found: pa.Schema) -> pa.Schema:
    """Check a source against its columns as read, and return them.

    Raises:
        SchemaError: a time, sequence or key column is missing or of the wrong type.
        LeakageError: its query makes rows depend on other rows.
        DefinitionError: its query is not pure.
    """
    what = described(source)
    if source.query is not None:
        check_query(source.query, what)
    for column in (source.timestamp_field, source.created_timestamp_column):
        if column is not None:
            _check_time(found, column, what)
    if source.sequence_column is not None:
        _check_sequence(field_of(found, source.sequence_column, what), what)
    for name in source.entities:
        _check_keys(entity_keys(desired, source, [name]), found, what)
    return bare(found)


def _check_time(schema: pa.Schema, column: str, what: str) -> None:
    kind = field_of(schema, column, what).type
    if not is_time(kind):
        raise SchemaError(
            f"{what}: time column {column!r} is {kind}",
            hint="a time is a timestamp, a date, or int64 nanoseconds since 1970 UTC",
            column=column,
        )


def _check_sequence(field: pa.Field, what: str) -> None:
    if not pa.types.is_integer(field.type):
        raise SchemaError(
            f"{what}: sequence column {field.name!r} is {field.type}",
            hint="a sequence is an integer that grows with every correction",
            column=field.name,
        )


def entity_keys(desired: Desired, holder: Source | FeatureView, names: Iterable[str]) -> tuple[str, ...]:
    """Return the join keys of entities, in order, each once."""
    keys: dict[str, None] = {}
    for name in names:
        entity = desired.record(holder, Dependency(Ref(name), (Entity.kind,))).definition
        if isinstance(entity, Entity):
            keys |= dict.fromkeys(entity.join_keys)
    return tuple(keys)


def _check_keys(keys: Iterable[str], schema: pa.Schema, what: str) -> None:
    for key in keys:
        kind = field_of(schema, key, f"{what}, which needs join key {key!r},").type
        if key_kind(kind) is None:
            raise SchemaError(
                f"{what}: join key {key!r} is {kind}", hint="a key is a string or an integer", column=key
            )


def base_source(desired: Desired, holder: FeatureView, rows: Record) -> Source:
    """Return the source at the end of a chain of views.

    Raises:
        DefinitionError: it ends in something else.
    """
    record = rows
    while record.kind == FeatureView.kind:
        pinned = record.pinned(_read_name(record), *ROWS)
        record = _pinned_record(desired, pinned) if pinned else desired.base.record_of_source(record)
    source = record.definition
    if not isinstance(source, Source):
        raise DefinitionError(f"{described(holder)} ends in {record.id}, which is no source")
    return source


def _read_name(record: Record) -> str:
    """Return the name of what a view record reads."""
    return str(record.spec["source"]).partition("@")[0]


def _pinned_record(desired: Desired, pinned: tuple[str, str, int]) -> Record:
    kind, name, version = pinned
    bound = desired.bound.get((kind, name))
    if bound is not None and bound.version == version:
        return bound
    return desired.base.record(Ref(name, version), kind)


def time_columns(source: Source) -> tuple[str, ...]:
    """Return a source's event, created and sequence columns, those it has."""
    columns = (source.timestamp_field, source.created_timestamp_column, source.sequence_column)
    return tuple(c for c in columns if c is not None)


def bind_view(desired: Desired, view: FeatureView) -> pa.Schema:
    """Type a view over what it reads; returns its rows: keys, times, then features in order.

    Raises:
        SchemaError: a column is missing or of a type that cannot be used so.
        DefinitionError: an expression is wrong, or a feature has the name of a key or time.
        LeakageError: it reads a label, or `start.` outside a label.
    """
    what = described(view)
    rows = desired.record(view, Dependency(view.source.whole(), ROWS))
    schema, source = rows.schema, base_source(desired, view, rows)
    keys = entity_keys(desired, view, view.entities)
    _check_keys(keys, schema, what)
    times = time_columns(source)
    _check_feature_names(view, {*keys, source.timestamp_field})
    features = feature_fields(what, view.features, schema)
    windows = [aggregation_field(what, a, schema) for a in view.aggregations]
    named = {*view.feature_names}
    carried = [c for c in dict.fromkeys((*keys, *times)) if c not in named]
    return pa.schema([*(pa.field(c, schema.field(c).type) for c in carried), *features, *windows])


def _check_feature_names(view: FeatureView, taken: set[str]) -> None:
    clash = next((n for n in view.feature_names if n in taken), None)
    if clash is not None:
        raise DefinitionError(
            f"{described(view)} has a feature {clash!r}, the name of one of its keys or its event timestamp",
            hint=f'the column is in the output already; a copy takes another name, such as "{clash}_copy"',
            feature=clash,
        )


def feature_fields(what: str, features: Iterable[Feature], schema: pa.Schema) -> list[pa.Field]:
    """Type features over a schema, in order.

    Raises:
        SchemaError: a plain feature's column is missing.
        DefinitionError: an expression is wrong.
    """
    listed = list(features)
    expressions = {f.name: f.expression for f in listed if f.expression is not None}
    for expression in expressions.values():
        check_no_start(what, expression, schema)
    try:
        types = check_expressions(expressions, schema)
    except DefinitionError as error:
        raise DefinitionError(f"{what}: {error.message}", hint=error.hint, **error.context) from error
    return [
        pa.field(f.name, types[f.name] if f.expression is not None else field_of(schema, f.name, what).type)
        for f in listed
    ]


def check_no_start(what: str, expression: str, schema: pa.Schema) -> None:
    """Refuse `start.column`, which only a label may read.

    Raises:
        LeakageError: it is there.
    """
    for path in parse_expression(expression).paths:
        if path[0] == "start" and len(path) > 1 and "start" not in schema.names:
            raise LeakageError(
                f"{what} reads {'.'.join(path)}: only a label has a start and a horizon",
                hint="a feature reads the columns of its own row; what lies ahead goes into a Label",
            )


def aggregation_field(what: str, aggregation: Aggregation, schema: pa.Schema) -> pa.Field:
    """Return an aggregation's output column.

    Raises:
        SchemaError: its column is missing or of a type the function cannot take.
    """
    kind = None if aggregation.column == "*" else field_of(schema, aggregation.column, what).type
    output = function_type(
        aggregation.base_function, kind, f"{what}: {aggregation.name!r}", aggregation.last_n
    )
    return pa.field(aggregation.name, output)


def function_type(
    function: str, kind: pa.DataType | None, what: str, last_n: int | None = None
) -> pa.DataType:
    """Return the type of a window function over a column type.

    Counts are int64; sums int64 for integers and booleans, double for floats; mean, std and var double;
    min, max, first and last keep the type; last_n(k) is a fixed_size_list of k.

    Raises:
        SchemaError: the function cannot take the type.
    """
    if function in _COUNTS or kind is None:
        return pa.int64()
    value = kind.value_type if pa.types.is_dictionary(kind) else kind
    whole = pa.types.is_integer(value) or pa.types.is_boolean(value)
    numeric = whole or pa.types.is_floating(value)
    ordered = (
        numeric or pa.types.is_temporal(value) or pa.types.is_decimal(value) or key_kind(value) is not None
    )
    fits = {"sum": numeric, **dict.fromkeys(_MOMENTS, numeric), "min": ordered, "max": ordered}
    if not fits.get(function, True):
        raise SchemaError(
            f"{what}: {function} cannot take {kind}",
            hint="sum, mean, std and var take numbers; min and max numbers, times and strings",
            function=function,
        )
    if function == "sum":
        return pa.int64() if whole else pa.float64()
    if function in _MOMENTS:
        return pa.float64()
    return kind if last_n is None else pa.list_(kind, last_n)


def feature_schema(record: Record, ref: Ref, holder: str) -> list[pa.Field]:
    """Return the feature columns that a reference to a view asks for, in the view's order.

    Raises:
        NotFoundError: the view has no such feature.
    """
    names: Mapping[str, None] = dict.fromkeys(feature_names(record))
    if ref.feature is not None and ref.feature not in names:
        raise NotFoundError(
            f"{holder} asks for {str(ref)!r}, and {record.name!r} has no such feature",
            hint=near(ref.feature, names),
            feature=ref.feature,
        )
    wanted = [ref.feature] if ref.feature is not None else list(names)
    return [record.schema.field(name) for name in wanted]


def feature_names(record: Record) -> list[str]:
    """Return a view's features in order, from its spec."""
    spec = record.spec
    return [f["name"] for f in spec["features"]] + [a["name"] for a in spec.get("aggregations", ())]
