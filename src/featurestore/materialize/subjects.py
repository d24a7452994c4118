"""Everything that is stored of an entity: the rows of its keys in sources, views and training sets."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.catalog.feature_view import FeatureView
from featurestore.catalog.source import Source
from featurestore.catalog.training_set import TrainingSet
from featurestore.core.names import near
from featurestore.errors import SchemaError
from featurestore.materialize.context import Context, home_of
from featurestore.materialize.versions import history, open_version
from featurestore.temporal.keys import code_keys


@dataclass(frozen=True, slots=True, kw_only=True)
class EraseReport:
    """What an erasure did, and where rows of the keys still are.

    Attributes:
        online_rows: Rows that were replaced by tombstones in the online store.
        remaining: Rows that stay, by place: `source/name`, `dataset/name@version`. Dataset versions are
            immutable and sources may be other people's files, so neither is rewritten here.
    """

    online_rows: int
    remaining: Mapping[str, int]


def subject_rows(context: Context, entity: str, keys: Any) -> dict[str, pa.Table]:
    """Return the rows of some keys of an entity, by place; places without such rows are left out.

    Args:
        keys: The join keys as a mapping of columns, a list of mappings, or an Arrow table.

    Returns:
        `source/name` and, for every readable version, `dataset/name@version` → its rows.

    Raises:
        NotFoundError: no such entity.
        SchemaError: a join key is missing from `keys` or of the wrong kind.

    Cost:
        Reads every source with the entity's keys and every readable version, one batch at a time.
    """
    names = context.snapshot.entity(entity).join_keys
    wanted = _key_columns(keys, names)
    found: dict[str, pa.Table] = {}
    for place, schema, batches in _places(context, names):
        kept = [_matching(pa.Table.from_batches([b]), names, wanted) for b in batches]
        rows = pa.concat_tables(kept) if kept else schema.empty_table()
        if rows.num_rows:
            found[place] = rows
    return found


def _places(
    context: Context, names: Sequence[str]
) -> Iterator[tuple[str, pa.Schema, Iterator[pa.RecordBatch]]]:
    keyed = set(names)
    for definition in context.snapshot.definitions():
        if isinstance(definition, Source):
            opened = context.open(definition)
            if keyed <= set(opened.schema.names):
                yield f"source/{definition.name}", opened.schema, opened.scan()
        elif isinstance(definition, (FeatureView, TrainingSet)):
            yield from _versions(context, definition.name, keyed)


def _versions(
    context: Context, name: str, keyed: set[str]
) -> Iterator[tuple[str, pa.Schema, Iterator[pa.RecordBatch]]]:
    if not home_of(context, name).delta.exists():
        return
    for info in history(context, name):
        if info.readable and info.version > 0:
            opened = open_version(context, name, info.version)
            if keyed <= set(opened.schema.names):
                yield f"dataset/{name}@{info.version}", opened.schema, opened.scan()


def _matching(rows: pa.Table, names: Sequence[str], wanted: Sequence[pa.ChunkedArray]) -> pa.Table:
    columns = [rows.column(name) for name in names]
    coded = code_keys([wanted, columns], names)
    asked = coded.codes[0]
    return rows.filter(pa.array(np.isin(coded.codes[1], asked[asked >= 0])))


def _key_columns(keys: Any, names: Sequence[str]) -> list[pa.ChunkedArray]:
    if isinstance(keys, Sequence) and not isinstance(keys, (str, bytes)):
        table = pa.Table.from_pylist([dict(row) for row in keys])
    elif isinstance(keys, Mapping):
        table = pa.table({name: pa.array(values) for name, values in keys.items()})
    else:
        table = pa.table(keys)
    for name in names:
        if name not in table.column_names:
            raise SchemaError(
                f"the keys have no column {name!r}", hint=near(name, table.column_names), column=name
            )
    return [table.column(name) for name in names]
