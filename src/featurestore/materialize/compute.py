"""Computing a chain of tasks: rows in, finished partitions out. Runs in a thread or in another process."""

import threading
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Final

import numpy as np
import pyarrow as pa

from featurestore.core.time import DAY_NS, INT64_MAX, INT64_MIN, Int64Array
from featurestore.errors import CorruptDataError
from featurestore.materialize.durability import Durability
from featurestore.materialize.job import Job
from featurestore.materialize.partition import (
    RowOrder,
    Shape,
    Written,
    row_order,
    take_rows,
    write_partition,
)
from featurestore.materialize.plan import Chain, Input, Task
from featurestore.materialize.staging import EVERY_BUCKET, Part, Place, concat_parts
from featurestore.resolve.program import ViewProgram
from featurestore.resolve.retain import retained_rows
from featurestore.resolve.training import resolve_features
from featurestore.resolve.views import view_events
from featurestore.temporal.times import times_ns

# What a cell costs while its partition is sorted, hashed, packed and written, with all copies.
_CELL_BYTES: Final = 48
_HEAVY: Final = threading.Lock()


@dataclass(frozen=True, slots=True)
class Work:
    """A chain and the rows it needs.

    Attributes:
        spine: The spine's parts, by place.
        parts: Each source's parts, by place.
        schemas: Each source's columns as staged.
        threads: Threads for the kernels of one task.
        memory_bytes: The run's budget: tasks that would take much of it run one at a time.
    """

    job: Job
    shape: Shape
    chain: Chain
    spine: Mapping[Place, Part]
    spine_schema: pa.Schema
    parts: Mapping[str, Mapping[Place, Part]]
    schemas: Mapping[str, pa.Schema]
    threads: int
    memory_bytes: int


def compute_chain(work: Work) -> list[Written]:
    """Compute and write the partitions of a chain.

    Raises:
        SchemaError: columns that do not fit together.
        ExpressionError: an expression failed on the values it met.
        StorageError: disk full or no permission.
    """
    carriers = {name: _Carrier(work, name) for name in work.job.rows}
    written: list[Written] = []
    with Durability() as durability:
        for task in work.chain.tasks:
            heavy = task.rows * len(work.job.schema) * _CELL_BYTES > work.memory_bytes // 2
            with _HEAVY if heavy else nullcontext():
                written += _compute_task(work, task, carriers, durability)
    return written


def _compute_task(
    work: Work, task: Task, carriers: Mapping[str, "_Carrier"], durability: Durability
) -> list[Written]:
    rows = {i.source: carriers[i.source].rows_for(task, i) for i in task.inputs}
    orders: dict[int, RowOrder] = {}
    if work.job.view is not None:
        result = _view_rows(work, task, rows)
    else:
        spine, orders = _ordered_spine(work, task)
        result = _joined(work, spine, rows)
    del rows
    logical = logical_columns(result, work.job.schema)
    del result
    return _write(work, task, logical, orders, durability)


class _Carrier:
    """Gives each task of a chain the rows of one source, carrying what earlier dates leave behind."""

    def __init__(self, work: Work, source: str) -> None:
        self._rows = work.job.rows[source]
        self._parts = work.parts[source]
        self._schema = work.schemas[source]
        self._programs = _programs(work.job, source)
        self._state = self._schema.empty_table()
        self._done = min((day for day, _ in self._parts), default=0)

    def rows_for(self, task: Task, need: Input) -> pa.Table:
        if need.carried:
            for day in sorted({d for d, b in self._parts if self._done <= d < need.first_day}):
                self._carry(day, need)
            self._done = need.first_day
        own = concat_parts(self._between(need.bucket, task.days[0], task.days[-1]), self._schema)
        before = [] if need.carried else self._between(need.bucket, need.first_day, task.days[0] - 1)
        after = self._between(need.bucket, task.days[-1] + 1, need.last_day)
        low = task.days[0] * DAY_NS - (0 if need.carried else self._rows.look_back_ns or 0)
        high = (task.days[-1] + 1) * DAY_NS + self._rows.look_ahead_ns
        near_before = self._cut(concat_parts(before, self._schema), low, high)
        near_after = self._cut(concat_parts(after, self._schema), low, high)
        return pa.concat_tables([self._state, near_before, own, near_after])

    def _between(self, bucket: int, first: int, last: int) -> list[Part]:
        chosen = sorted(p for p in self._parts if p[1] in {bucket, EVERY_BUCKET} and first <= p[0] <= last)
        return [self._parts[p] for p in chosen]

    def _cut(self, rows: pa.Table, low: int, high: int) -> pa.Table:
        if rows.num_rows == 0:
            return rows
        event_ns, _ = times_ns(rows.column(self._rows.times.timestamp), self._rows.times.timestamp)
        keep = (event_ns >= max(low, INT64_MIN)) & (event_ns <= min(high, INT64_MAX))
        return rows.filter(pa.array(keep))

    def _carry(self, day: int, need: Input) -> None:
        """Take one more date in, and keep of everything what a reader after it could still use."""
        rows = pa.concat_tables(
            [self._state, concat_parts(self._between(need.bucket, day, day), self._schema)]
        )
        at_ns = (day + 1) * DAY_NS
        kept = [retained_rows(program, rows, at_ns=at_ns) for program in self._programs]
        positions: Int64Array = np.unique(np.concatenate(kept)) if kept else np.arange(rows.num_rows)
        self._state = (
            rows if len(positions) == rows.num_rows else rows.take(pa.array(positions)).combine_chunks()
        )


