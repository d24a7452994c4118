"""One pass over each source: its rows, split by event date and bucket, in memory or in spill files.

Within a part rows keep the order of the source, which decides ties (PIT-2).
"""

import shutil
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from featurestore.core.keys import buckets_of
from featurestore.core.time import INT64_MAX, INT64_MIN, Int64Array, epoch_days
from featurestore.errors import SchemaError
from featurestore.materialize.job import Rows
from featurestore.storage.files import announce, make_folders, storage_errors
from featurestore.temporal.times import times_ns

EVERY_BUCKET: Final = -1
_RUNS_MAX: Final = 64

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
class Staged:
    """A source, split.

    Attributes:
        parts: By day number and bucket; bucket `EVERY_BUCKET` where every bucket needs the rows.
        dropped: Rows without an event timestamp: no reader could see them.
        max_ns: The greatest event timestamp, `INT64_MIN` without rows.
    """

    schema: pa.Schema
    parts: dict[Place, Part]
    dropped: int
    max_ns: int

    def of_bucket(self, bucket: int) -> dict[Place, Part]:
        """Return the parts that readers of a bucket may need."""
        return {p: part for p, part in self.parts.items() if p[1] in {bucket, EVERY_BUCKET}}


class Budget:
    """Bytes that staged rows may hold in memory, shared by all sources of a run."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.held = 0
        self._lock = threading.Lock()

    def take(self, size: int) -> bool:
        """Add to what is held; says whether that is still within the limit."""
        with self._lock:
            self.held += size
            return self.held <= self.limit

    def give(self, size: int) -> None:
        """Subtract from what is held."""
        with self._lock:
            self.held -= size


@dataclass(slots=True)
class _Open:
    """A part being filled."""

    rows: int = 0
    tables: list[pa.Table] = field(default_factory=list)
    bytes: int = 0
    paths: list[str] = field(default_factory=list)


class Stager:
    """Collects one source's batches into parts."""

    def __init__(
        self,
        rows: Rows,
        *,
        buckets: int,
        budget: Budget,
        spill: Path,
        in_memory: bool,
        spine: bool,
        range_ns: tuple[int | None, int | None] = (None, None),
        places: "Wanted | None" = None,
    ) -> None:
        self._rows = rows
        self._buckets = buckets
        self._budget = budget
        self._spill = spill
        self._in_memory = in_memory
        self._spine = spine
        self._low = INT64_MIN if range_ns[0] is None else range_ns[0]
        self._high = INT64_MAX if range_ns[1] is None else range_ns[1] - 1
        self._wanted = places
        self._open: dict[Place, _Open] = {}
        self._dropped = 0
        self._max_ns = INT64_MIN
        self._schema: pa.Schema | None = None

    def add(self, batch: pa.RecordBatch) -> None:
        """Split one batch and keep its pieces.

        Raises:
            SchemaError: the event timestamps of a spine hold nulls, or a column is no time.
        """
        self._schema = batch.schema
        if batch.num_rows == 0:
            return
        table, event_ns = self._timed(pa.Table.from_batches([batch]))
        keep = (event_ns >= self._low) & (event_ns <= self._high)
        if not keep.all():
            table, event_ns = table.filter(pa.array(keep)), event_ns[keep]
        if table.num_rows == 0:
            return
        self._max_ns = max(self._max_ns, int(event_ns.max()))
        days = epoch_days(event_ns)
        buckets = self._bucket_of(table)
        for (day, bucket), piece in _pieces(table, days, buckets):
            if self._wanted is None or self._wanted.has(day, bucket):
                self._keep((day, bucket), piece)

    def finish(self, schema: pa.Schema) -> Staged:
        """Return the parts; without shared memory everything is on disk then."""
        if not self._in_memory:
            self._spill_all()
        parts = {
            place: Part(found.rows, tuple(found.tables), tuple(found.paths))
            for place, found in self._open.items()
        }
        return Staged(self._schema or schema, parts, self._dropped, self._max_ns)

    def _timed(self, table: pa.Table) -> tuple[pa.Table, Int64Array]:
        name = self._rows.times.timestamp
        event_ns, null = times_ns(table.column(name), name)
        if null is None:
            return table, event_ns
        count = int(np.count_nonzero(null))
        if self._spine:
            raise SchemaError(
                f"{count} rows of the spine {self._rows.source.name!r} have no event timestamp {name!r}",
                hint="every example needs a time; filter these rows in the source's query",
                source=self._rows.source.name,
                rows=count,
            )
        self._dropped += count
        return table.filter(pa.array(~null)), event_ns[~null]

    def _bucket_of(self, table: pa.Table) -> np.ndarray | None:
        if self._rows.keys is None:
            return None
        return buckets_of([table.column(k) for k in self._rows.keys], self._buckets)

    def _keep(self, place: Place, piece: pa.Table) -> None:
        found = self._open.setdefault(place, _Open())
        size = piece.nbytes
        found.rows += piece.num_rows
        found.tables.append(piece)
        found.bytes += size
        if not self._budget.take(size):
            self._spill_all()

    def _spill_all(self) -> None:
        """Write every part out: pieces of one batch share its memory, which goes with the last of them."""
        for place in sorted(self._open):
            self._write(place)

    def _write(self, place: Place) -> None:
        found = self._open[place]
        if not found.tables:
            return
        make_folders(self._spill)
        path = self._spill / f"{place[0]}-{place[1]}-{len(found.paths):04d}.arrows"
        announce("spill", path)
        with (
            storage_errors("write", path),
            pa.OSFile(str(path), "wb") as sink,
            pa.ipc.new_stream(sink, found.tables[0].schema) as writer,
        ):
            for table in found.tables:
                writer.write_table(table)
        found.paths.append(str(path))
        found.tables.clear()
        self._budget.give(found.bytes)
        found.bytes = 0


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


def remove_spill(folder: Path) -> None:
    """Remove a run's spill files."""
    shutil.rmtree(folder, ignore_errors=True)


def concat_parts(parts: Iterable[Part], schema: pa.Schema) -> pa.Table:
    """Return the rows of several parts, one after the other."""
    tables = [table for part in parts for table in part.read()]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def _pieces(
    table: pa.Table, days: np.ndarray, buckets: np.ndarray | None
) -> Iterator[tuple[Place, pa.Table]]:
    """Split rows by (day, bucket), keeping their order within each; long runs are sliced without a copy."""
    code = days.astype(np.int64) << 16
    if buckets is not None:
        code |= buckets
    edges = np.flatnonzero(np.diff(code)) + 1
    if edges.size < _RUNS_MAX:
        bounds = [0, *edges.tolist(), len(code)]
        for start, end in pairwise(bounds):
            yield _place(int(code[start]), buckets), table.slice(start, end - start)
        return
    lowest = int(code.min())
    width = int(code.max()) - lowest
    # NumPy sorts 16-bit keys by counting; days and buckets of one batch nearly always fit.
    short = (code - lowest).astype(np.uint16) if width < 1 << 16 else code
    order = np.argsort(short, kind="stable")
    ordered = code[order]
    table = table.take(pa.array(order))
    bounds = [0, *(np.flatnonzero(np.diff(ordered)) + 1).tolist(), len(ordered)]
    for start, end in pairwise(bounds):
        yield _place(int(ordered[start]), buckets), table.slice(start, end - start)


def _place(code: int, buckets: np.ndarray | None) -> Place:
    return code >> 16, EVERY_BUCKET if buckets is None else code & 0xFFFF


def _read_stream(path: str) -> pa.Table:
    with storage_errors("read", path):
        return pa.ipc.open_stream(pa.memory_map(path)).read_all()
