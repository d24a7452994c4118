"""Binding of what readers ask for: on-demand views, services, labels and training sets."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import pyarrow as pa

from featurestore.catalog.binding import (
    entity_keys,
    feature_fields,
    feature_schema,
    function_type,
)
from featurestore.catalog.desired import FEATURES, ROWS, Dependency, Desired, described
from featurestore.catalog.entity import Entity
from featurestore.catalog.expressions import check_expression
from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.label import Label
from featurestore.catalog.label_terms import START, parse_label
from featurestore.catalog.on_demand import REQUEST_TYPES, OnDemandFeatureView
from featurestore.catalog.refs import Ref
from featurestore.catalog.schemas import field_of, key_kind
from featurestore.catalog.service import FeatureService
from featurestore.catalog.snapshot import Record
from featurestore.catalog.source import Source
from featurestore.catalog.training_set import TrainingSet
from featurestore.core.names import near
from featurestore.errors import DefinitionError, SchemaError


def bind_on_demand(desired: Desired, view: OnDemandFeatureView) -> pa.Schema:
    """Type an on-demand view over its inputs and request columns.

    Raises:
        DefinitionError: two inputs of one name, an input that is on demand itself, or a wrong expression.
        NotFoundError: an input is not there.
    """
    what = described(view)
    columns: dict[str, pa.Field] = {}
    for ref in view.inputs:
        record = desired.record(view, Dependency(ref.whole(), FEATURES))
        if record.kind == OnDemandFeatureView.kind:
            raise DefinitionError(
                f"{what} takes {str(ref)!r}, which is computed on demand itself",
                hint="take its inputs, and repeat its expression",
            )
        for field in feature_schema(record, ref, what):
            _add(columns, field, f"{what}, input {str(ref)!r}")
    for name, kind in view.request.items():
        _add(columns, pa.field(name, REQUEST_TYPES[kind]), f"{what}, request field")
    return pa.schema(feature_fields(what, view.features, pa.schema(list(columns.values()))))


def _add(columns: dict[str, pa.Field], field: pa.Field, what: str) -> None:
    if field.name in columns:
        raise DefinitionError(
            f"{what}: {field.name!r} is there already",
            hint="an expression names its inputs by feature name: list single features, such as view:feature",
        )
    columns[field.name] = field


def bind_service(desired: Desired, service: FeatureService) -> pa.Schema:
    """Return a service's columns in order; where two have one name, all are named `view__feature`.

    Raises:
        NotFoundError: a view or feature is not there.
    """
    fields = [
        (ref, field)
        for ref in service.features
        for field in feature_schema(
            desired.record(service, Dependency(ref.whole(), FEATURES)), ref, described(service)
        )
    ]
    names = [field.name for _, field in fields]
    full = len(set(names)) != len(names)
    return pa.schema([pa.field(output_name(ref, f.name, full), f.type) for ref, f in fields])


def output_name(ref: Ref, feature: str, full: bool) -> str:
    """Return the name of a feature in a reader's output."""
    if ref.alias is not None:
        return f"{ref.alias}__{feature}"
    return f"{ref.name}__{feature}" if full else feature


def bind_label(desired: Desired, label: Label) -> pa.Schema:
    """Type a label over what it reads; returns one column of its name.

    Raises:
        DefinitionError: its expression is wrong or gives no single type.
        SchemaError: it reads a column that is not there.
    """
    what = described(label)
    record = desired.record(label, Dependency(label.source.whole(), ROWS))
    parsed = parse_label(label.expression)
    schema = record.schema
    fields = [field_of(schema, column, what) for column in parsed.plain]
    for term in parsed.terms:
        kind = None if term.column == "*" else field_of(schema, term.column, what).type
        fields.append(pa.field(term.name, function_type(term.function, kind, f"{what}: {term.name}")))
    if parsed.start:
        fields.append(pa.field(START, pa.struct([field_of(schema, c, what) for c in parsed.start])))
    try:
        kind = check_expression(parsed.expression, pa.schema(fields))
    except DefinitionError as error:
        raise DefinitionError(f"{what}: {error.message}", hint=error.hint, **error.context) from error
    return pa.schema([pa.field(label.name, kind)])


@dataclass(frozen=True, slots=True)
class _Joined:
    ref: Ref
    record: Record


def bind_training_set(desired: Desired, training_set: TrainingSet) -> pa.Schema:
    """Check a training set's keys and names; returns its whole output: spine, features, labels.

    Raises:
        SchemaError: the spine lacks a key, request or time column, or a key is of another kind.
        DefinitionError: two output columns of one name, or a key_map entry that nothing uses.
        NotFoundError: something it refers to is not there.
    """
    what = described(training_set)
    spine = desired.record(training_set, Dependency(training_set.spine.whole(), (Source.kind,)))
    joined = _joined(desired, training_set)
    _check_key_map(training_set, joined, desired)
    fields: list[tuple[str, pa.Field]] = [("the spine", f) for f in spine.schema]
    for item in joined:
        _check_join(desired, training_set, item, spine.schema)
        for field in feature_schema(item.record, item.ref, what):
            name = output_name(item.ref, field.name, training_set.full_feature_names)
            fields.append((str(item.ref.whole()), pa.field(name, field.type)))
    for ref in training_set.labels:
        record = desired.record(training_set, Dependency(ref.whole(), (Label.kind,)))
        fields.append((f"label {ref.name}", record.schema.field(0)))
    _check_clashes(what, fields, training_set.full_feature_names)
    for name in training_set.entities:
        _check_spine_keys(desired, training_set, name, spine.schema)
    return pa.schema([field for _, field in fields])