def _programs(job: Job, source: str) -> list[ViewProgram]:
    if job.view is not None:
        return [job.view]
    if job.join is None:
        return []
    views = [j.program for j in job.join.views if j.program.source == source]
    labels = [x.program.rows for x in job.join.labels if x.program.look_back_ns() != 0]
    return views + [p for p in labels if p.source == source]


def _ordered_spine(work: Work, task: Task) -> tuple[pa.Table, dict[int, RowOrder]]:
    """Return the spine in the order in which its rows are stored: what is joined to it needs no sorting."""
    parts = [concat_parts([work.spine[day, task.bucket]], work.spine_schema) for day in task.days]
    spine = pa.concat_tables(parts).combine_chunks()
    orders, positions = {}, []
    start, stays = 0, True
    for day, part in zip(task.days, parts, strict=True):
        order = row_order(spine.slice(start, part.num_rows), work.shape)
        moved = order.parted.positions
        stays = stays and moved is None
        positions.append(start + (np.arange(part.num_rows) if moved is None else moved))
        start += part.num_rows
        orders[day] = order
    if stays:
        return spine, orders
    return take_rows(spine, np.concatenate(positions), threads=work.threads), orders


def _joined(work: Work, spine: pa.Table, rows: Mapping[str, pa.Table]) -> pa.Table:
    if work.job.join is None:
        return spine
    return resolve_features(work.job.join, spine, rows, threads=work.threads).table


def _view_rows(work: Work, task: Task, rows: Mapping[str, pa.Table]) -> pa.Table:
    """Evaluate a view at the time of each of its own rows; the rows in front are only looked back at."""
    job = work.job
    program = job.view
    assert program is not None  # noqa: S101 -- the caller's branch
    (table,) = rows.values()
    events = view_events(program, table, threads=work.threads)
    for name, stored in job.raw:
        events = events.append_column(stored, table.column(name))
    return _of_days(work, task, events)


def _of_days(work: Work, task: Task, events: pa.Table) -> pa.Table:
    """Pick the rows of a task's own dates: other dates lie before them and, where few are wanted, between."""
    (parts,) = work.parts.values()
    first, last = task.days[0], task.days[-1]
    there = [(day, parts[day, bucket].rows) for day, bucket in sorted(parts) if first <= day <= last]
    start = events.num_rows - sum(rows for _, rows in there)
    own = set(task.days)
    pieces = []
    for day, rows in there:
        if day in own:
            pieces.append(events.slice(start, rows))
        start += rows
    return pa.concat_tables(pieces)


def _write(
    work: Work, task: Task, logical: pa.Table, orders: Mapping[int, RowOrder], durability: Durability
) -> list[Written]:
    written = []
    start = 0
    for day in task.days:
        rows = work.spine[day, task.bucket].rows
        own = _from_start(work.job, day, logical.slice(start, rows))
        start += rows
        if own.num_rows:
            found = write_partition(
                own,
                day=day,
                bucket=task.bucket,
                shape=work.shape,
                durability=durability,
                order=orders.get(day),
            )
            written.append(found)
    if start != logical.num_rows:
        raise CorruptDataError(
            f"{work.job.name!r}: {start} rows were planned for {len(task.days)} dates, "
            f"{logical.num_rows} were computed",
            hint="this is a defect of featurestore: nothing was published; please report it",
        )
    return written


def _from_start(job: Job, day: int, rows: pa.Table) -> pa.Table:
    """Leave out what lies before the range on its first date; a spine was cut when it was read."""
    first = job.range_ns[0]
    if job.view is None or first is None or first <= day * DAY_NS:
        return rows
    event_ns, _ = times_ns(rows.column(job.spine.times.timestamp), job.spine.times.timestamp)
    return rows.filter(pa.array(event_ns >= first))


def logical_columns(table: pa.Table, schema: pa.Schema) -> pa.Table:
    """Give columns their logical types: clocks as `timestamp[ns, UTC]`, dictionaries as their values."""
    columns = []
    for field in schema:
        column = table.column(field.name)
        if column.type != field.type:
            column = _clock(column, field) if pa.types.is_timestamp(field.type) else column.cast(field.type)
        columns.append(column)
    return pa.Table.from_arrays(columns, schema=schema)


def _clock(column: pa.ChunkedArray, field: pa.Field) -> pa.ChunkedArray:
    values, null = times_ns(column, field.name)
    array = pa.array(values, mask=null) if null is not None else pa.array(values)
    return pa.chunked_array([array.view(field.type)])
