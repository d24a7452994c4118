"""The planner: from definitions to a plan, against one snapshot. Reads schemas, writes nothing."""

from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import replace

import pyarrow as pa

from featurestore.catalog.binding import SchemaReader, bind_source, bind_view, time_columns
from featurestore.catalog.commit import Entry
from featurestore.catalog.definition import Definition
from featurestore.catalog.desired import Desired, dependencies, described
from featurestore.catalog.entity import Entity
from featurestore.catalog.expressions import check_expressions, parse_many
from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.graph import topological_order
from featurestore.catalog.label import Label
from featurestore.catalog.on_demand import OnDemandFeatureView
from featurestore.catalog.outputs import bind_label, bind_on_demand, bind_service, bind_training_set
from featurestore.catalog.plan import MATERIALIZED, Plan, compare, means_the_same
from featurestore.catalog.reads import columns_read
from featurestore.catalog.refs import Ref
from featurestore.catalog.schemas import bare, check_schema, schema_difference, schema_spec
from featurestore.catalog.service import FeatureService
from featurestore.catalog.snapshot import (
    ASKED_BY_NAME,
    KIND_WORDS,
    PRECEDENCE,
    CatalogSnapshot,
    Key,
    Record,
    split_id,
)
from featurestore.catalog.source import Source
from featurestore.catalog.training_set import TrainingSet
from featurestore.errors import DefinitionError, FeatureStoreError


def make_plan(
    base: CatalogSnapshot,
    given: Mapping[Key, Definition],
    removed: Iterable[Key],
    read_schema: SchemaReader,
) -> Plan:
    """Plan the step from a snapshot to the same with `given` added and `removed` taken away.

    Raises:
        DefinitionError: a definition is wrong, or the references run in a circle.
        NotFoundError: a reference leads nowhere.
        SchemaError: a column is missing, of a wrong type, or drifted since the last apply.
        LeakageError: something but a label could look ahead.
    """
    desired = Desired(base, given, frozenset(removed) - set(given))
    _check_names(desired)
    schemas = {key[1]: bare(read_schema(d)) for key, d in given.items() if isinstance(d, Source)}
    touched = {key for key, definition in given.items() if _differs(base, definition, schemas)}
    affected = _with_downstream(base, touched | desired.removed) - desired.removed
    order = materialization_order(desired, affected)
    _warm(desired, order, schemas)
    entries = [e for key in order if (e := _bind(desired, key, schemas)) is not None]
    entries += [Entry("remove", key, None) for key in sorted(desired.removed)]
    changes = [compare(_current(base, e.key), e.record, e.action) for e in entries]
    stale = [
        e.record.id.partition("/")[2]
        for e in entries
        if e.record is not None and e.record.kind in MATERIALIZED and e.action == "change"
    ]
    notes = _shared_names(desired, [e.key for e in entries if e.record is not None])
    return Plan(base.version, tuple(changes), tuple(stale), tuple(entries), tuple(notes))


def _shared_names(desired: Desired, keys: Iterable[Key]) -> list[str]:
    """Say which new or changed definitions share their name with one of another kind."""
    lines: dict[str, None] = {}
    for _, name in keys:
        kinds = [kind for kind in PRECEDENCE if kind != Entity.kind and desired.has((kind, name))]
        if len(kinds) > 1:
            words = " and a ".join(KIND_WORDS[kind] for kind in kinds)
            lines[f"{name!r} is a {words}; the name alone means the {KIND_WORDS[kinds[0]]}"] = None
    return list(lines)


def _check_names(desired: Desired) -> None:
    """Refuse one name for two things that readers ask for by name alone.

    Raises:
        DefinitionError: a view, a service and a training set share a name.
    """
    owner = {name: kind for kind, name in desired.base.heads if kind in ASKED_BY_NAME}
    owner = {name: kind for name, kind in owner.items() if (kind, name) not in desired.removed}
    for kind, name in desired.given:
        if kind in ASKED_BY_NAME and owner.setdefault(name, kind) != kind:
            raise DefinitionError(
                f"{name!r} is a {KIND_WORDS[owner[name]]} and a {KIND_WORDS[kind]}",
                hint="readers ask for both by name alone: give one of them another",
                name=name,
            )


def _current(base: CatalogSnapshot, key: Key) -> Record | None:
    version = base.heads.get(key)
    return None if version is None else base.records[(*key, version)]


def _differs(base: CatalogSnapshot, definition: Definition, schemas: Mapping[str, pa.Schema]) -> bool:
    record = _current(base, (definition.kind, definition.name))
    if record is None or record.spec != definition.spec():
        return True
    if not isinstance(definition, Source):
        return False
    return bool(schema_difference(record.schema, schemas[definition.name]))


def _with_downstream(base: CatalogSnapshot, touched: set[Key]) -> set[Key]:
    """Return the touched definitions and all in force that read one of them, directly or not."""
    if not touched:
        return set()
    readers: dict[Key, list[Key]] = {}
    for key, version in base.heads.items():
        for pin in base.records[(*key, version)].pins:
            kind, name, _ = split_id(pin)
            readers.setdefault((kind, name), []).append(key)
    found = set(touched)
    waiting = list(touched)
    while waiting:
        for reader in readers.get(waiting.pop(), ()):
            if reader not in found:
                found.add(reader)
                waiting.append(reader)
    return found


