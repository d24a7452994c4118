"""Rows of a stored view from its memory-mapped mirror: only the shards, columns and entities asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.core.keys import buckets_of
from featurestore.core.time import DAY_NS, INT64_MAX, INT64_MIN, Int64Array, day_of_text
from featurestore.errors import NotFoundError
from featurestore.materialize.context import Context, home_of
from featurestore.resolve.program import ViewProgram
from featurestore.storage.manifest import current_version, version_folder
from featurestore.storage.shards import ShardSet, ShardView, open_dataset_folder
from featurestore.storage.snapshots import Snapshot, snapshot_from_spec
from featurestore.temporal.times import times_ns

# Spines of up to so many entities read the rows of these entities alone.
_FEW_ENTITIES = 4096


@dataclass(frozen=True, slots=True)
class Reach:
    """Which rows readers can reach: their keys, and event timestamps from `low` to `high`, both included."""

    keys: tuple[pa.ChunkedArray, ...]
    low_ns: int
    high_ns: int


@dataclass(frozen=True, slots=True)
class Touched:
    """What a read touched, for `explain` and for tests."""

    shards: int
    of: int
    rows: int


@dataclass(frozen=True, slots=True)
class StoredView:
    """A view's newest published version, checked to hold just what its source holds now."""

    program: ViewProgram
    shards: ShardSet

    def read(self, reach: Reach) -> tuple[pa.Table, Touched]:
        """Read the rows that readers can reach, in canonical order, with the columns of the source.

        Raises:
            CorruptDataError: a shard is damaged.
        """
        manifest = self.shards.manifest
        wanted = np.unique(buckets_of(list(reach.keys), manifest.buckets)).tolist()
        first = INT64_MIN // DAY_NS if reach.low_ns == INT64_MIN else reach.low_ns // DAY_NS
        last = reach.high_ns // DAY_NS
        few = _few_keys(reach.keys)
        tables: list[pa.Table] = []
        touched = 0
        for index, shard in enumerate(manifest.shards):
            if shard.bucket in wanted and first <= day_of_text(shard.date) <= last:
                if shard.min_time_ns > reach.high_ns or shard.max_time_ns < reach.low_ns:
                    continue
                view = self.shards.shard(index)
                touched += 1
                tables.append(self._rows(view, few, reach))
        schema = self._empty()
        table = pa.concat_tables(tables, promote_options="none") if tables else schema
        return table, Touched(touched, len(manifest.shards), table.num_rows)

    def _empty(self) -> pa.Table:
        schema = self.shards.manifest.schema
        return pa.schema(
            [pa.field(n, schema.field(stored).type) for n, stored in self._columns()]
        ).empty_table()

    def _columns(self) -> list[tuple[str, str]]:
        """Return the source's columns and the names they are stored under."""
        names = self.shards.manifest.schema.names
        return [(n, f"source__{n}" if f"source__{n}" in names else n) for n in self.program.row_columns()]

    def _rows(self, view: ShardView, few: pa.Table | None, reach: Reach) -> pa.Table:
        ranges = None if few is None else _entity_ranges(view, few, reach, self.shards.manifest.timestamp)
        keys = set(self.program.join_keys)
        columns = {}
        for name, stored in self._columns():
            if name in keys and ranges is None:
                columns[name] = _coded_key(view, name)
            else:
                column = view.table.column(stored)
                columns[name] = column if ranges is None else column.take(ranges)
        return pa.table(columns)


def stored_view(context: Context, program: ViewProgram, current: Snapshot | None) -> StoredView | None:
    """Return a view's mirror if it answers exactly as the source would now; otherwise `None`.

    Args:
        current: What the source holds now; `None`: it cannot be reached, so the mirror is all there is.
    """
    if program.upstream is not None:
        return None
    try:
        home = home_of(context, program.ref)
    except NotFoundError:
        return None
    version = current_version(home.ipc)
    if version is None:
        return None
    shards = _opened(str(home.ipc / version_folder(version)))
    manifest = shards.manifest
    if manifest.range_ns != (None, None) or manifest.definitions.get(program.ref) != program.digest:
        return None
    pinned = [snapshot_from_spec(spec) for spec in manifest.inputs]
    if current is not None and pinned != [current]:
        return None
    return StoredView(program, shards)


@lru_cache(maxsize=64)
def _opened(folder: str) -> ShardSet:
    """Versions never change: one opening serves the process, so each shard is verified once."""
    return open_dataset_folder(folder)


def _few_keys(keys: Sequence[pa.ChunkedArray]) -> pa.Table | None:
    names = [f"k{i}" for i in range(len(keys))]
    table = pa.table(dict(zip(names, keys, strict=True)))
    if table.num_rows > 64 * _FEW_ENTITIES:
        return None
    distinct = table.group_by(names).aggregate([]).select(names)
    return distinct if distinct.num_rows <= _FEW_ENTITIES else None


def _entity_ranges(view: ShardView, few: pa.Table, reach: Reach, timestamp: str) -> pa.Array:
    """Return the positions of the rows of some entities within the reach, ascending."""
    known = view.entity_keys()
    codes = _codes_of(known, few)
    offsets = view.offsets
    event_ns, _ = times_ns(view.table.column(timestamp), timestamp)
    spans: list[Int64Array] = []
    for code in codes:
        start, end = int(offsets[code]), int(offsets[code + 1])
        rows = event_ns[start:end]
        low = int(np.searchsorted(rows, max(reach.low_ns, INT64_MIN), "left"))
        high = int(np.searchsorted(rows, min(reach.high_ns, INT64_MAX), "right"))
        spans.append(np.arange(start + low, start + high, dtype=np.int64))
    return pa.array(np.concatenate(spans) if spans else np.empty(0, np.int64))


def _codes_of(known: pa.Table, few: pa.Table) -> list[int]:
    if known.num_columns == 1:
        column = known.column(0)
        wanted = few.column(0)
        if wanted.type != column.type:
            wanted = wanted.cast(column.type)
        found = pc.index_in(wanted.drop_null(), value_set=column.combine_chunks())
        return sorted(found.drop_null().to_pylist())
    place = known.append_column("__code", pa.array(np.arange(known.num_rows)))
    renamed = few.rename_columns(known.column_names).cast(known.schema)
    joined = renamed.join(place, keys=known.column_names, join_type="inner")
    return sorted(joined.column("__code").to_pylist())


def _coded_key(view: ShardView, name: str) -> pa.DictionaryArray:
    """Return a key column as codes into the shard's entities: nothing has to be hashed again."""
    codes = view.entity_codes
    mask = codes < 0
    indices = pa.array(codes, mask=mask if mask.any() else None)
    return pa.DictionaryArray.from_arrays(indices, view.entity_keys().column(name).combine_chunks())
