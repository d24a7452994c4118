"""Entity codes that stay the same from batch to batch."""

from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.core.time import Int64Array
from featurestore.errors import SchemaError
from featurestore.temporal.key_kinds import key_kind
from featurestore.temporal.keys import code_keys
from featurestore.temporal.rows import Int32Array
from featurestore.temporal.times import one_array


class KeyNumbers:
    """A growing dictionary of keys; only the distinct keys of a batch are looked up, not its rows."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names = names
        self._kinds: tuple[str, ...] | None = None
        self._codes: dict[Any, int] = {}

    def __len__(self) -> int:
        return len(self._codes) if self.names else 1

    def check(self, columns: list[pa.ChunkedArray]) -> None:
        """Check that the key columns are of the kinds seen so far.

        Raises:
            SchemaError: a type that cannot be a key, or of another kind than before.
        """
        kinds = tuple(key_kind(c.type, n) for c, n in zip(columns, self.names, strict=True))
        if self._kinds is None:
            self._kinds = kinds
        for name, kind, before in zip(self.names, kinds, self._kinds, strict=True):
            if kind != before:
                raise SchemaError(
                    f"key column {name!r} is {kind} here and was {before} on another push",
                    hint="cast one of them: keys of different kinds are never equal",
                    column=name,
                )

    def code(self, columns: list[pa.ChunkedArray], rows: int) -> Int32Array:
        """Return a code per row, -1 where a key is null; new keys get new codes.

        Cost: O(rows), and one dictionary look-up per distinct key of the batch.
        """
        if not self.names:
            return np.zeros(rows, np.int32)
        if rows == 0:
            return np.zeros(0, np.int32)
        coded = code_keys([columns], self.names, threads=1)
        local = coded.codes[0]
        if coded.entities == 0:
            return local
        first = _first_places(local, coded.entities)
        used = np.flatnonzero(first >= 0)
        keys = _keys_at([one_array(c) for c in columns], first[used])
        known = self._codes
        table = np.full(coded.entities + 1, -1, np.int32)
        table[used] = np.fromiter((known.setdefault(key, len(known)) for key in keys), np.int32, len(used))
        out: Int32Array = table[local]
        return out

    def forget_all_but(self, live: npt.NDArray[np.bool_]) -> Int32Array:
        """Keep the keys whose code is marked; return `(len,)` their new codes, -1 for forgotten ones."""
        renumbered = np.where(live, np.cumsum(live) - 1, -1).astype(np.int32)
        self._codes = {key: int(renumbered[code]) for key, code in self._codes.items() if live[code]}
        return renumbered


def _first_places(codes: Int32Array, entities: int) -> Int64Array:
    """Return the first place of each code, -1 for an unused one; a last slot takes the nulls."""
    first = np.full(entities + 1, -1, np.int64)
    first[codes[::-1]] = np.arange(len(codes) - 1, -1, -1)
    return first[:-1]


def _keys_at(columns: list[pa.Array], places: Int64Array) -> list[Any]:
    """Return the keys at some places as Python values, tuples where there are several columns."""
    parts = []
    for column in columns:
        values = column.take(pa.array(places))
        if isinstance(values, pa.ExtensionArray):
            values = values.storage
        if pa.types.is_dictionary(values.type):
            values = values.cast(values.type.value_type)
        if pa.types.is_temporal(values.type):
            values = values.view(pa.int32() if values.type.bit_width == 32 else pa.int64())
        parts.append(values.to_pylist())
    return parts[0] if len(parts) == 1 else list(zip(*parts, strict=True))
