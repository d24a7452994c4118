"""Requests: which entities ask, in the forms that callers have them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import pyarrow as pa

from featurestore.catalog.training_set import KeyMap
from featurestore.errors import DefinitionError, SchemaError
from featurestore.temporal.tables import read_table

EntityRows: TypeAlias = Mapping[str, Sequence[Any]] | Sequence[Mapping[str, Any]] | Any
Column: TypeAlias = Sequence[Any] | pa.ChunkedArray
KeyMapping: TypeAlias = tuple[tuple[str, str, str], ...]


@dataclass(frozen=True, slots=True)
class Readers:
    """`rows` readers, by column; request fields of on-demand views stand beside the keys.

    Attributes:
        columns: Python values, or Arrow columns where the caller had those.
    """

    columns: Mapping[str, Column]
    rows: int

    def arrow(self) -> pa.Table:
        """Return the columns as Arrow, Python values with the type that Arrow gives them.

        Raises:
            SchemaError: a column mixes kinds.
        """
        arrays: dict[str, pa.Array | pa.ChunkedArray] = {}
        for name, column in self.columns.items():
            try:
                arrays[name] = column if isinstance(column, pa.ChunkedArray) else pa.array(column)
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
                raise SchemaError(
                    f"entity column {name!r} mixes kinds of values", hint=str(error), column=name
                ) from error
        return pa.table(arrays) if arrays else pa.table({"_": pa.nulls(self.rows)}).drop_columns(["_"])


def read_entity_rows(entity_rows: EntityRows) -> Readers:
    """Accept columns, a list of rows, or any Arrow table.

    Raises:
        SchemaError: columns of different lengths, rows of different columns, or something else altogether.
    """
    if isinstance(entity_rows, pa.Table):
        return _of_table(entity_rows)
    if isinstance(entity_rows, Mapping):
        return _of_columns(entity_rows)
    if hasattr(entity_rows, "__arrow_c_stream__"):
        return _of_table(read_table(entity_rows, "the entity rows"))
    if isinstance(entity_rows, Sequence) and not isinstance(entity_rows, (str, bytes)):
        return _of_rows(entity_rows)
    raise SchemaError(
        f"entity rows are a {type(entity_rows).__name__}",
        hint='give {"symbol": ["IBM"]}, [{"symbol": "IBM"}] or an Arrow table',
    )


def _of_table(table: pa.Table) -> Readers:
    return Readers(dict(zip(table.column_names, table.columns, strict=True)), table.num_rows)


def _of_columns(columns: Mapping[str, Sequence[Any]]) -> Readers:
    listed: dict[str, Column] = {}
    for name, column in columns.items():
        if isinstance(column, pa.Array):
            listed[name] = pa.chunked_array([column])
        elif isinstance(column, (list, tuple, pa.ChunkedArray)):
            listed[name] = column
        elif hasattr(column, "tolist"):
            listed[name] = column.tolist()
        else:
            raise SchemaError(f"entity column {name!r} is a {type(column).__name__}", hint="give lists")
    lengths = {name: len(column) for name, column in listed.items()}
    if len(set(lengths.values())) > 1:
        raise SchemaError(
            "entity columns differ in length: " + ", ".join(f"{k} {n}" for k, n in lengths.items()),
            hint="give one value per entity in every column",
        )
    return Readers(listed, next(iter(lengths.values()), 0))


def _of_rows(rows: Sequence[Any]) -> Readers:
    if not rows:
        return Readers({}, 0)
    names = rows[0].keys() if isinstance(rows[0], Mapping) else None
    if names is None or any(not isinstance(r, Mapping) or r.keys() != names for r in rows):
        raise SchemaError(
            "entity rows differ in their columns", hint="every row is a mapping with the same keys"
        )
    return Readers({name: [row[name] for row in rows] for name in names}, len(rows))


def key_mapping(key_map: KeyMap | None) -> KeyMapping:
    """Write a key map as (alias, join key, column), the alias empty where there is none.

    Raises:
        DefinitionError: it maps to something else than names.
    """
    out: list[tuple[str, str, str]] = []
    for name, value in (key_map or {}).items():
        if isinstance(value, Mapping):
            out += [(name, key, column) for key, column in value.items()]
        else:
            out.append(("", name, value))
    if not all(isinstance(part, str) for entry in out for part in entry):
        raise DefinitionError(
            f"the key map {key_map!r} holds something else than names",
            hint='write {"user_id": "sender"} or {"alias": {"user_id": "sender"}}',
        )
    return tuple(out)


def key_map_of(mapping: KeyMapping) -> KeyMap:
    """Read back what `key_mapping` wrote.

    Raises:
        DefinitionError: one name is a join key and an alias.
    """
    keys = {key: column for alias, key, column in mapping if not alias}
    aliases: dict[str, dict[str, str]] = {}
    for alias, key, column in mapping:
        if alias:
            aliases.setdefault(alias, {})[key] = column
    both = next((alias for alias in aliases if alias in keys), None)
    if both is not None:
        raise DefinitionError(
            f"{both!r} is a join key and an alias in the key map", hint="give the alias another name"
        )
    return {**keys, **aliases}
