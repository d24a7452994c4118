"""Rows as Feast's clients push them: one or several, typed or as texts, under Feast's own time columns."""

from collections.abc import Mapping, Sequence
from itertools import zip_longest
from typing import Any

import pyarrow as pa

from featurestore.catalog.refs import Ref, parse_ref
from featurestore.core.time import instant_ns
from featurestore.errors import DefinitionError, NotFoundError, SchemaError
from featurestore.resolve.program import source_times
from featurestore.serve.access import Caller
from featurestore.serve.backend import OnlineBackend, WriteResult

FEAST_EVENT = "event_timestamp"
FEAST_CREATED = "created"


def push_columns(
    backend: OnlineBackend, target: str, columns: Mapping[str, Sequence[Any]], caller: Caller
) -> WriteResult:
    """Write columns to a source's online views, or to one view.

    Args:
        target: A source, or a view of one.

    Raises:
        NotFoundError: neither a source nor a view.
        SchemaError: a column is missing or cannot be read as its type.
    """
    snapshot = backend.snapshot
    try:
        source = snapshot.source(parse_ref(target))
    except NotFoundError:
        view = backend.online_view(parse_ref(target))
        caller.check("push", [view.program.name])
        name = view.program.source
        return backend.write_rows(view.table, _table(backend, name, columns))
    caller.check("push", (view.program.name for view in backend.views_over(source.name)))
    return backend.push(source.name, _table(backend, source.name, columns))


def check_target(to: str) -> None:
    """Check where a push goes.

    Raises:
        DefinitionError: to the offline store, which a server does not write.
    """
    if to not in {"", "online"}:
        raise DefinitionError(
            f"push to {to!r}", hint="a server writes the online store; ingest offline rows with the store"
        )


def _table(backend: OnlineBackend, source: str, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    snapshot = backend.snapshot
    schema = snapshot.schema_of(Ref(source), "source")
    times = source_times(snapshot.source(Ref(source)))
    given = dict(columns)
    for theirs, ours in ((FEAST_EVENT, times.timestamp), (FEAST_CREATED, times.created)):
        if ours is not None and ours not in given and theirs in given:
            given[ours] = given.pop(theirs)
    if times.created is not None:
        # Feast sends null where it has no created timestamp: known when it happened.
        events = given.get(times.timestamp, ())
        created = given.get(times.created, [None] * len(events))
        pairs = zip_longest(created, events)
        given[times.created] = [event if known is None else known for known, event in pairs]
    lengths = {len(values) for values in given.values()}
    if len(lengths) > 1:
        raise SchemaError("the columns differ in length")
    rows = lengths.pop() if lengths else 0
    arrays = {}
    for field in schema:
        values = given.get(field.name)
        if values is None and field.name == times.timestamp:
            raise SchemaError(f"column {field.name!r} is missing", column=field.name)
        arrays[field.name] = _array([None] * rows if values is None else values, field)
    return pa.table(arrays)


def _array(values: Sequence[Any], field: pa.Field) -> pa.Array:
    """Read values as a column's type; texts are parsed, whole numbers of a time are seconds as in Feast.

    Raises:
        SchemaError: they cannot be read as it.
    """
    kind = field.type
    try:
        found = pa.array(values)
        if pa.types.is_null(found.type):
            return pa.nulls(len(found), kind)
        if pa.types.is_timestamp(kind) and pa.types.is_integer(found.type):
            return found.cast(pa.timestamp("s")).cast(pa.timestamp(kind.unit)).cast(kind)
        if pa.types.is_timestamp(kind) and pa.types.is_string(found.type):
            # Naive means UTC: Feast's remote store sends its times without a zone.
            nanos = [None if v is None else instant_ns(v, what=field.name) for v in values]
            return pa.array(nanos, pa.int64()).cast(pa.timestamp("ns", "UTC")).cast(kind)
        if pa.types.is_boolean(kind) and not pa.types.is_boolean(found.type):
            return found.cast(pa.string()).cast(kind)
        return found.cast(kind)
    except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
        raise SchemaError(
            f"column {field.name!r} cannot be read as {kind}", hint=str(error)[:200], column=field.name
        ) from error
