"""Rows of a stored view from its memory-mapped mirror: only the shards, columns and entities asked for."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.core.keys import buckets_of
from featurestore.core.time import INT64_MAX, INT64_MIN, Int64Array
from featurestore.materialize.context import Context, home_of
from featurestore.resolve.program import ViewProgram
from featurestore.storage.files import AnyPath
from featurestore.storage.manifest import current_version, version_folder
from featurestore.storage.shards import ShardSet, ShardView, open_dataset_folder
from featurestore.storage.snapshots import Snapshot, snapshot_from_spec
from featurestore.storage.suppression import read_ledger
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
class StoredRows:
    """The rows of one source, put together from the stored views over it.

    Views over one source hold the same rows in the same order, each with the columns that it reads.

    Attributes:
        keys: The key columns.
        columns: Each column of the source, which mirror holds it and under which name.
        mirrors: The views' newest versions, checked to hold just what the source holds now.
    """

    keys: tuple[str, ...]
    columns: tuple[tuple[str, int, str], ...]
    mirrors: tuple[ShardSet, ...]

    def names(self) -> str:
        """Say which versions of which views these are."""
        return ", ".join(f"{m.manifest.name} version {m.manifest.version}" for m in self.mirrors)

    def read(self, reach: Reach) -> tuple[pa.Table, Touched]:
        """Read the rows that readers can reach, in canonical order, with the columns of the source.

        Raises:
            CorruptDataError: a shard is damaged.
        """
        manifest = self.mirrors[0].manifest
        wanted = set(np.unique(buckets_of(list(reach.keys), manifest.buckets)).tolist())
        few = _few_keys(reach.keys)
        tables = [
            self._rows(index, few, reach)
            for index, shard in enumerate(manifest.shards)
            if shard.bucket in wanted
            and shard.min_time_ns <= reach.high_ns
            and shard.max_time_ns >= reach.low_ns
        ]
        table = pa.concat_tables(tables) if tables else self.empty()
        return table, Touched(len(tables), len(manifest.shards), table.num_rows)

    def empty(self) -> pa.Table:
        """Return the columns without rows."""
        fields = [pa.field(n, self.mirrors[m].manifest.schema.field(s).type) for n, m, s in self.columns]
        return pa.schema(fields).empty_table()

    def columns_of(self, index: int, names: Sequence[str]) -> pa.Table:
        """Return some columns of the source as one shard holds them; no page is read yet."""
        tables = [mirror.shard(index).table for mirror in self.mirrors]
        places = {name: (mirror, stored) for name, mirror, stored in self.columns}
        columns = [tables[mirror].column(stored) for mirror, stored in map(places.__getitem__, names)]
        return pa.Table.from_arrays(columns, list(names))

    def _rows(self, index: int, few: pa.Table | None, reach: Reach) -> pa.Table:
        views = [mirror.shard(index) for mirror in self.mirrors]
        timestamp = self.mirrors[0].manifest.timestamp
        ranges = None if few is None else _entity_ranges(views[0], few, reach, timestamp)
        columns = {}
        for name, mirror, stored in self.columns:
            if ranges is not None:
                columns[name] = views[mirror].table.column(stored).take(ranges)
            elif name in self.keys:
                columns[name] = _coded_key(views[mirror], name)
            else:
                columns[name] = views[mirror].table.column(stored)
        return pa.table(columns)


def stored_rows(
    context: Context, programs: Sequence[ViewProgram], columns: Sequence[str], current: Snapshot | None
) -> StoredRows | None:
    """Return stored views that hold a source's rows if they answer exactly as it would now, else `None`.

    Args:
        programs: The views that read the source; all on the same keys.
        columns: The source's columns that they read.
        current: What the source holds now; `None`: it cannot be reached, so what is stored is all there is.
    """
    mirrors = []
    for program in dict.fromkeys(p.ref for p in programs):
        mirror = _mirror(context, next(p for p in programs if p.ref == program), current)
        if mirror is None:
            return None
        mirrors.append(mirror)
    if len({_layout(m) for m in mirrors}) != 1:
        return None
    found = []
    for name in columns:
        place = _place_of(mirrors, name)
        if place is None:
            return None
        found.append((name, *place))
    return StoredRows(tuple(programs[0].join_keys), tuple(found), tuple(mirrors))


def _mirror(context: Context, program: ViewProgram, current: Snapshot | None) -> ShardSet | None:
    if program.upstream is not None:
        return None
    home = home_of(context, program.ref)
    version = current_version(home.ipc)
    if version is None:
        return None
    shards = _opened(home.ipc / version_folder(version))
    manifest = shards.manifest
    if manifest.range_ns != (None, None) or manifest.definitions.get(program.ref) is None:
        return None
    ledger = read_ledger(context.path)
    if ledger.unfinished() or ledger.lifted_since(int(manifest.erasure.get("ledger", 0))):
        return None
    pinned = [snapshot_from_spec(spec) for spec in manifest.inputs]
    return shards if current is None or pinned == [current] else None


def _layout(mirror: ShardSet) -> tuple[object, ...]:
    """What must be equal for two views' rows to lie side by side."""
    manifest = mirror.manifest
    places = tuple((s.date, s.bucket, s.rows) for s in manifest.shards)
    inputs = tuple(snapshot_from_spec(spec) for spec in manifest.inputs)
    return manifest.buckets, manifest.entity_keys, manifest.timestamp, places, inputs


def _place_of(mirrors: Sequence[ShardSet], name: str) -> tuple[int, str] | None:
    """Find a source's column: under its own name with a prefix, or as a column that is kept as it is."""
    for index, mirror in enumerate(mirrors):
        if f"source__{name}" in mirror.manifest.schema.names:
            return index, f"source__{name}"
    for index, mirror in enumerate(mirrors):
        plain = {c.name: c.role for c in mirror.manifest.columns}
        if plain.get(name) == "spine" or (name in plain and _is_raw(mirror, name)):
            return index, name
    return None


def _is_raw(mirror: ShardSet, name: str) -> bool:
    """Say whether a feature is the source's column itself: no expression, nulls kept."""
    spec = mirror.manifest.definition
    raw = {f["name"] for f in spec["features"] if f["expression"] is None}
    return spec["nulls"] == "keep" and name in raw


@lru_cache(maxsize=64)
def _opened(folder: AnyPath) -> ShardSet:
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
