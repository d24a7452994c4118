"""A subject: the keys of one entity that someone asks about, and how they are found in tables."""

import secrets
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.catalog.snapshot import CatalogSnapshot
from featurestore.core.keys import can_be_key
from featurestore.core.names import near
from featurestore.errors import SchemaError
from featurestore.materialize.job import renamed_keys
from featurestore.storage.manifest import Manifest
from featurestore.storage.suppression import Ledger, Suppression
from featurestore.temporal.tables import read_table

Renamed = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Subject:
    """Some keys of an entity.

    Attributes:
        columns: The entity's join keys, in order.
        keys: The distinct keys without a null, one column per join key.
        matcher: Finds their rows by hashes under a secret that nobody else has.
    """

    entity: str
    columns: tuple[str, ...]
    keys: pa.Table
    matcher: Suppression

    def names_in(self, schema: pa.Schema, renamed: Iterable[Renamed] = ()) -> tuple[tuple[str, ...], ...]:
        """Return under which columns a table can hold the keys: its own names, and others it is known by."""
        known = dict.fromkeys([self.columns, *(self._renamed(r) for r in renamed)])
        return tuple(
            names for names in known if set(names) <= set(schema.names) and self._fits(schema, names)
        )

    def mask(self, rows: pa.Table | pa.RecordBatch, renamed: Iterable[Renamed] = ()) -> np.ndarray:
        """Point at the subject's rows; `(n,)`."""
        found = self.matcher.mask(rows, renamed)
        return np.zeros(rows.num_rows, np.bool_) if found is None else found

    def rows_of(self, rows: pa.Table, renamed: Iterable[Renamed] = ()) -> pa.Table:
        """Return the subject's rows."""
        return rows.filter(pa.array(self.mask(rows, renamed)))

    def _renamed(self, renamed: Renamed) -> tuple[str, ...]:
        return tuple(renamed.get(c, c) for c in self.columns)

    def _fits(self, schema: pa.Schema, names: Sequence[str]) -> bool:
        """Integers are never texts: a table that holds other kinds cannot hold these keys."""
        return all(
            can_be_key(kind := schema.field(n).type)
            and _is_integer(kind) == _is_integer(self.keys.schema.field(c).type)
            for n, c in zip(names, self.columns, strict=True)
        )


def subject_of(snapshot: CatalogSnapshot, entity: str, keys: Any) -> Subject:
    """Read the keys that a caller gives.

    Args:
        keys: One key (a value, or a mapping of the join keys), a list of either, a mapping of columns, or a
            table of any library that speaks the Arrow PyCapsule protocol.

    Raises:
        NotFoundError: no such entity.
        SchemaError: a join key is missing, or not a string or an integer.
    """
    columns = snapshot.entity(entity).join_keys
    given = _table(keys, columns)
    for name in columns:
        if name not in given.column_names:
            raise SchemaError(
                f"the keys have no column {name!r}", hint=near(name, given.column_names), column=name
            )
        if not can_be_key(given.schema.field(name).type):
            raise SchemaError(
                f"column {name!r} of the keys is {given.schema.field(name).type}",
                hint="keys are strings or integers",
                column=name,
            )
    own = given.select(list(columns)).drop_null()
    own = own.group_by(list(columns), use_threads=False).aggregate([]).select(list(columns))
    ledger = Ledger(secrets.token_bytes(32), ())
    hashes = {bytes.fromhex(k): hint for k, hint in ledger.hashes(own.columns).items()}
    return Subject(entity, tuple(columns), own, Suppression(ledger.secret, {tuple(columns): hashes}))


def names_of_version(manifest: Manifest) -> tuple[Renamed, ...]:
    """Return what else the stored rows of a version may call join keys.

    A spine can name them otherwise, and a view keeps source columns that are no features as `source__name`.
    """
    held = manifest.schema.names
    raw = {n.removeprefix("source__"): n for n in held if n.startswith("source__")}
    raw = {k: v for k, v in raw.items() if k not in held}
    return (*renamed_keys(manifest.definition.get("key_map", {})), *([raw] if raw else []))


def _table(keys: Any, columns: Sequence[str]) -> pa.Table:
    if hasattr(keys, "__arrow_c_stream__"):
        return _plain(read_table(keys, "the keys"))
    try:
        if isinstance(keys, Mapping):
            single = not any(isinstance(v, (list, tuple)) or hasattr(v, "__len__") for v in _no_text(keys))
            return pa.table({n: pa.array([v]) if single else _array(v) for n, v in keys.items()})
        listed = list(keys) if isinstance(keys, Sequence) and not isinstance(keys, (str, bytes)) else [keys]
        if all(isinstance(row, Mapping) for row in listed):
            return pa.Table.from_pylist([dict(row) for row in listed])
        if len(columns) == 1:
            return pa.table({columns[0]: pa.array(listed)})
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise SchemaError(f"the keys cannot be read: {error}", hint=_hint(columns)) from error
    raise SchemaError(f"the keys do not name {', '.join(columns)}", hint=_hint(columns))


def _no_text(keys: Mapping[str, Any]) -> list[Any]:
    return [None if isinstance(v, (str, bytes)) else v for v in keys.values()]


def _array(values: Any) -> pa.Array | pa.ChunkedArray:
    return values if isinstance(values, pa.ChunkedArray) else pa.array(values)


def _plain(table: pa.Table) -> pa.Table:
    """String views are no keys that Arrow can group by."""
    fields = [
        pa.field(f.name, pa.large_string()) if pa.types.is_string_view(f.type) else f for f in table.schema
    ]
    return table.cast(pa.schema(fields))


def _hint(columns: Sequence[str]) -> str:
    return "give " + "{" + ", ".join(f'"{c}": …' for c in columns) + "}, a list of such, or a table"


def _is_integer(kind: pa.DataType) -> bool:
    return bool(pa.types.is_integer(kind.value_type if pa.types.is_dictionary(kind) else kind))
