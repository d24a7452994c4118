"""The sources of a run: pinned first, then read as far as the run needs them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from featurestore.core.time import DAY_NS, INT64_MAX, INT64_MIN
from featurestore.materialize.context import Context
from featurestore.materialize.job import Job, Rows
from featurestore.materialize.plan import FileStat, SourceStat, StateDays, first_day_read
from featurestore.materialize.staging import EVERY_BUCKET, FileSpan, Wanted
from featurestore.storage.snapshots import Snapshot
from featurestore.storage.sources import SourceTable, open_source


@dataclass(frozen=True, slots=True)
class Pinned:
    """A source, opened, and what it held when the run began."""

    table: SourceTable
    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Slice:
    """Which rows of a source a run wants.

    Attributes:
        wanted: Parts to keep; `None`: all.
        files: Files to read; `None`: all.
    """

    wanted: Wanted | None = None
    files: tuple[str, ...] | None = None


def pin_sources(
    context: Context, job: Job, pinned: Mapping[str, Snapshot] | None = None
) -> dict[str, Pinned]:
    """Open and pin every source of a job; with `pinned`, at exactly that content.

    Raises:
        NotFoundError: a source is not there.
        CorruptDataError: its content is not what was pinned.
    """
    out = {}
    for name, spec in job.sources().items():
        table = open_source(spec, context.path, ledger_at=context.ledger_at)
        snapshot = table.snapshot() if pinned is None else pinned[name]
        out[name] = Pinned(table, snapshot)
    return out


def reach_of(
    rows: Rows, spans: Sequence[tuple[int, int, int]], *, states: StateDays, buckets: int
) -> tuple[Wanted, set[tuple[str, int, int]]]:
    """Return the parts of a source that readers in some days can reach, and the stored states before them.

    Args:
        spans: Bucket, first and last day of the readers.
        states: Dates at whose end there is a stored state, ascending, by source and bucket.
    """
    name = rows.name
    ahead = -(-rows.look_ahead_ns // DAY_NS)
    out: dict[int, list[tuple[int, int]]] = {}
    chosen = set()
    for bucket, first, last in spans:
        # Each bucket has states of its own.
        own = range(buckets) if bucket == EVERY_BUCKET and rows.keys is not None and states else [bucket]
        for place in own:
            low, state = first_day_read(rows, first, states.get((name, place), ()))
            out.setdefault(place, []).append((low, last + ahead))
            if state is not None:
                chosen.add((name, place, state))
    return Wanted({bucket: tuple(found) for bucket, found in out.items()}), chosen


def slice_of(wanted: Wanted | None, pinned: Pinned, known: Sequence[FileSpan]) -> Slice:
    """Leave out the files that are known to hold no wanted rows."""
    if wanted is None:
        return Slice()
    edges = sorted({span for spans in wanted.spans.values() for span in spans})
    if not edges:
        return Slice(wanted, ())
    first = np.array([a for a, _ in edges])
    reached = np.maximum.accumulate(np.array([b for _, b in edges]))
    outside = set()
    for span in known:
        if not span.whole:
            continue
        before = int(np.searchsorted(first, span.max_ns // DAY_NS, side="right"))
        if before == 0 or reached[before - 1] < span.min_ns // DAY_NS:
            outside.add(span.name)
    if not outside:
        return Slice(wanted)
    return Slice(wanted, tuple(n for n in pinned.table.file_names(pinned.snapshot) if n not in outside))


def statistics_of(pinned: Pinned, known: Sequence[FileSpan]) -> SourceStat:
    """Return what is known of a source's files before they are read."""
    spans = {s.name: s for s in known}
    files = []
    for name, size in pinned.table.sized_files(pinned.snapshot):
        span = spans.get(name)
        files.append(
            FileStat(name, size)
            if span is None
            else FileStat(name, size, span.rows, span.min_ns, span.max_ns)
        )
    return SourceStat(pinned.snapshot.version, tuple(files))


def recorded(pinned: Mapping[str, Pinned], spans: Mapping[str, Sequence[FileSpan]]) -> list[dict[str, Any]]:
    """Return the inputs as a manifest records them: the pins, and the times that each file holds."""
    return [
        {
            **pinned[name].snapshot.spec(),
            "spans": [
                [s.name, s.rows, s.min_ns, s.max_ns, s.whole]
                for s in sorted(spans.get(name, ()), key=lambda s: s.name)
            ],
        }
        for name in sorted(pinned)
    ]


def plain_inputs(pinned: Mapping[str, Pinned]) -> list[dict[str, Any]]:
    """Return the pins alone: what decides the content."""
    return [pinned[name].snapshot.spec() for name in sorted(pinned)]


def merge_spans(old: Sequence[FileSpan], new: Sequence[FileSpan]) -> list[FileSpan]:
    """Join what is known of the files' times; a file seen twice gets the wider span."""
    out = {s.name: s for s in old}
    for span in new:
        known = out.get(span.name)
        if known is not None:
            span = FileSpan(  # noqa: PLW2901 -- the same span, wider
                span.name,
                max(known.rows, span.rows),
                min(known.min_ns, span.min_ns),
                max(known.max_ns, span.max_ns),
                known.whole or span.whole,
            )
        out[span.name] = span
    return list(out.values())


def time_range(wanted: Wanted | None, range_ns: tuple[int | None, int | None]) -> tuple[int, int] | None:
    """Return `[start, end)` of the event timestamps to read, `None` for all."""
    days = None if wanted is None else wanted.range_days()
    low = INT64_MIN if range_ns[0] is None else range_ns[0]
    high = INT64_MAX if range_ns[1] is None else range_ns[1]
    if days is not None:
        low, high = max(low, days[0] * DAY_NS), min(high, (days[1] + 1) * DAY_NS)
    return None if (low, high) == (INT64_MIN, INT64_MAX) else (low, high)
