"""Reading just the rows that readers take from stored views, by each entity's offsets: nothing is hashed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from featurestore.core.keys import buckets_of
from featurestore.core.time import day_of_text
from featurestore.materialize.stored_rows import StoredRows, Touched
from featurestore.resolve.events import Events, EventTimes, source_events
from featurestore.resolve.views import Newest
from featurestore.temporal.keys import code_keys
from featurestore.temporal.parted import Part, group_by_day, keep_known, record_found, take_newest
from featurestore.temporal.rows import Int32Array, Rows, scratch
from featurestore.temporal.scatter import Scattered
from featurestore.temporal.threads import run_in_turn, thread_count


@dataclass(frozen=True, slots=True)
class NewestRows:
    """Stored rows that readers take.

    Attributes:
        table: `n` rows: at each reader's place the row that it takes, null where it may see none.
    """

    table: pa.Table
    newest: Newest
    touched: Touched


@dataclass(frozen=True, slots=True)
class _Bucket:
    """The shards of one bucket and the readers in it.

    Attributes:
        shards: Their places in the manifest, newest date first.
        readers: Positions of the readers that see each shard first: those of its date and of the days after
            it, up to the next shard.
    """

    shards: tuple[int, ...]
    readers: tuple[Int32Array, ...]


@dataclass(frozen=True, slots=True)
class _Search:
    """What is looked for, where, and what was found.

    Attributes:
        codes: The readers' code of each entity of a shard, by the shard's place in the manifest.
        columns: What is read of the rows.
        found: The columns, in the readers' order.
        newest: Where rows were found, and their times.
    """

    stored: StoredRows
    spine: Rows
    codes: Mapping[int, Int32Array]
    entities: int
    times: EventTimes
    columns: Sequence[str]
    look_back_ns: int | None
    found: Sequence[Scattered]
    newest: Newest


def read_newest(
    stored: StoredRows,
    readers: Events,
    keys: Sequence[pa.ChunkedArray],
    times: EventTimes,
    columns: Sequence[str],
    *,
    low_ns: int,
    look_back_ns: int | None,
    threads: int | None,
) -> NewestRows:
    """Find and read the row that each reader takes: the newest it may see.

    Args:
        readers: `n` readers with their times.
        keys: Their key columns.
        times: The time columns of the rows.
        columns: What to read of the rows.
        low_ns: No reader can use a row that lies before.
        look_back_ns: How far back of a reader a row may matter; `None`: for ever.
        threads: `None` for one per core; buckets spread over them.

    Raises:
        CorruptDataError: a shard is damaged.

    Cost:
        A few searches per reader within its entity's rows of a date, going back a date where it finds none;
        values are read for the rows taken alone.
    """
    manifest = stored.mirrors[0].manifest
    buckets = _buckets(stored, readers, keys, low_ns, threads)
    opened = sorted(index for bucket in buckets for index in bucket.shards)
    sides = [stored.mirrors[0].shard(i).entity_keys().columns for i in opened]
    coded = code_keys([keys, *sides], stored.keys, threads=threads)
    codes = dict(zip(opened, coded.codes[1:], strict=True))
    spine = readers.rows(coded.codes[0])
    kinds = stored.empty().select(columns).schema
    found = [Scattered(field.type, len(spine), name=field.name) for field in kinds]
    newest = Newest(scratch(len(spine), np.dtype(np.int32)), scratch(len(spine), np.dtype(np.int64)))
    newest.places.fill(-1)
    search = _Search(stored, spine, codes, coded.entities, times, columns, look_back_ns, found, newest)
    count = thread_count(threads, len(spine))
    run_in_turn([partial(_read_bucket, search, bucket) for bucket in buckets], count)
    missing = np.flatnonzero(newest.places < 0)
    table = pa.table([column.finish(missing) for column in found], kinds)
    return NewestRows(table, newest, Touched(len(opened), len(manifest.shards), len(spine) - missing.size))


def _buckets(
    stored: StoredRows, readers: Events, keys: Sequence[pa.ChunkedArray], low_ns: int, threads: int | None
) -> list[_Bucket]:
    """Split readers by bucket and date; shards that none of them can reach are left out."""
    manifest = stored.mirrors[0].manifest
    shards: dict[int, list[tuple[int, int]]] = {}
    for index, shard in enumerate(manifest.shards):
        if shard.max_time_ns >= low_ns:
            shards.setdefault(shard.bucket, []).append((day_of_text(shard.date), index))
    if not shards:
        return []

    def bucket_of(lo: int, hi: int) -> Int32Array:
        bucket = buckets_of([key.slice(lo, hi - lo) for key in keys], manifest.buckets)
        if readers.dead is not None:
            bucket[readers.dead[lo:hi]] = manifest.buckets  # which nobody reads
        return bucket

    days = np.array(sorted({day for own in shards.values() for day, _ in own}), np.int32)
    order, ends = group_by_day(readers.event_ns, bucket_of, manifest.buckets, days, threads=threads)
    place = {int(day): slot for slot, day in enumerate(days)}
    out = []
    for number, own in shards.items():
        first, end = number * len(days), int(ends[(number + 1) * len(days) - 1])
        near: list[int] = []
        come: list[Int32Array] = []
        for day, index in sorted(own, reverse=True):
            group = first + place[day]
            begin = int(ends[group - 1]) if group else 0
            if near or begin < end:
                near.append(index)
                come.append(order[begin:end])
            end = begin
        if near:
            out.append(_Bucket(tuple(near), tuple(come)))
    return out


def _read_bucket(search: _Search, bucket: _Bucket) -> None:
    stored, codes, spine = search.stored, search.codes, search.spine
    there = np.zeros(search.entities + 1, np.bool_)
    for index in bucket.shards:
        there[codes[index]] = True
    there[-1] = False
    slots = np.full(search.entities, -1, np.int32)
    pending = np.empty(0, np.int32)
    for index, come in zip(bucket.shards, bucket.readers, strict=True):
        pending = np.concatenate([keep_known(spine, come, there), pending])
        if not pending.size:
            continue
        view = stored.mirrors[0].shard(index)
        clocks = source_events(stored.columns_of(index, search.times.columns()), search.times)
        part = Part(clocks.event_ns, clocks.known_ns, view.offsets, codes[index], view.shard.max_time_ns)
        taken = take_newest(spine, pending, part, slots, look_back_ns=search.look_back_ns)
        pending = taken.left
        if taken.rows.size:
            record_found(taken, part, search.newest.places, search.newest.event_ns)
            rows = stored.columns_of(index, search.columns)
            for column, found in zip(rows.columns, search.found, strict=True):
                found.put(column, taken.rows, taken.readers)
