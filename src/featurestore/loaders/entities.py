"""Entities across shards: one number per key for the whole version, and the salted hash that splits them."""

import hashlib
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.core.keys import distinct_keys, key_bytes
from featurestore.core.time import Int64Array
from featurestore.loaders.source import DatasetRows
from featurestore.loaders.splits import EntitySplit

Int32Array = npt.NDArray[np.int32]


class EntityIndex:
    """Every entity of a version, numbered by the order of its key's bytes.

    Attributes:
        codes: For each part, `(entities of the part,)` code of each of its entities.
        first_rows: For each part, `(entities + 1,)` where each entity's rows begin, as row numbers of the
            version.
        keys: Key bytes by code.

    Cost: one pass over the shards' entities (not rows); 12 bytes per entity and shard.
    """

    def __init__(self, source: DatasetRows) -> None:
        count = len(source.manifest.shards)
        # Shard files are checked before their keys are believed.
        source.touch_parts(range(count))
        views = [source.shards.shard(part) for part in range(count)]
        tables = [view.entity_keys() for view in views]
        sizes = [table.num_rows for table in tables]
        columns: list[pa.ChunkedArray] = []
        if tables:
            whole = pa.concat_tables(tables)
            columns = [whole.column(name) for name in source.manifest.entity_keys]
        if columns and len(columns[0]):
            appearance, unique = distinct_keys(columns)
            raw = key_bytes(unique)
        else:
            appearance, raw = np.zeros(sum(sizes), np.int32), [b""] * bool(sum(sizes))
        keys = [b"" if key is None else key for key in raw]
        order = sorted(range(len(keys)), key=keys.__getitem__)
        rank = np.empty(len(keys), np.int32)
        rank[order] = np.arange(len(keys), dtype=np.int32)
        self.keys = [keys[i] for i in order]
        edges = np.cumsum(sizes)[:-1]
        self.codes: list[Int32Array] = [rank[part] for part in np.split(appearance, edges)] if sizes else []
        starts = source.index.starts
        self.first_rows: list[Int64Array] = [view.offsets + starts[part] for part, view in enumerate(views)]

    def __len__(self) -> int:
        return len(self.keys)

    def codes_of(self, part: int, local: npt.NDArray[Any]) -> Int32Array:
        """Translate a part's own codes; -1 (a null key) stays."""
        table = np.append(self.codes[part], np.int32(-1))
        found: Int32Array = table[local]
        return found

    def chosen(self, split: EntitySplit, subset: str) -> npt.NDArray[np.bool_]:
        """Say for each entity whether it belongs to the subset.

        Cost: one blake2b per entity.
        """
        low, high = split.bounds(subset)
        salt = repr(split.salt).encode()
        values = np.fromiter(
            (
                int.from_bytes(hashlib.blake2b(key, digest_size=8, key=salt[:64]).digest(), "little") / 2**64
                for key in self.keys
            ),
            np.float64,
            len(self.keys),
        )
        return (values >= low) & (values < high)
