"""One pass over each source: its rows, split by event date and bucket, in memory or in spill files.

Within a part rows keep the order of the source, which decides ties (PIT-2).
"""

import shutil
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final, NoReturn

import numpy as np
import pyarrow as pa

from featurestore.core.keys import buckets_of
from featurestore.core.table_rows import filter_rows
from featurestore.core.time import DAY_NS, INT64_MAX, INT64_MIN, Int64Array, day_text, epoch_days
from featurestore.errors import CorruptDataError, SchemaError
from featurestore.materialize.job import Rows
from featurestore.materialize.partition import take_rows
from featurestore.storage.files import announce, make_folders, storage_errors
from featurestore.temporal.order import group_positions
from featurestore.temporal.times import times_ns

EVERY_BUCKET: Final = -1
BEGINNING: Final = INT64_MIN // DAY_NS
_RUNS_MAX: Final = 64
# So many places of one batch are told apart without looking which there are.
_CODES_MAX: Final = 1 << 16

Place = tuple[int, int]  # day number, bucket


@dataclass(frozen=True, slots=True)
class Part:
    """The rows of one source in one (event date, bucket): spilled ones first, then those in memory.

    Attributes:
        tables: Rows in memory, in source order.
        paths: Arrow streams on disk, in source order.
    """

    rows: int
    tables: tuple[pa.Table, ...] = ()
    paths: tuple[str, ...] = ()

    def read(self) -> list[pa.Table]:
        """Return the rows; spilled ones are memory-mapped."""
        return [*(_read_stream(path) for path in self.paths), *self.tables]


@dataclass(frozen=True, slots=True)
class FileSpan:
    """The event timestamps that one file of a source holds; recorded so that its loss can be located.

    Attributes:
        whole: Whether the file was read as a whole, so that it holds no others.
    """

    name: str
    rows: int
    min_ns: int
    max_ns: int
    whole: bool = False


@dataclass(frozen=True, slots=True)
class Timed:
    """Rows of a batch that have an event timestamp.

    Attributes:
        event_ns: `(n,)` their event timestamps, from `first_ns` to `last_ns`.
        untimed: So many rows had none: no reader could see them.
    """

    rows: pa.RecordBatch
    event_ns: Int64Array
    first_ns: int
    last_ns: int
    untimed: int


def timed(batch: pa.RecordBatch, timestamp: str) -> Timed:
    """Look at the event timestamps of a batch, once for all who need them.

    Raises:
        SchemaError: the column is no time.
    """
    event_ns, null = times_ns(batch.column(timestamp), timestamp)
    if null is not None:
        batch, event_ns = filter_rows(batch, ~null), event_ns[~null]
    untimed = 0 if null is None else int(np.count_nonzero(null))
    return Timed(batch, event_ns, *_range_of(event_ns), untimed)


def _range_of(event_ns: Int64Array) -> tuple[int, int]:
    return (int(event_ns.min()), int(event_ns.max())) if event_ns.size else (INT64_MAX, INT64_MIN)


