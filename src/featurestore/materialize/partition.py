"""One finished partition: rows in canonical order, written as Parquet and as a packed Arrow shard."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.core.fingerprint import partition_digest
from featurestore.core.keys import distinct_keys
from featurestore.core.time import Int64Array, day_text
from featurestore.storage.delta_log import DataFile
from featurestore.storage.files import fsync_folder, make_folders
from featurestore.storage.ipc import write_ipc
from featurestore.storage.manifest import Pack, Shard
from featurestore.storage.packing import pack_table
from featurestore.storage.parquet import write_parquet
from featurestore.storage.physical import to_stored
from featurestore.temporal.times import times_ns

Int32Array = npt.NDArray[np.int32]
_NO_KEY: Final = -1


@dataclass(frozen=True, slots=True)
class Shape:
    """How partitions are laid out; the same for all of a run.

    Attributes:
        schema: The logical columns.
        keys: Key columns, in the order that sorts entities.
        clock: Event, created and sequence column, where there are such.
        packs: How features are packed.
        delta: Folder of the Delta table.
        ipc: Folder that collects the version's Arrow files.
        align: Boundary of Arrow buffers in the files.
    """

    schema: pa.Schema
    keys: tuple[str, ...]
    timestamp: str
    created: str | None
    sequence: str | None
    packs: tuple[Pack, ...]
    delta: Path
    ipc: Path
    align: int = 64


@dataclass(frozen=True, slots=True)
class Written:
    """A partition's files."""

    data: DataFile
    shard: Shard


@dataclass(frozen=True, slots=True)
class Ordered:
    """Rows in canonical order.

    Attributes:
        codes: `(n,)` entity codes in key order; -1, at the end, where a key is null.
        entities: The distinct keys, in order, as columns.
    """

    table: pa.Table
    codes: Int32Array
    entities: pa.Table


def write_partition(table: pa.Table, *, day: int, bucket: int, shape: Shape) -> Written:
    """Order, hash and write the rows of one (event date, bucket).

    Args:
        table: The rows with the logical columns, in source order.

    Raises:
        SchemaError: a column that cannot be stored exactly.
        StorageError: disk full or no permission.

    Cost:
        Sorting only where the rows are not in order; then one pass for each of hash, Parquet and Arrow.
    """
    ordered = canonical_order(table, shape)
    digest = partition_digest(ordered.table)
    data = _write_data(ordered, day, bucket, digest, shape)
    shard = _write_shard(ordered, day, bucket, digest, shape)
    return Written(data, shard)


def canonical_order(table: pa.Table, shape: Shape) -> Ordered:
    """Sort by entity key, event, created, sequence, then position (PIT-3); null keys come last."""
    columns = [table.column(k) for k in shape.keys]
    codes, uniques = distinct_keys(columns)
    keys = pa.table(dict(zip(shape.keys, uniques, strict=True)))
    rank, keys = _ranked(keys)
    # The last place serves code -1: a null key sorts behind all others.
    ranked = np.append(rank, np.int32(keys.num_rows))[codes]
    sorts: list[np.ndarray] = [ranked, *_clock(table, shape)]
    if not _is_sorted(sorts):
        order = np.lexsort(sorts[::-1])
        table = table.take(pa.array(order))
        ranked = ranked[order]
    final = np.where(ranked == keys.num_rows, np.int32(_NO_KEY), ranked.astype(np.int32))
    if any(column.num_chunks > 1 for column in table.columns):
        table = table.combine_chunks()
    return Ordered(table, final, keys)


def entity_offsets(codes: Int32Array, entities: int) -> Int64Array:
    """Return where each entity's rows begin, and where the last one's end; null keys are not covered."""
    return np.searchsorted(np.where(codes < 0, entities, codes), np.arange(entities + 1)).astype(np.int64)


def _ranked(keys: pa.Table) -> tuple[Int32Array, pa.Table]:
    """Return each distinct key's rank, and the keys in order."""
    order = pc.sort_indices(keys, sort_keys=[(name, "ascending") for name in keys.column_names])
    rank = np.empty(keys.num_rows, np.int32)
    rank[np.asarray(order)] = np.arange(keys.num_rows, dtype=np.int32)
    return rank, keys.take(order).combine_chunks()


def _clock(table: pa.Table, shape: Shape) -> list[np.ndarray]:
    out: list[np.ndarray] = []
    for name in (shape.timestamp, shape.created):
        if name is not None:
            values, null = times_ns(table.column(name), name)
            out.append(values if null is None else np.where(null, np.iinfo(np.int64).max, values))
    if shape.sequence is not None:
        column = table.column(shape.sequence).cast(pa.int64()).fill_null(np.iinfo(np.int64).min)
        out.append(column.to_numpy())
    return out


def _is_sorted(columns: Sequence[np.ndarray]) -> bool:
    rows = len(columns[0])
    undecided = np.ones(max(rows - 1, 0), np.bool_)
    for values in columns:
        before, after = values[:-1], values[1:]
        if (undecided & (after < before)).any():
            return False
        undecided &= after == before
        if not undecided.any():
            return True
    return True


def _write_data(ordered: Ordered, day: int, bucket: int, digest: str, shape: Shape) -> DataFile:
    date = day_text(day)
    relative = f"event_date={date}/bucket={bucket:04d}"
    folder = make_folders(shape.delta / relative)
    stored = to_stored(ordered.table)
    times = tuple(n for n in (shape.timestamp, shape.created) if n is not None)
    sort = tuple(n for n in (*shape.keys, *times, shape.sequence) if n is not None)
    file = write_parquet(folder, stored, times=times, sort=sort)
    fsync_folder(folder)
    minimum, maximum = {}, {}
    for name in times:
        bounds = pc.min_max(stored.column(name)).as_py()
        if bounds["min"] is not None:
            minimum[name], maximum[name] = bounds["min"], bounds["max"]
    return DataFile(
        path=f"{relative}/{file.path.name}",
        date=date,
        bucket=bucket,
        rows=file.rows,
        size=file.bytes,
        xxh3=file.xxh3,
        digest=digest,
        minimum=minimum,
        maximum=maximum,
    )


def _write_shard(ordered: Ordered, day: int, bucket: int, digest: str, shape: Shape) -> Shard:
    name = f"part-{day_text(day)}-{bucket:04d}"
    packed = pack_table(ordered.table, shape.packs, ordered.codes)
    rows = write_ipc(shape.ipc / f"{name}.arrow", packed.batch, align=shape.align)
    offsets = entity_offsets(ordered.codes, ordered.entities.num_rows)
    # Arrow columns are of one length: the keys get a null for the offset behind the last entity.
    columns = {"offset": pa.array(offsets)}
    for key in ordered.entities.column_names:
        column = ordered.entities.column(key).combine_chunks()
        columns[key] = pa.concat_arrays([column, pa.nulls(1, column.type)])
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    parted = write_ipc(shape.ipc / f"{name}.offsets.arrow", batch)
    event_ns, _ = times_ns(ordered.table.column(shape.timestamp), shape.timestamp)
    return Shard(
        file=f"{name}.arrow",
        offsets=f"{name}.offsets.arrow",
        date=day_text(day),
        bucket=bucket,
        rows=ordered.table.num_rows,
        entities=ordered.entities.num_rows,
        bytes=rows.bytes,
        xxh3=rows.xxh3,
        offsets_xxh3=parted.xxh3,
        min_time_ns=int(event_ns.min()),
        max_time_ns=int(event_ns.max()),
        digest=digest,
        nulls=packed.nulls,
    )
