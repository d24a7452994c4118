"""One finished partition: rows in canonical order, written as Parquet and as a packed Arrow shard."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from featurestore.core.fingerprint import partition_digest
from featurestore.core.time import INT64_MAX, INT64_MIN, Int64Array, day_text
from featurestore.materialize.durability import Durability
from featurestore.storage.delta_commit import DataFile
from featurestore.storage.files import create_folders, fsync_file
from featurestore.storage.ipc import write_ipc
from featurestore.storage.manifest import Pack, Shard
from featurestore.storage.packing import pack_table
from featurestore.storage.parquet import StagedParquet, stage_parquet
from featurestore.storage.physical import to_stored
from featurestore.storage.uploads import Upload
from featurestore.temporal.gather import gather
from featurestore.temporal.keys import code_keys
from featurestore.temporal.parted import Parted, group_rows
from featurestore.temporal.rows import Int32Array, Rows
from featurestore.temporal.times import times_ns


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
        upload: Where finished files go on to; `None`: they are where they belong.
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
    upload: Upload | None = None


@dataclass(frozen=True, slots=True)
class Written:
    """A partition's files."""

    data: DataFile
    shard: Shard


@dataclass(frozen=True, slots=True)
class RowOrder:
    """Canonical order of some rows (PIT-3).

    Attributes:
        parted: Where each row goes; entities by key, null keys last.
        entities: The distinct keys, in order, as columns.
    """

    parted: Parted
    entities: pa.Table


@dataclass(frozen=True, slots=True)
class Ordered:
    """Rows in canonical order.

    Attributes:
        codes: `(n,)` entity codes in key order; -1, at the end, where a key is null.
        offsets: `(entities + 1,)` where each entity's rows begin.
        entities: The distinct keys, in order, as columns.
    """

    table: pa.Table
    codes: Int32Array
    offsets: Int64Array
    entities: pa.Table


def write_partition(
    table: pa.Table,
    *,
    day: int,
    bucket: int,
    shape: Shape,
    durability: Durability,
    order: RowOrder | None = None,
) -> Written:
    """Order, hash and write the rows of one (event date, bucket).

    Args:
        table: The rows with the logical columns, in source order.
        durability: Forces the files to the disk and names them; they count only when it has ended.
        order: The rows are in this canonical order already.

    Raises:
        SchemaError: a column that cannot be stored exactly.
        StorageError: disk full or no permission.

    Cost:
        Sorting only where the rows are not in order; then one pass for each of hash, Parquet and Arrow.
    """
    ordered = canonical_order(table, shape) if order is None else _in_order(table, order)
    digest = partition_digest(ordered.table)
    data, file = _write_data(ordered, day, bucket, digest, shape, durability)
    written = Written(data, _write_shard(ordered, data, shape))
    durability.finish(partial(_keep, shape, file, written))
    return written


def canonical_order(table: pa.Table, shape: Shape) -> Ordered:
    """Sort by entity key, event, created, sequence, then position (PIT-3); null keys come last."""
    order = row_order(table, shape)
    positions = order.parted.positions
    return _in_order(table if positions is None else take_rows(table, positions, threads=1), order)


def row_order(table: pa.Table, shape: Shape) -> RowOrder:
    """Find the canonical order of rows; they have the key and time columns at least.

    Cost:
        One pass where each entity's rows are in time order; sorting of the distinct keys.
    """
    columns = [table.column(k) for k in shape.keys]
    coded = code_keys([columns], shape.keys, threads=1)
    grouped = group_rows(_clocked(coded.codes[0], table, shape), entities=coded.entities, threads=1)
    keys = pa.table({k: _plain(gather(c, grouped.firsts)) for k, c in zip(shape.keys, columns, strict=True)})
    ranked = np.asarray(pc.sort_indices(keys, sort_keys=[(k, "ascending") for k in shape.keys]))
    return RowOrder(grouped.parted(ranked.astype(np.int64)), keys.take(pa.array(ranked)).combine_chunks())


def take_rows(table: pa.Table, positions: Int32Array | Int64Array, *, threads: int | None) -> pa.Table:
    """Return rows by position."""
    columns = [gather(table.column(f.name), positions, threads=threads, name=f.name) for f in table.schema]
    return pa.Table.from_arrays(columns, schema=table.schema)