class Budget:
    """Bytes that rows may hold in memory while they wait, shared by all of a run.

    Where they are too many, those that hold most are all written to disk: what comes later finds room, and no
    file is small.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._held: dict[Held, int] = {}

    def take(self, held: "Held", size: int) -> None:
        """Add to what some rows hold; the largest spill if that is too much in all.

        Raises:
            StorageError: the disk refused.
        """
        self._held[held] = self._held.get(held, 0) + size
        if sum(self._held.values()) > self._limit:
            max(self._held, key=lambda h: self._held[h]).spill()

    def give(self, held: "Held", size: int) -> None:
        """Subtract from what some rows hold."""
        self._held[held] -= size


@dataclass(slots=True)
class _Open:
    """A part being filled."""

    rows: int = 0
    tables: list[pa.Table] = field(default_factory=list)
    bytes: int = 0
    paths: list[str] = field(default_factory=list)


class Held:
    """Rows by place, in memory or in spill files, until they are released."""

    def __init__(self, budget: Budget, spill: Path, *, in_memory: bool) -> None:
        self._budget = budget
        self._spill = spill
        self._in_memory = in_memory
        self._open: dict[Place, _Open] = {}
        self._files = 0

    def keep(self, place: Place, piece: pa.Table, size: int) -> None:
        """Add rows of so many bytes behind those of a place.

        Raises:
            StorageError: the disk refused rows that are too many for memory.
        """
        found = self._open.setdefault(place, _Open())
        found.rows += piece.num_rows
        found.tables.append(piece)
        found.bytes += size
        self._budget.take(self, size)

    def parts(self) -> dict[Place, Part]:
        """Return the parts as they are; without shared memory everything is on disk then.

        Raises:
            StorageError: the disk refused.
        """
        if not self._in_memory:
            self.spill()
        return {
            place: Part(found.rows, tuple(found.tables), tuple(found.paths))
            for place, found in self._open.items()
        }

    def rows_of(self, first: int, end: int) -> int:
        """Count the rows held of dates from `first` up to before `end`."""
        return sum(found.rows for place, found in self._open.items() if first <= place[0] < end)

    def release(self, day: int) -> None:
        """Let go of the parts of earlier dates: whoever still needs them has them."""
        for place in [p for p in self._open if p[0] < day]:
            self._budget.give(self, self._open.pop(place).bytes)

    def spill(self) -> None:
        """Write every part out: pieces of one batch share its memory, which goes with the last of them.

        Raises:
            StorageError: the disk refused.
        """
        for place in sorted(self._open):
            self._write(place)

    def _write(self, place: Place) -> None:
        found = self._open[place]
        if not found.tables:
            return
        path = self._spill / f"{place[0]}-{place[1]}-{self._files:04d}.arrows"
        self._files += 1
        _write_stream(path, found.tables)
        found.paths.append(str(path))
        found.tables.clear()
        self._budget.give(self, found.bytes)
        found.bytes = 0


class Stager:
    """Splits one source's batches into parts.

    Attributes:
        rows: How they are read.
        held: The parts.
        schema: The columns, `None` before the first batch.
        dropped: Rows without an event timestamp: no reader could see them.
        complete_day: Rows of earlier dates have been handed out: none may come any more.
    """

    def __init__(
        self,
        rows: Rows,
        *,
        buckets: int,
        held: Held,
        spine: bool,
        range_ns: tuple[int | None, int | None] = (None, None),
        places: "Wanted | None" = None,
    ) -> None:
        self.rows = rows
        self.held = held
        self._buckets = buckets
        self._spine = spine
        self._low = INT64_MIN if range_ns[0] is None else range_ns[0]
        self._high = INT64_MAX if range_ns[1] is None else range_ns[1] - 1
        self._wanted = places
        self.dropped = 0
        self.schema: pa.Schema | None = None
        self.complete_day = BEGINNING

    def add(self, batch: Timed) -> None:
        """Split the rows of one batch, which may have more columns, and keep the pieces.

        Raises:
            SchemaError: a row of a spine has no event timestamp.
            CorruptDataError: rows of dates that the statistics of the source's files said were past.
            StorageError: the disk refused rows that are too many for memory.
        """
        table = pa.Table.from_batches([batch.rows.select(list(self.rows.columns))])
        self.schema = table.schema
        self._leave_out(batch.untimed)
        event_ns, first_ns, last_ns = batch.event_ns, batch.first_ns, batch.last_ns
        if first_ns < self._low or last_ns > self._high:
            keep = (event_ns >= self._low) & (event_ns <= self._high)
            table, event_ns = filter_rows(table, keep), event_ns[keep]
            first_ns, last_ns = _range_of(event_ns)
        if table.num_rows == 0:
            return
        if first_ns // DAY_NS < self.complete_day:
            self._refuse()
        row_bytes = table.nbytes / table.num_rows
        days = first_ns // DAY_NS, last_ns // DAY_NS
        for place, piece in _pieces(table, event_ns, days, self._bucket_of(table), self._buckets):
            if self._wanted is None or self._wanted.has(*place):
                self.held.keep(place, piece, round(piece.num_rows * row_bytes))

    def _leave_out(self, untimed: int) -> None:
        self.dropped += untimed
        if untimed and self._spine:
            name, timestamp = self.rows.source.name, self.rows.times.timestamp
            raise SchemaError(
                f"{untimed} rows of the spine {name!r} have no event timestamp {timestamp!r}",
                hint="every example needs a time; filter these rows in the source's query",
                source=name,
                rows=untimed,
            )

    def _refuse(self) -> NoReturn:
        name = self.rows.source.name
        raise CorruptDataError(
            f"source {name!r} holds rows of dates before {day_text(self.complete_day)} where the statistics "
            "of its files say that all rows are later",
            hint="the statistics in these Parquet files are wrong; write the files again",
            source=name,
        )

    def _bucket_of(self, table: pa.Table) -> np.ndarray | None:
        if self.rows.keys is None:
            return None
        return buckets_of([table.column(k) for k in self.rows.keys], self._buckets)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which parts a run needs: day spans, per bucket or for all.

    Attributes:
        spans: First and last day, both included, by bucket; `EVERY_BUCKET` for any.
    """

    spans: dict[int, tuple[tuple[int, int], ...]]

    def has(self, day: int, bucket: int) -> bool:
        """Say whether a part is needed."""
        if bucket == EVERY_BUCKET:
            return any(a <= day <= b for spans in self.spans.values() for a, b in spans)
        return any(a <= day <= b for key in (bucket, EVERY_BUCKET) for a, b in self.spans.get(key, ()))

    def range_days(self) -> tuple[int, int] | None:
        """Return the first and last day of all spans, `None` without any."""
        flat = [span for spans in self.spans.values() for span in spans]
        return (min(a for a, _ in flat), max(b for _, b in flat)) if flat else None