def materialization_order(desired: Desired, keys: set[Key]) -> list[Key]:
    """Return definitions so that what is read comes before what reads it.

    Raises:
        DefinitionError: they run in a circle, which is named.
        NotFoundError: a reference leads nowhere.
    """
    return topological_order({key: _reads(desired, key) & keys for key in keys})


def _reads(desired: Desired, key: Key) -> set[Key]:
    definition = desired.definition(key)
    found = {desired.key_of(definition, d) for d in dependencies(definition)}
    return {k for k in found if k is not None}


def _warm(desired: Desired, order: Iterable[Key], schemas: Mapping[str, pa.Schema]) -> None:
    """Parse and type the expressions of many views in few queries; errors are left to `_bind`."""
    texts: dict[str, None] = {}
    by_source: dict[str, dict[str, str]] = {}
    for key in order:
        definition = desired.definition(key)
        if isinstance(definition, (FeatureView, OnDemandFeatureView)):
            own = {f.expression: f.expression for f in definition.features if f.expression is not None}
            texts |= dict.fromkeys(own)
            if isinstance(definition, FeatureView):
                by_source.setdefault(definition.source.name, {}).update(own)
    with suppress(FeatureStoreError):
        parse_many(texts)
    for name, expressions in by_source.items():
        schema = schemas.get(name)
        if schema is None and (Source.kind, name) in desired.base.heads:
            schema = desired.base.schema_of(Ref(name), Source.kind)
        if schema is not None:
            with suppress(FeatureStoreError):
                check_expressions(expressions, schema)


def _bind(desired: Desired, key: Key, schemas: Mapping[str, pa.Schema]) -> Entry | None:
    """Bind one definition and remember its record; `None` where nothing changes."""
    definition = desired.definition(key)
    old = _current(desired.base, key)
    pins = tuple(dict.fromkeys(desired.record(definition, d).id for d in dependencies(definition)))
    schema = _schema(desired, definition, old, schemas)
    columns = tuple((name, text) for name, text in schema_spec(schema))
    spec = definition.spec()
    last = desired.base.last.get(key, 0)
    earlier = old or (desired.base.records.get((*key, last)) if last else None)
    same = earlier is not None and means_the_same(earlier, spec, pins)
    version = earlier.version if same and earlier is not None else last + 1
    since = earlier.since if same and earlier is not None else desired.base.version + 1
    record = Record(key[0], key[1], version, spec, columns, pins, since)
    if old is not None and same and old.spec == spec and old.columns == columns:
        desired.bound[key] = old
        return None
    desired.bound[key] = record
    action = "add" if old is None else "describe" if same else "change"
    return Entry(action, key, record)


def _schema(
    desired: Desired, definition: Definition, old: Record | None, schemas: Mapping[str, pa.Schema]
) -> pa.Schema:
    match definition:
        case Source():
            schema = _source_schema(desired, definition, old, schemas)
        case FeatureView():
            schema = bind_view(desired, definition)
        case OnDemandFeatureView():
            schema = bind_on_demand(desired, definition)
        case FeatureService():
            schema = bind_service(desired, definition)
        case Label():
            schema = bind_label(desired, definition)
        case TrainingSet():
            schema = bind_training_set(desired, definition)
        case _:
            schema = pa.schema([])
    return schema


def _source_schema(
    desired: Desired, source: Source, old: Record | None, schemas: Mapping[str, pa.Schema]
) -> pa.Schema:
    found = schemas.get(source.name)
    if found is None:
        assert old is not None  # noqa: S101 -- not given, so it is in force
        return bind_source(desired, source, old.schema)
    if old is not None and means_the_same(old, source.spec(), old.pins):
        check_schema(described(source), old.schema, found, _used_columns(desired.base, source, old))
    return bind_source(desired, source, found)


def _used_columns(base: CatalogSnapshot, source: Source, record: Record) -> list[str]:
    """Return the columns of a source that something in force reads, in their order."""
    used = {*time_columns(source)}
    for reader in base.live():
        if record.id not in reader.pins:
            continue
        definition = reader.definition
        used |= columns_read(definition)
        if isinstance(definition, FeatureView):
            used |= set(reader.schema.names) - set(definition.feature_names)
        elif isinstance(definition, TrainingSet):
            used |= set(record.schema.names)
    for name in source.entities:
        used |= set(base.entity(name).join_keys)
    return [name for name in record.schema.names if name in used]


def rollback_plan(base: CatalogSnapshot, target: CatalogSnapshot) -> Plan:
    """Plan the step back to what was in force at an older version; versions made since stay readable."""
    entries: list[Entry] = []
    for key in sorted(target.heads):
        wanted = target.records[(*key, target.heads[key])]
        if wanted != _current(base, key):
            entries.append(Entry("restore", key, replace(wanted)))
    gone = sorted(set(base.heads) - set(target.heads))
    entries += [Entry("remove", key, None) for key in gone]
    changes = [compare(_current(base, e.key), e.record, e.action) for e in entries]
    stale = [
        e.record.id.partition("/")[2]
        for e in entries
        if e.record is not None
        and e.record.kind in MATERIALIZED
        and base.heads.get(e.key) != e.record.version
    ]
    return Plan(base.version, tuple(changes), tuple(stale), tuple(entries))
