"""Strings as codes: the vocabulary of a column, and the codes of its values."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.loaders.gather import StoredColumn
from featurestore.loaders.source import DatasetRows
from featurestore.storage.shards import ShardView


def vocabulary_of(
    source: DatasetRows, name: str, given: Mapping[str, Sequence[str]] | None = None
) -> tuple[str, ...]:
    """Return a column's values in the order of their codes from 1 on.

    Taken from `given` (fitted on the train split, say), else from the manifest, else the distinct values of
    the whole version in the order of their UTF-8 bytes, which no shard layout changes. Cost in the last
    case: one pass over the column.
    """
    if given is not None and name in given:
        return tuple(given[name])
    stored = source.manifest.vocabularies.get(name)
    if stored is not None:
        return tuple(stored)
    count = len(source.manifest.shards)
    source.touch_parts(range(count))
    found: set[str] = set()
    for part in range(count):
        found.update(
            v for v in pc.unique(source.shards.shard(part).column(name)).to_pylist() if v is not None
        )
    return tuple(sorted(found, key=str.encode))


def codes_column(source: DatasetRows, name: str, vocabulary: Sequence[str]) -> StoredColumn:
    """Add the column of int32 codes: 0 for null and for values outside the vocabulary, else 1 + place.

    Cost: one hash lookup per row when a shard is opened, and 4 bytes per row kept.
    """
    values = pa.array(vocabulary, pa.large_string())

    def encode(part: int, view: ShardView) -> np.ndarray[tuple[int, ...], np.dtype[np.int32]]:
        del part
        places = pc.index_in(view.column(name).cast(pa.large_string()), value_set=values)
        return np.asarray(pc.fill_null(places, -1), dtype=np.int32) + np.int32(1)

    return source.derive(f"\0codes\0{name}", np.dtype(np.int32), 1, encode)
