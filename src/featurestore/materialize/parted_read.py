"""Reading just the rows that readers take from stored views, by each entity's offsets: nothing is hashed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from featurestore.core.keys import buckets_of
from featurestore.core.time import day_of_text, epoch_days
from featurestore.materialize.stored_rows import StoredRows, Touched
from featurestore.resolve.events import Events, EventTimes, source_events
from featurestore.temporal.keys import code_keys
from featurestore.temporal.order import group_positions
from featurestore.temporal.parted import Part, take_newest
from featurestore.temporal.rows import Int32Array, Rows
from featurestore.temporal.threads import run_in_turn, thread_count


@dataclass(frozen=True, slots=True)
class NewestRows:
    """Stored rows that readers take.

    Attributes:
        table: The rows, in no particular order; one that several readers take is there several times.
        newest: `(n,)` each reader's row of `table`, -1 where it may see none.
    """

    table: pa.Table
    newest: Int32Array
    touched: Touched


@dataclass(frozen=True, slots=True)
class _Bucket:
    """The shards of one bucket and the readers in it.

    Attributes:
        shards: Their places in the manifest, newest date first, and the day of each.
        readers: Positions of the readers, by day, then as they come; `days` their days.
    """

    shards: tuple[tuple[int, int], ...]
    readers: Int32Array
    days: Int32Array


@dataclass(frozen=True, slots=True)
class _Search:
    """What is looked for, and where.

    Attributes:
        codes: The readers' code of each entity of a shard, by the shard's place in the manifest.
    """

    stored: StoredRows
    spine: Rows
    codes: Mapping[int, Int32Array]
    entities: int
    times: EventTimes
    columns: Sequence[str]
    look_back_ns: int | None


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
        columns: What to read of the rows, the time columns included.
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
    buckets = _buckets(stored, readers, keys, low_ns)
    opened = sorted(index for b in buckets for index, _ in b.shards)
    sides = [stored.mirrors[0].shard(i).entity_keys().columns for i in opened]
    coded = code_keys([keys, *sides], stored.keys, threads=threads)
    codes = dict(zip(opened, coded.codes[1:], strict=True))
    spine = readers.rows(coded.codes[0])
    search = _Search(stored, spine, codes, coded.entities, times, columns, look_back_ns)
    found: dict[int, tuple[Int32Array, pa.Table]] = {}
    count = thread_count(threads, len(spine))
    run_in_turn([partial(_read_bucket, search, bucket, found) for bucket in buckets], count)
    newest = np.full(len(spine), -1, np.int32)
    start = 0
    for who, _ in found.values():
        newest[who] = np.arange(start, start + len(who), dtype=np.int32)
        start += len(who)
    table = pa.concat_tables(t for _, t in found.values()) if found else stored.empty().select(columns)
    return NewestRows(table, newest, Touched(len(opened), len(manifest.shards), table.num_rows))


def _buckets(
    stored: StoredRows, readers: Events, keys: Sequence[pa.ChunkedArray], low_ns: int
) -> list[_Bucket]:
    """Split readers by bucket and order them by day; shards that none of them can reach are left out."""
    manifest = stored.mirrors[0].manifest
    shards: dict[int, list[tuple[int, int]]] = {}
    for index, shard in enumerate(manifest.shards):
        if shard.max_time_ns >= low_ns:
            shards.setdefault(shard.bucket, []).append((day_of_text(shard.date), index))
    bucket = buckets_of(list(keys), manifest.buckets)
    if readers.dead is not None:
        bucket[readers.dead] = manifest.buckets  # a group of their own, which nobody reads
    days = epoch_days(readers.event_ns)
    first = days.min(initial=0)
    # By day, then by bucket: the second sort keeps the order of the first.
    order, _ = group_positions(days - first, int(days.max(initial=0) - first) + 1)
    within, ends = group_positions(bucket[order], manifest.buckets + 1)
    order = order[within]
    days = days[order]
    out = []
    for number, own in shards.items():
        mine = slice(int(ends[number - 1]) if number else 0, int(ends[number]))
        if mine.start < mine.stop:
            last = int(days[mine.stop - 1])
            near = tuple((index, day) for day, index in sorted(own, reverse=True) if day <= last)
            out.append(_Bucket(near, order[mine], days[mine]))
    return out


def _read_bucket(search: _Search, bucket: _Bucket, found: dict[int, tuple[Int32Array, pa.Table]]) -> None:
    stored, codes, spine = search.stored, search.codes, search.spine
    there = np.zeros(search.entities + 1, np.bool_)  # the last place is where code -1 looks
    for index, _ in bucket.shards:
        there[codes[index]] = True
    slots = np.full(search.entities, -1, np.int32)
    pending = np.empty(0, np.int32)
    end = len(bucket.readers)
    for index, day in bucket.shards:
        begin = int(np.searchsorted(bucket.days[:end], day))
        come = bucket.readers[begin:end]
        pending = np.concatenate([come[there[spine.codes[come]]], pending])
        end = begin
        if not pending.size:
            continue
        view = stored.mirrors[0].shard(index)
        clocks = source_events(stored.columns_of(index, search.times.columns()), search.times)
        part = Part(clocks.event_ns, clocks.known_ns, view.offsets, codes[index], view.shard.max_time_ns)
        taken = take_newest(spine, pending, part, slots, look_back_ns=search.look_back_ns)
        pending = taken.left
        if taken.rows.size:
            found[index] = taken.readers, stored.taken(index, taken.rows, search.columns)
