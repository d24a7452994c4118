"""Which partitions a change in the sources can reach; everything else is kept as it is."""

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
        spans_of: Times of the unchanged files, by source, as recorded by earlier runs.
    """

    spans: tuple[Span, ...]
    spans_of: Mapping[str, tuple[FileSpan, ...]]

    def reaches(self, day: int, bucket: int) -> bool:
        """Say whether a partition has to be computed again."""
        return any(b in {bucket, EVERY_BUCKET} and first <= day <= last for b, first, last in self.spans)


def find_changes(job: Job, previous: Manifest, pinned: Mapping[str, Pinned]) -> Changes | None:
    """Compare the sources with those of an earlier version.

    Returns:
        `None` where everything has to be computed: other definitions, another layout, a source that was
        replaced as a whole, or one behind a query.

    Cost:
        Reads the times and keys of new files only.
    """
    same = (
        dict(previous.definitions) == dict(job.definitions)
        and previous.buckets == job.buckets
        and previous.range_ns[0] == job.range_ns[0]
        and previous.schema.equals(job.schema)
    )
    if not same:
        return None
    recorded = {spec["source"]: spec for spec in previous.inputs}
    spans: list[Span] = []
    if previous.range_ns[1] is not None:
        spans.append((EVERY_BUCKET, previous.range_ns[1] // DAY_NS, FOREVER))
    kept: dict[str, tuple[FileSpan, ...]] = {}
    for name, source in pinned.items():
        if name not in recorded:
            return None
        old = snapshot_from_spec(recorded[name])
        known = {s[0]: FileSpan(*s) for s in recorded[name].get("spans", ())}
        found = _source_changes(job, name, source, old, known)
        if found is None:
            return None
        spans += found[0]
        kept[name] = found[1]
    return Changes(tuple(dict.fromkeys(spans)), kept)


def _source_changes(
    job: Job, name: str, source: Pinned, old: Snapshot, known: Mapping[str, FileSpan]
) -> tuple[list[Span], tuple[FileSpan, ...]] | None:
    new = source.snapshot
    if old == new:
        return [], tuple(known.values())
    if old.kind != new.kind or old.table_id != new.table_id or old.schema != new.schema:
        return None
    if source.table.spec.query is not None:
        return None
    before, after = _contents(source, old), _contents(source, new)
    gone = [f for f, content in before.items() if after.get(f) != content]
    come = [f for f, content in after.items() if before.get(f) != content]
    spans: list[Span] = []
    for rows, spine in _roles(job, name):
        spans += [s for f in gone if f in known for s in _reached(rows, EVERY_BUCKET, known[f], spine=spine)]
        spans += _new_rows(job, rows, source, come, spine=spine)
    return spans, tuple(s for f, s in known.items() if f not in gone)


def _contents(source: Pinned, snapshot: Snapshot) -> dict[str, object]:
    """Return what tells whether a file is the same: its hash; for Delta its name, never reused."""
    if snapshot.kind == "delta":
        return dict.fromkeys(source.table.file_names(snapshot), True)
    return {f.path: (f.size, f.xxh3) for f in snapshot.files}


def _roles(job: Job, name: str) -> list[tuple[Rows, bool]]:
    roles = [(job.spine, True)] if job.spine.source.name == name else []
    return roles + [(rows, False) for source, rows in job.rows.items() if source == name]


def _new_rows(job: Job, rows: Rows, source: Pinned, files: Sequence[str], *, spine: bool) -> Iterable[Span]:
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
        span = FileSpan("", len(chunk), int(times.min()), int(times.max()))
        yield from _reached(rows, int(buckets[chunk[0]]), span, spine=spine)


def _reached(rows: Rows, bucket: int, span: FileSpan, *, spine: bool) -> list[Span]:
    """Return the readers that rows of these times can reach."""
    if spine:
        own: list[Span] = [(bucket, span.min_ns // DAY_NS, span.max_ns // DAY_NS)]
        return own
    first = (span.min_ns - rows.look_ahead_ns) // DAY_NS
    last = FOREVER if rows.look_back_ns is None else (span.max_ns + rows.look_back_ns) // DAY_NS
    return [(bucket, first, last)]


def day_of_shard(date: str) -> int:
    """Return a shard's date as a day number."""
    return day_of_text(date)
