"""The plan of a run before it runs: from the spine's times and the statistics of the sources' files."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa

from featurestore.core.keys import buckets_of
from featurestore.core.time import INT64_MAX, INT64_MIN, epoch_days
from featurestore.materialize.carried import Carryover
from featurestore.materialize.changes import Changes, Span
from featurestore.materialize.inputs import Pinned, reach_of, slice_of, statistics_of, time_range
from featurestore.materialize.job import Job
from featurestore.materialize.plan import (
    FileStat,
    MaterializationPlan,
    SourceStat,
    plan_materialization,
    task_rows_of,
)
from featurestore.materialize.staging import Place
from featurestore.storage.source_readers import GroupTimes
from featurestore.temporal.times import times_ns


def expected_plan(
    job: Job,
    pinned: Mapping[str, Pinned],
    *,
    changes: Changes | None,
    carryover: Carryover,
    memory_bytes: int,
) -> MaterializationPlan:
    """Plan a run that would compute everything, or what changes can reach."""
    places = _places(
        job, pinned[job.spine.source.name], None if changes is None else changes.spans, carryover
    )
    return plan_materialization(
        job,
        places,
        task_rows=task_rows_of(job, memory_bytes),
        sources={name: _statistics(source, carryover) for name, source in pinned.items()},
        states=carryover.days(),
    )


def _places(job: Job, spine: Pinned, spans: Sequence[Span] | None, carryover: Carryover) -> dict[Place, int]:
    """Count the spine's rows by date and bucket; of other columns than keys and times nothing is read."""
    if spans is not None and not spans:
        return {}
    wanted = (
        None
        if spans is None
        else reach_of(replace(job.spine, look_back_ns=0), spans, states={}, buckets=1)[0]
    )
    chosen = slice_of(wanted, spine, carryover.known.get(job.spine.source.name, ()))
    timestamp = job.spine.times.timestamp
    low = INT64_MIN if job.range_ns[0] is None else job.range_ns[0]
    high = INT64_MAX if job.range_ns[1] is None else job.range_ns[1] - 1
    found: dict[Place, int] = {}
    batches = spine.table.scan_named(
        list(dict.fromkeys([timestamp, *job.keys])),
        snapshot=spine.snapshot,
        time_range_ns=time_range(wanted, job.range_ns),
        files=chosen.files,
    )
    for _, batch, _ in batches:
        event_ns, null = times_ns(batch.column(timestamp), timestamp)
        keep = (event_ns >= low) & (event_ns <= high)
        keep &= True if null is None else ~null
        own = batch.filter(pa.array(keep))
        days = epoch_days(event_ns[keep]).astype(np.int64)
        code = days * job.buckets + buckets_of([own.column(k) for k in job.keys], job.buckets)
        for place, count in zip(*np.unique(code, return_counts=True), strict=True):
            day, bucket = divmod(int(place), job.buckets)
            if wanted is None or wanted.has(day, bucket):
                found[day, bucket] = found.get((day, bucket), 0) + int(count)
    return found


def _statistics(source: Pinned, carryover: Carryover) -> SourceStat:
    """Complete what earlier runs know of the files by what the files say of themselves."""
    stat = statistics_of(source, carryover.known.get(source.table.spec.name, ()))
    unknown = [f.name for f in stat.files if f.rows is None]
    times = source.table.file_times(source.snapshot, unknown)
    return SourceStat(stat.version, tuple(_completed(f, times.get(f.name)) for f in stat.files))


def _completed(file: FileStat, groups: Sequence[GroupTimes] | None) -> FileStat:
    if not groups:
        return file
    rows = sum(g.rows for g in groups)
    return FileStat(file.name, file.bytes, rows, min(g.min_ns for g in groups), max(g.max_ns for g in groups))
