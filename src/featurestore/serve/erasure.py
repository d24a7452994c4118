"""Erasure and export of entities: the two verbs that go by entity, not by view."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import pyarrow as pa

from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.refs import Ref
from featurestore.errors import SchemaError
from featurestore.serve.codec import Stored
from featurestore.serve.entity_keys import decoded_part, split_parts
from featurestore.serve.request import EntityRows, Readers, read_entity_rows
from featurestore.serve.views import OnlineView, online_view

if TYPE_CHECKING:
    from featurestore.serve.backend import OnlineBackend


def erase_keys(backend: "OnlineBackend", entity: str, keys: EntityRows) -> int:
    """Delete keys from every online view of an entity, at every version; returns how many there were.

    Tables of views over the same rows by other keys are emptied, for any of their values may be made from
    rows of the entity: `mixed_tables` names them.

    Raises:
        NotFoundError: an unknown entity.
        SchemaError: a key column is missing or of the wrong kind.
        OnlineStoreError: bytes of a key stayed.
    """
    readers = read_entity_rows(keys)
    held = {v.table: _held_keys(backend, entity, v, readers) for v in _views_of(backend, entity)}
    count = _stored(backend, held)
    for table in mixed_tables(backend, entity):
        held[table] = [key for key, _ in backend.store.scan(table)]
    backend.store.purge(held)
    return count


def mixed_tables(backend: "OnlineBackend", entity: str) -> list[str]:
    """Return the online tables whose rows come from rows with an entity's keys, but are found by others."""
    snapshot = backend.snapshot
    wanted = set(snapshot.entity(entity).join_keys)
    keyed = {view.table for view in _views_of(backend, entity)}
    found = []
    for table in backend.store.tables():
        name, _, version = table.partition("@")
        program = online_view(snapshot, Ref(name, int(version))).program
        if table not in keyed and wanted <= set(snapshot.schema_of(Ref(program.source), "source").names):
            found.append(table)
    return found


def count_keys(backend: "OnlineBackend", entity: str, keys: EntityRows) -> int:
    """Count the (view, key) pairs that `erase_keys` would delete."""
    readers = read_entity_rows(keys)
    return _stored(
        backend, {v.table: _held_keys(backend, entity, v, readers) for v in _views_of(backend, entity)}
    )


def _stored(backend: "OnlineBackend", held: Mapping[str, Sequence[bytes]]) -> int:
    return sum(value is not None for values in backend.store.read(list(held.items())) for value in values)


def residue_of(backend: "OnlineBackend", entity: str, keys: EntityRows) -> dict[str, int]:
    """Count erased keys of which something is still there: entries, and bytes in the store's own files."""
    readers = read_entity_rows(keys)
    held = {v.table: _held_keys(backend, entity, v, readers) for v in _views_of(backend, entity)}
    there = _stored(backend, held)
    return {"entries": there, **backend.store.residue(held)}


def export_keys(backend: "OnlineBackend", entity: str, keys: EntityRows) -> dict[str, pa.Table]:
    """Return the rows that the store holds of keys, by `view@version`."""
    readers = read_entity_rows(keys)
    out: dict[str, pa.Table] = {}
    for view in _views_of(backend, entity):
        held = _held_keys(backend, entity, view, readers)
        if held:
            (values,) = backend.store.read([(view.table, held)])
            stored = view.codec.decode(values)
            if len(stored.block):
                out[view.table] = stored_table(view, held, stored)
    return out


def stored_table(view: OnlineView, keys: Sequence[bytes], stored: Stored) -> pa.Table:
    """Return stored rows with their keys and times as columns."""
    table = view.codec.table(stored.block)
    parts = [_key_parts(view, key) for key in keys]
    codes = stored.codes()
    for at, (name, kind) in reversed(
        list(enumerate(zip(view.program.join_keys, view.key_types, strict=True)))
    ):
        plain = kind.value_type if pa.types.is_dictionary(kind) else kind
        column = pa.array([part[at] for part in parts], plain).take(pa.array(codes))
        table = table.add_column(0, name, column)
    for name in ("event", "known"):
        times = pa.array(stored.block.clock(name)).cast(pa.timestamp("ns", "UTC"))
        table = table.append_column(f"{name}_timestamp", times)
    return table


def _views_of(backend: "OnlineBackend", entity: str) -> list[OnlineView]:
    """Return every stored view, at every version, whose key has all of an entity's key columns."""
    snapshot = backend.snapshot
    wanted = set(snapshot.entity(entity).join_keys)
    views = []
    for table in backend.store.tables():
        name, _, version = table.partition("@")
        definition = snapshot.get(Ref(name, int(version)))
        if isinstance(definition, FeatureView):
            view = online_view(snapshot, Ref(name, int(version)))
            if wanted <= set(view.program.join_keys):
                views.append(view)
    return views


def _held_keys(backend: "OnlineBackend", entity: str, view: OnlineView, readers: Readers) -> list[bytes]:
    wanted = backend.snapshot.entity(entity).join_keys
    missing = [name for name in wanted if name not in readers.columns]
    if missing:
        raise SchemaError(
            f"entity {entity!r} needs column {missing[0]!r}",
            hint=f"give {', '.join(wanted)}",
            column=missing[0],
        )
    columns = [readers.columns[name] for name in wanted]
    listed = [c.to_pylist() if isinstance(c, pa.ChunkedArray) else list(c) for c in columns]
    if set(wanted) == set(view.program.join_keys):
        by_name = dict(zip(wanted, listed, strict=True))
        keys = view.encode_keys([by_name[name] for name in view.program.join_keys])
        return list(dict.fromkeys(k for k in keys if k is not None))
    places = [view.program.join_keys.index(name) for name in wanted]
    encoders = [view.key_encoders[at] for at in places]
    asked = {
        tuple(encode(v) for encode, v in zip(encoders, key, strict=True))
        for key in zip(*listed, strict=True)
        if None not in key
    }
    found = []
    for key, _ in backend.store.scan(view.table):
        parts = split_parts(key, len(view.key_types))
        if tuple(parts[at] for at in places) in asked:
            found.append(key)
    return found


def _key_parts(view: OnlineView, key: bytes) -> list[object]:
    parts = split_parts(key, len(view.key_types))
    return [decoded_part(kind, part) for kind, part in zip(view.key_types, parts, strict=True)]
