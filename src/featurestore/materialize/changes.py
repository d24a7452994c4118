"""What moved in the sources since a version, and which partitions that can reach; all others are kept."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from featurestore.core.keys import buckets_of
from featurestore.core.time import DAY_NS, INT64_MAX, day_of_text, epoch_days
from featurestore.materialize.inputs import Pinned
from featurestore.materialize.job import Job, Rows
from featurestore.materialize.staging import EVERY_BUCKET, FileSpan
from featurestore.storage.manifest import Manifest
from featurestore.storage.snapshots import Snapshot, snapshot_from_spec
from featurestore.temporal.times import times_ns

FOREVER = INT64_MAX // DAY_NS
Span = tuple[int, int, int]  # bucket or EVERY_BUCKET, first day, last day


@dataclass(frozen=True, slots=True)
class Changes:
    """What a run has to compute again.

    Attributes:
        spans: Readers that a change can reach: bucket, first and last day.
    """

    spans: tuple[Span, ...]

    def reaches(self, day: int, bucket: int) -> bool:
        """Say whether a partition has to be computed again."""
        return any(b in {bucket, EVERY_BUCKET} and first <= day <= last for b, first, last in self.spans)


@dataclass(frozen=True, slots=True)
class Moved:
    """Rows of one source that came or went since a version, as one of its readers sees them."""

    rows: Rows
    spine: bool
    bucket: int
    min_ns: int
    max_ns: int


@dataclass(frozen=True, slots=True)
class Comparison:
    """A source now, beside what a version was made from.

    Attributes:
        moved: Rows that came or went.
        kept: Times of the unchanged files, as recorded by earlier runs.
    """

    moved: tuple[Moved, ...]
    kept: tuple[FileSpan, ...]


def compare_sources(
    job: Job, previous: Manifest, pinned: Mapping[str, Pinned]
) -> dict[str, Comparison | None]:
    """Compare every source with what an earlier version was made from.

    Returns:
        By source; `None` where it was replaced as a whole, is new, or changed behind a query.

    Cost:
        Reads the times and keys of new files only.
    """
    recorded = {spec["source"]: spec for spec in previous.inputs}
    out: dict[str, Comparison | None] = {}
    for name, source in pinned.items():
        if name not in recorded:
            out[name] = None
            continue
        known = {s[0]: FileSpan(*s) for s in recorded[name].get("spans", ())}
        out[name] = _compared(job, name, source, snapshot_from_spec(recorded[name]), known)
    return out


def find_changes(job: Job, previous: Manifest, compared: Mapping[str, Comparison | None]) -> Changes | None:
    """Say which partitions of a version the changes can reach.

    Returns:
        `None` where everything has to be computed: other definitions, another layout, a source that was
        replaced as a whole, or changed behind a query.
    """
    same = (
        dict(previous.definitions) == dict(job.definitions)
        and previous.buckets == job.buckets
        and previous.range_ns[0] == job.range_ns[0]
        and previous.schema.equals(job.schema)
    )
    if not same:
        return None
    spans: list[Span] = []
    if previous.range_ns[1] is not None:
        spans.append((EVERY_BUCKET, previous.range_ns[1] // DAY_NS, FOREVER))
    for comparison in compared.values():
        if comparison is None:
            return None
        spans += [_reached(m) for m in comparison.moved]
    return Changes(tuple(dict.fromkeys(spans)))


def _compared(
    job: Job, name: str, source: Pinned, old: Snapshot, known: Mapping[str, FileSpan]
) -> Comparison | None:
    new = source.snapshot
    if old == new:
        return Comparison((), tuple(known.values()))
    if old.kind != new.kind or old.table_id != new.table_id or old.schema != new.schema:
        return None
    if source.table.spec.query is not None:
        return None
    before, after = _contents(source, old), _contents(source, new)
    gone = [f for f, content in before.items() if after.get(f) != content]
    come = [f for f, content in after.items() if before.get(f) != content]
    moved: list[Moved] = []
    for rows, spine in _roles(job, name):
        lost = [known[f] for f in gone if f in known]
        moved += [Moved(rows, spine, EVERY_BUCKET, s.min_ns, s.max_ns) for s in lost]
        moved += _new_rows(job, rows, source, come, spine=spine)
    return Comparison(tuple(moved), tuple(s for f, s in known.items() if f not in gone))


def _contents(source: Pinned, snapshot: Snapshot) -> dict[str, object]:
    """Return what tells whether a file is the same: its hash; for Delta its name, never reused."""
    if snapshot.kind == "delta":
        return dict.fromkeys(source.table.file_names(snapshot), True)
    return {f.path: (f.size, f.xxh3) for f in snapshot.files}


def _roles(job: Job, name: str) -> list[tuple[Rows, bool]]:
    roles = [(job.spine, True)] if job.spine.source.name == name else []
    return roles + [(rows, False) for rows in job.rows.values() if rows.source.name == name]


def _new_rows(job: Job, rows: Rows, source: Pinned, files: Sequence[str], *, spine: bool) -> Iterable[Moved]:
    """Locate the rows of new files by date and bucket."""
    if not files:
        return
    keys = rows.keys or ()
    columns = list(dict.fromkeys([rows.times.timestamp, *keys]))
    table = source.table.read(columns, snapshot=source.snapshot, files=files)
    event_ns, null = times_ns(table.column(rows.times.timestamp), rows.times.timestamp)
    if null is not None:
        table, event_ns = table.filter(pa.array(~null)), event_ns[~null]
    days = epoch_days(event_ns).astype(np.int64)
    buckets = (
        np.full(len(days), EVERY_BUCKET)
        if rows.keys is None
        else buckets_of([table.column(k) for k in keys], job.buckets)
    )
    code = days * (1 << 17) + (buckets + 1)
    order = np.argsort(code, kind="stable")
    for chunk in np.split(order, np.flatnonzero(np.diff(code[order])) + 1) if len(order) else ():
        times = event_ns[chunk]
        yield Moved(rows, spine, int(buckets[chunk[0]]), int(times.min()), int(times.max()))


def _reached(moved: Moved) -> Span:
    """Return the readers that these rows can reach."""
    rows = moved.rows
    if moved.spine:
        return moved.bucket, moved.min_ns // DAY_NS, moved.max_ns // DAY_NS
    first = (moved.min_ns - rows.look_ahead_ns) // DAY_NS
    last = FOREVER if rows.look_back_ns is None else (moved.max_ns + rows.look_back_ns) // DAY_NS
    return moved.bucket, first, last


def day_of_shard(date: str) -> int:
    """Return a shard's date as a day number."""
    return day_of_text(date)
