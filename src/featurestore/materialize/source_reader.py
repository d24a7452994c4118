"""One pass over a source: its rows split into parts, and how far in time they are complete."""

from collections.abc import Callable, Generator, Sequence
from dataclasses import replace

import pyarrow as pa

from featurestore.core.time import DAY_NS, INT64_MAX, INT64_MIN
from featurestore.materialize.changes import FOREVER
from featurestore.materialize.inputs import Pinned, Slice, time_range
from featurestore.materialize.job import Rows
from featurestore.materialize.read_ahead import read_ahead
from featurestore.materialize.staging import BEGINNING, FileSpan, Stager, Timed, timed
from featurestore.storage.source_readers import GroupTimes
from featurestore.storage.sources import NamedBatch


class SourceReader:
    """Reads one source in its order, once for all ways in which its rows are split, as far as it is asked to.

    Attributes:
        stagers: Have the rows.
        day: Every row of earlier dates has been read. It stays `BEGINNING` to the end where the footers of
            the source's files do not tell their times; past the end it is behind every date.
    """

    def __init__(
        self,
        pinned: Pinned,
        chosen: Slice,
        stagers: Sequence[Stager],
        *,
        times: Sequence[tuple[str, Sequence[GroupTimes]]] | None,
        range_ns: tuple[int | None, int | None],
        heard: Callable[[int], None],
    ) -> None:
        self.stagers = stagers
        self.day = BEGINNING
        self._rows = stagers[0].rows
        self._pinned = pinned
        self._spans: dict[str, FileSpan] = {}
        self._partly: set[str] = set()
        self._heard = heard
        span = time_range(chosen.wanted, range_ns)
        # Rows before this are read with others of their row group at most; nobody waits for them.
        self._low_ns = INT64_MIN if span is None else span[0]
        self._ahead = max(_ahead(stager.rows) for stager in stagers)
        self._behind = None if times is None else _behind(times)
        batches = pinned.table.scan_named(
            list(dict.fromkeys(c for stager in stagers for c in stager.rows.columns)),
            snapshot=pinned.snapshot,
            time_range_ns=span,
            files=chosen.files,
            partly=self._partly,
        )
        self._batches: Generator[NamedBatch, None, None] = read_ahead(batches)

    def schema(self, stager: Stager) -> pa.Schema:
        """Return the columns that one of the stagers keeps."""
        columns = list(stager.rows.columns)
        return stager.schema or self._pinned.table.schema.empty_table().select(columns).schema

    @property
    def reached(self) -> int:
        """Before which date readers have all that they need of it, what lies ahead of them included."""
        return self.day if self.is_done else max(BEGINNING, self.day - self._ahead)

    @property
    def is_done(self) -> bool:
        """Whether all of it has been read."""
        return self.day > FOREVER

    def read_on(self) -> None:
        """Take in the next batch, or find that there is none.

        Raises:
            CorruptDataError: the content is not what was pinned, or damaged.
            SchemaError: a missing column, or a spine row without a time.
            StorageError: the disk refused rows that are too many for memory.
        """
        found = next(self._batches, None)
        if found is None:
            self.day = FOREVER + 1
            return
        batch = found.rows
        if self._rows.renamed:  # rows of erased keys by the names of the entity's own are left out already
            batch = self._pinned.table.erased.remaining(batch, self._rows.renamed)
        rows = timed(batch, self._rows.times.timestamp)
        for stager in self.stagers:
            stager.add(rows)
        self._heard(batch.num_rows)
        self._widen(found.file, rows)
        if self._behind is not None:
            ahead_ns = max(self._low_ns, min(found.ahead_ns, self._behind[found.file]))
            if ahead_ns < INT64_MAX:  # otherwise nothing follows, as the next call finds
                self.day = max(self.day, ahead_ns // DAY_NS)

    def release(self, end: int, needed: Callable[[Rows], int]) -> None:
        """Let go of rows: readers before `end` have theirs, later ones need none of before `needed`."""
        for stager in self.stagers:
            stager.held.release(needed(stager.rows))
            stager.complete_day = end + _ahead(stager.rows)

    def spans(self) -> list[FileSpan]:
        """Return the times that the files read hold."""
        return [replace(s, whole=s.name not in self._partly) for s in self._spans.values()]

    def close(self) -> None:
        """Stop reading."""
        self._batches.close()

    def _widen(self, name: str, rows: Timed) -> None:
        if rows.event_ns.size == 0:
            return
        low, high = rows.first_ns, rows.last_ns
        known = self._spans.get(name)
        if known is not None:
            low, high = min(low, known.min_ns), max(high, known.max_ns)
        self._spans[name] = FileSpan(name, rows.event_ns.size + (known.rows if known else 0), low, high)


def _ahead(rows: Rows) -> int:
    return -(-rows.look_ahead_ns // DAY_NS)


def _behind(times: Sequence[tuple[str, Sequence[GroupTimes]]]) -> dict[str, int]:
    """Return the smallest event timestamp in the files behind each, in the order in which they are read."""
    out = {}
    least = INT64_MAX
    for name, groups in reversed(times):
        out[name] = least
        least = min([least, *(g.min_ns for g in groups)])
    return out
