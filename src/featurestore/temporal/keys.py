"""Entity keys of several tables as shared, dense int32 codes."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.errors import SchemaError
from featurestore.temporal.rows import Int32Array


@dataclass(frozen=True, slots=True)
class KeyCodes:
    """Entity codes of each side.

    Attributes:
        codes: per side `(n,)`; equal keys have equal codes on every side, -1 where a key column is null.
        entities: how many distinct keys there are; codes are 0 to entities - 1, in no promised order.
    """

    codes: tuple[Int32Array, ...]
    entities: int


Column = pa.ChunkedArray | pa.Array


def code_keys(sides: Sequence[Sequence[Column]], names: Sequence[str]) -> KeyCodes:
    """Give every distinct key a number that all sides share.

    Composite keys are compared part by part, so (1, 23) is not (12, 3).

    Args:
        sides: the key columns of each table, in the same order on every side; no column at all makes
            one entity of all rows.
        names: what messages call each key column.

    Raises:
        SchemaError: a column whose type cannot be a key, or whose kind differs between the sides.
    """
    counts = [len(side[0]) if side else 0 for side in sides]
    codes = np.zeros(sum(counts), np.int64)
    entities = 1
    for place, name in enumerate(names):
        column, size = _code_column([side[place] for side in sides], name)
        null = (codes < 0) | (column < 0)
        mixed = codes * np.int64(size) + column
        mixed[null] = -1
        values, inverse = np.unique(mixed, return_inverse=True)
        has_null = int(len(values) > 0 and values[0] < 0)
        codes, entities = inverse.astype(np.int64) - has_null, len(values) - has_null
    edges = np.cumsum([0, *counts])
    parts = tuple(codes[a:b].astype(np.int32) for a, b in zip(edges[:-1], edges[1:], strict=True))
    return KeyCodes(parts, entities)


def _code_column(columns: Sequence[Column], name: str) -> tuple[np.ndarray, int]:
    kinds = {_kind(column.type, name) for column in columns}
    if len(kinds) > 1:
        raise SchemaError(
            f"key column {name!r} is {' on one side and '.join(str(c.type) for c in columns)} on the other",
            column=name,
        )
    kind = kinds.pop()
    target = {"string": pa.large_string(), "binary": pa.large_binary()}.get(kind)
    if target is None and kind == "integer":
        target = pa.int64()
    chunks: list[pa.Array] = []
    for column in columns:
        for chunk in column.chunks if isinstance(column, pa.ChunkedArray) else [column]:
            plain = chunk.dictionary_decode() if pa.types.is_dictionary(chunk.type) else chunk
            chunks.append(plain if target is None else plain.cast(target))
    encoded = pa.chunked_array(chunks).combine_chunks().dictionary_encode()
    codes = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return codes, max(1, len(encoded.dictionary))


def _kind(kind: pa.DataType, name: str) -> str:
    if pa.types.is_dictionary(kind):
        return _kind(kind.value_type, name)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind):
        return "string"
    if (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    ):
        return "binary"
    if pa.types.is_integer(kind):
        return "integer"
    if pa.types.is_boolean(kind) or pa.types.is_temporal(kind) or pa.types.is_decimal(kind):
        return str(kind)
    raise SchemaError(
        f"key column {name!r} is of type {kind}, which cannot be a key",
        hint="strings, integers, binary, bool, dates and times can",
        column=name,
    )