def _joined(desired: Desired, training_set: TrainingSet) -> list[_Joined]:
    holder: TrainingSet | FeatureService = training_set
    refs = training_set.features
    if training_set.service is not None:
        found = desired.record(
            training_set, Dependency(training_set.service.whole(), (FeatureService.kind,))
        ).definition
        if isinstance(found, FeatureService):
            holder, refs = found, found.features
    return [_Joined(ref, desired.record(holder, Dependency(ref.whole(), FEATURES))) for ref in refs]


def _key_columns(training_set: TrainingSet, ref: Ref, keys: Iterable[str]) -> dict[str, str]:
    """Return the spine's column for each join key."""
    own = training_set.key_map.get(ref.alias or "")
    mapped = own if isinstance(own, Mapping) else {}
    plain = {k: v for k, v in training_set.key_map.items() if isinstance(v, str)}
    return {key: mapped.get(key, plain.get(key, key)) for key in keys}


def _check_key_map(training_set: TrainingSet, joined: Iterable[_Joined], desired: Desired) -> None:
    items = list(joined)
    aliases = {item.ref.alias for item in items if item.ref.alias is not None}
    keys = {key for item in items for key in _join_keys(desired, item.record)}
    entity_columns = {k for name in training_set.entities for k in _entity_keys(desired, training_set, name)}
    for name, value in training_set.key_map.items():
        known = keys | entity_columns if isinstance(value, str) else aliases
        if name not in known:
            what = "join key" if isinstance(value, str) else "alias"
            raise DefinitionError(
                f"{described(training_set)}: key_map names {what} {name!r}, which no feature uses",
                hint=near(name, known),
            )


def _entity_keys(desired: Desired, training_set: TrainingSet, name: str) -> tuple[str, ...]:
    entity = desired.record(training_set, Dependency(Ref(name), (Entity.kind,))).definition
    return entity.join_keys if isinstance(entity, Entity) else ()


def _join_keys(desired: Desired, record: Record) -> tuple[str, ...]:
    view = record.definition
    return entity_keys(desired, view, view.entities) if isinstance(view, FeatureView) else ()


def _check_join(desired: Desired, training_set: TrainingSet, item: _Joined, spine: pa.Schema) -> None:
    view = item.record.definition
    if isinstance(view, OnDemandFeatureView):
        _check_request(desired, training_set, view, spine)
    elif isinstance(view, FeatureView):
        _check_keys_fit(desired, training_set, item, spine)


def _check_keys_fit(desired: Desired, training_set: TrainingSet, item: _Joined, spine: pa.Schema) -> None:
    columns = _key_columns(training_set, item.ref, _join_keys(desired, item.record))
    for key, column in columns.items():
        what = f"the spine {training_set.spine.name!r} of {described(training_set)}"
        if column not in spine.names:
            raise SchemaError(
                f"{what} has no column {column!r}, the join key of {item.record.name!r}",
                hint=f'{near(column, spine.names)}; name another column with key_map={{"{key}": "…"}}',
                column=column,
            )
        found = field_of(spine, column, what).type
        wanted = item.record.schema.field(key).type
        if key_kind(found) != key_kind(wanted):
            raise SchemaError(
                f"{what}: {column!r} is {found}, and join key {key!r} of {item.record.name!r} is {wanted}",
                hint="strings join strings and integers join integers",
                column=column,
            )


def _check_request(
    desired: Desired, training_set: TrainingSet, view: OnDemandFeatureView, spine: pa.Schema
) -> None:
    for column in view.request:
        field_of(spine, column, f"the spine of {described(training_set)}, for the request of {view.name!r},")
    for ref in view.inputs:
        record = desired.record(view, Dependency(ref.whole(), FEATURES))
        _check_keys_fit(desired, training_set, _Joined(ref, record), spine)


def _check_spine_keys(desired: Desired, training_set: TrainingSet, name: str, spine: pa.Schema) -> None:
    keys = _entity_keys(desired, training_set, name)
    for column in _key_columns(training_set, Ref(name), keys).values():
        kind = field_of(spine, column, f"the spine of {described(training_set)}").type
        if key_kind(kind) is None:
            raise SchemaError(
                f"{described(training_set)}: key column {column!r} is {kind}",
                hint="a key is a string or an integer",
            )


def _check_clashes(what: str, fields: Iterable[tuple[str, pa.Field]], full: bool) -> None:
    owners: dict[str, str] = {}
    for owner, field in fields:
        if field.name in owners:
            feature = not full and not owner.startswith("label ")
            raise DefinitionError(
                f"{what} has two columns {field.name!r}: one of {owners[field.name]}, one of {owner}",
                hint="full_feature_names=True names features view__feature"
                if feature
                else "leave one out, or rename it where it is made",
                column=field.name,
            )
        owners[field.name] = owner