def _in_order(table: pa.Table, order: RowOrder) -> Ordered:
    if any(column.num_chunks > 1 for column in table.columns):
        table = table.combine_chunks()
    return Ordered(table, order.parted.codes, order.parted.offsets, order.entities)


def _plain(keys: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(keys.type):
        keys = keys.cast(keys.type.value_type)
    if pa.types.is_string_view(keys.type):
        return keys.cast(pa.large_string())
    return keys.cast(pa.large_binary()) if pa.types.is_binary_view(keys.type) else keys


def _clocked(codes: Int32Array, table: pa.Table, shape: Shape) -> Rows:
    event_ns, _ = times_ns(table.column(shape.timestamp), shape.timestamp)
    created = sequence = None
    if shape.created is not None:
        created, never = times_ns(table.column(shape.created), shape.created)
        created = created if never is None else np.where(never, np.int64(INT64_MAX), created)
    if shape.sequence is not None:
        column = table.column(shape.sequence).cast(pa.int64()).fill_null(INT64_MIN)
        sequence = np.ascontiguousarray(column.to_numpy(), np.int64)
    return Rows(codes, event_ns, created, sequence)


def _write_data(
    ordered: Ordered, day: int, bucket: int, digest: str, shape: Shape, durability: Durability
) -> tuple[DataFile, StagedParquet]:
    date = day_text(day)
    relative = f"event_date={date}/bucket={bucket:04d}"
    folder = f"{shape.delta}/{relative}"
    named = create_folders(folder)
    if shape.upload is None:
        durability.keep_names([folder, *named])
    stored = to_stored(ordered.table)
    times = tuple(n for n in (shape.timestamp, shape.created) if n is not None)
    sort = tuple(n for n in (*shape.keys, *times, shape.sequence) if n is not None)
    file = stage_parquet(folder, stored, times=times, sort=sort)
    minimum, maximum = {}, {}
    for name in times:
        bounds = pc.min_max(stored.column(name)).as_py()
        if bounds["min"] is not None:
            minimum[name], maximum[name] = bounds["min"], bounds["max"]
    data = DataFile(
        path=f"{relative}/{file.name}",
        date=date,
        bucket=bucket,
        rows=file.rows,
        size=file.bytes,
        xxh3=file.xxh3,
        digest=digest,
        minimum=minimum,
        maximum=maximum,
    )
    return data, file


def _write_shard(ordered: Ordered, data: DataFile, shape: Shape) -> Shard:
    name = f"part-{data.date}-{data.bucket:04d}"
    packed = pack_table(ordered.table, shape.packs, ordered.codes)
    rows = write_ipc(f"{shape.ipc}/{name}.arrow", packed.batch, align=shape.align, sync=False)
    # Arrow columns are of one length: the keys get a null for the offset behind the last entity.
    columns = {"offset": pa.array(ordered.offsets)}
    for key in ordered.entities.column_names:
        column = ordered.entities.column(key).combine_chunks()
        columns[key] = pa.concat_arrays([column, pa.nulls(1, column.type)])
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    parted = write_ipc(f"{shape.ipc}/{name}.offsets.arrow", batch, sync=False)
    return Shard(
        file=f"{name}.arrow",
        offsets=f"{name}.offsets.arrow",
        date=data.date,
        bucket=data.bucket,
        rows=data.rows,
        entities=ordered.entities.num_rows,
        bytes=rows.bytes,
        xxh3=rows.xxh3,
        offsets_xxh3=parted.xxh3,
        min_time_ns=data.minimum[shape.timestamp],
        max_time_ns=data.maximum[shape.timestamp],
        digest=data.digest,
        nulls=packed.nulls,
    )


def _keep(shape: Shape, file: StagedParquet, written: Written) -> None:
    """Force a partition's files to the disk, or send them on."""
    shard = written.shard
    file.finish()
    if shape.upload is None:
        fsync_file(f"{shape.ipc}/{shard.file}")
        fsync_file(f"{shape.ipc}/{shard.offsets}")
    else:
        shape.upload.send_data(shape.delta / written.data.path, written.data.path)
        shape.upload.send_shard(shape.ipc / shard.file, shard.xxh3)
        shape.upload.send_shard(shape.ipc / shard.offsets, shard.offsets_xxh3)
