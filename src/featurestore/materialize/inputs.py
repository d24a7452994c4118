"""The sources of a run: pinned first, then each read once and split into parts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from featurestore.core.time import DAY_NS, INT64_MAX, INT64_MIN
from featurestore.materialize.context import Context
from featurestore.materialize.job import Job, Rows
from featurestore.materialize.staging import Budget, FileSpan, Staged, Stager, Wanted
from featurestore.storage.snapshots import Snapshot
from featurestore.storage.sources import SourceTable, open_source
from featurestore.temporal.times import times_ns


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


def stage_source(
    rows: Rows,
    pinned: Pinned,
    chosen: Slice,
    *,
    buckets: int,
    budget: Budget,
    spill: Path,
    in_memory: bool,
    spine: bool,
    range_ns: tuple[int | None, int | None],
    heard: Callable[[int], None],
) -> tuple[Staged, list[FileSpan]]:
    """Read a source once and split its rows.

    Returns:
        The parts, and the times that each file read holds.

    Raises:
        CorruptDataError: the content is not what was pinned, or damaged.
        SchemaError: a missing column, or a spine row without a time.
    """
    stager = Stager(
        rows,
        buckets=buckets,
        budget=budget,
        spill=spill,
        in_memory=in_memory,
        spine=spine,
        range_ns=range_ns,
        places=chosen.wanted,
    )
    spans: dict[str, FileSpan] = {}
    batches = pinned.table.scan_named(
        list(rows.columns),
        snapshot=pinned.snapshot,
        time_range_ns=_time_range(chosen.wanted, range_ns),
        files=chosen.files,
    )
    for name, found in batches:
        batch = pinned.table.erased.remaining(found, rows.renamed)
        stager.add(batch)
        heard(batch.num_rows)
        _widen(spans, name, batch.column(rows.times.timestamp), rows.times.timestamp)
    schema = pinned.table.schema
    empty = schema.empty_table().select(list(rows.columns)).schema
    return stager.finish(empty), list(spans.values())


def reach_of(rows: Rows, spans: Sequence[tuple[int, int, int]], *, carried: bool) -> Wanted:
    """Return the parts of a source that readers in some days can reach.

    Args:
        spans: Bucket, first and last day of the readers.
        carried: Whether everything earlier is needed, to carry its state.
    """
    behind = -(-(rows.look_back_ns or 0) // DAY_NS)
    ahead = -(-rows.look_ahead_ns // DAY_NS)
    out: dict[int, list[tuple[int, int]]] = {}
    for bucket, first, last in spans:
        low = INT64_MIN // DAY_NS if carried else first - behind
        out.setdefault(bucket, []).append((low, last + ahead))
    return Wanted({bucket: tuple(found) for bucket, found in out.items()})


def recorded(pinned: Mapping[str, Pinned], spans: Mapping[str, Sequence[FileSpan]]) -> list[dict[str, Any]]:
    """Return the inputs as a manifest records them: the pins, and the times that each file holds."""
    return [
        {
            **pinned[name].snapshot.spec(),
            "spans": [
                [s.name, s.rows, s.min_ns, s.max_ns]
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
            )
        out[span.name] = span
    return list(out.values())


def _time_range(wanted: Wanted | None, range_ns: tuple[int | None, int | None]) -> tuple[int, int] | None:
    days = None if wanted is None else wanted.range_days()
    low = INT64_MIN if range_ns[0] is None else range_ns[0]
    high = INT64_MAX if range_ns[1] is None else range_ns[1]
    if days is not None:
        low, high = max(low, days[0] * DAY_NS), min(high, (days[1] + 1) * DAY_NS)
    return None if (low, high) == (INT64_MIN, INT64_MAX) else (low, high)


def _widen(spans: dict[str, FileSpan], name: str, column: Any, what: str) -> None:
    if len(column) == 0:
        return
    event_ns, null = times_ns(column, what)
    if null is not None:
        event_ns = event_ns[~null]
    if event_ns.size == 0:
        return
    low, high = int(np.min(event_ns)), int(np.max(event_ns))
    known = spans.get(name)
    if known is not None:
        low, high = min(low, known.min_ns), max(high, known.max_ns)
    spans[name] = FileSpan(name, event_ns.size + (known.rows if known else 0), low, high)