def united(wanted: Sequence[Wanted | None]) -> Wanted | None:
    """Return what several readers of a source need together; `None`: all."""
    spans: dict[int, tuple[tuple[int, int], ...]] = {}
    for one in wanted:
        if one is None:
            return None
        for bucket, found in one.spans.items():
            spans[bucket] = (*spans.get(bucket, ()), *found)
    return Wanted(spans)


def remove_spill(folder: Path) -> None:
    """Remove a run's spill files."""
    shutil.rmtree(folder, ignore_errors=True)


def concat_parts(parts: Iterable[Part], schema: pa.Schema) -> pa.Table:
    """Return the rows of several parts, one after the other."""
    tables = [table for part in parts for table in part.read()]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _pieces(
    table: pa.Table, event_ns: Int64Array, days: tuple[int, int], buckets: np.ndarray | None, count: int
) -> Iterator[tuple[Place, pa.Table]]:
    """Split rows by (day, bucket), keeping their order within each; long runs are sliced without a copy.

    Args:
        days: The first and the last day of the rows.
        buckets: `(n,)` the bucket of each, below `count`; `None`: there are none.
    """
    first, last = days
    places = (last - first + 1) * (1 if buckets is None else count)
    if first == last:
        code = np.zeros(len(event_ns), np.int32) if buckets is None else buckets
    else:
        code = epoch_days(event_ns) - np.int32(first)
        if buckets is not None:
            code = (code if places <= _CODES_MAX else code.astype(np.int64)) * count + buckets
    changes = code[1:] != code[:-1]
    if np.count_nonzero(changes) < _RUNS_MAX:
        edges = np.flatnonzero(changes) + 1
        bounds = [0, *edges.tolist(), len(code)]
        for start, end in pairwise(bounds):
            yield _place(int(code[start]), first, buckets, count), table.slice(start, end - start)
        return
    there = None
    if places > _CODES_MAX:
        there, inverse = np.unique(code, return_inverse=True)
        code, places = inverse.astype(np.int32), len(there)
    order, ends = group_positions(code, places)
    table = take_rows(table, order, threads=1)
    start = 0
    for group, end in enumerate(ends.tolist()):
        if end > start:
            own = group if there is None else int(there[group])
            yield _place(own, first, buckets, count), table.slice(start, end - start)
        start = end


def _place(code: int, first: int, buckets: np.ndarray | None, count: int) -> Place:
    if buckets is None:
        return first + code, EVERY_BUCKET
    return first + code // count, code % count


def parked(path: Path, table: pa.Table) -> pa.Table:
    """Move a table to a spill file and return it memory-mapped; a file of this name is replaced.

    Raises:
        StorageError: the disk refused.
    """
    with storage_errors("remove", path):
        path.unlink(missing_ok=True)  # who has mapped it keeps its bytes
    _write_stream(path, [table])
    return _read_stream(str(path))


def _write_stream(path: Path, tables: Sequence[pa.Table]) -> None:
    make_folders(path.parent)
    announce("spill", path)
    with (
        storage_errors("write", path),
        pa.OSFile(str(path), "wb") as sink,
        pa.ipc.new_stream(sink, tables[0].schema) as writer,
    ):
        for table in tables:
            writer.write_table(table)


def _read_stream(path: str) -> pa.Table:
    with storage_errors("read", path):
        return pa.ipc.open_stream(pa.memory_map(path)).read_all()
