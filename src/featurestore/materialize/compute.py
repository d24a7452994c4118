"""Computing a chain of tasks: rows in, finished partitions out. Runs in a thread or in another process."""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np
import pyarrow as pa

from featurestore.core.table_rows import filter_rows
from featurestore.core.time import DAY_NS
from featurestore.errors import CorruptDataError
from featurestore.materialize.carried import Carrier, ChainStates, programs_of, saver
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
from featurestore.materialize.plan import Chain, Task
from featurestore.materialize.staging import Part, Place, concat_parts
from featurestore.resolve.training import resolve_features
from featurestore.resolve.views import view_events
from featurestore.storage.state_files import StateIndex, StateWriter
from featurestore.temporal.times import times_ns

# What a cell costs while its partition is sorted, hashed, packed and written, with all copies.
_CELL_BYTES: Final = 48
# States that wait for the next wave may take this share of the budget; larger ones wait on disk.
_STATE_SHARE: Final = 8
_HEAVY: Final = threading.Lock()


class Relay:
    """What the tasks of a bucket hand on from one wave of a run to the next, within this process.

    Attributes:
        carriers: By source; made by the first wave.
    """

    def __init__(self) -> None:
        self.carriers: dict[str, Carrier] = {}
        self._rests = threading.Event()
        self._rests.set()
        self._failed = False

    def take(self) -> bool:
        """Wait until the wave before has handed on; says whether it did: otherwise nothing is to follow."""
        self._rests.wait()
        self._rests.clear()
        return not self._failed

    @contextmanager
    def handing_on(self) -> Iterator[None]:
        """Hand on behind the block."""
        self._failed = True
        try:
            yield
            self._failed = False
        finally:
            self._rests.set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """The tasks of a bucket, or of all at once, in one wave, and the rows they need.

    Attributes:
        spine: The spine's parts, by place.
        parts: Each source's parts, by place, and `schemas` their columns, by `Rows.name`.
        answers: What rows of any bucket answered to the spine's, by place; `answered` its columns.
        states: What earlier versions left behind, and what this chain leaves.
        until: Behind the tasks, all dates before this one are taken in, for waves or runs to come.
        is_last: Whether no wave follows.
        relay: What the wave before handed on, and where it is handed on; `None`: this is the only wave.
        spill: Folder for what is handed on, where it is too much for memory.
        durability: Forces files to the disk by the end of the run; `None`: by the end of this work.
        threads: Threads for the kernels of one task.
        memory_bytes: The run's budget: tasks that would take much of it run one at a time.
    """

    job: Job
    shape: Shape
    bucket: int
    chain: Chain
    spine: Mapping[Place, Part]
    spine_schema: pa.Schema
    parts: Mapping[str, Mapping[Place, Part]]
    schemas: Mapping[str, pa.Schema]
    answers: Mapping[Place, Part]
    answered: pa.Schema
    states: ChainStates
    until: int
    is_last: bool
    relay: Relay | None
    spill: Path
    durability: Durability | None
    threads: int
    memory_bytes: int


@dataclass(frozen=True, slots=True)
class Answer:
    """What a chain wrote: its partitions, and the states that it leaves behind."""

    written: tuple[Written, ...]
    states: StateIndex


def compute_chain(work: Work) -> Answer:
    """Compute and write the partitions of a chain, and the state that later dates go on from.

    Raises:
        SchemaError: columns that do not fit together.
        ExpressionError: an expression failed on the values it met.
        StorageError: disk full or no permission.
    """
    with nullcontext() if work.relay is None else work.relay.handing_on():
        return _compute(work, {} if work.relay is None else work.relay.carriers)


def _compute(work: Work, carriers: dict[str, Carrier]) -> Answer:
    written: list[Written] = []
    forced = Durability() if work.durability is None else nullcontext(work.durability)
    with forced as durability:

        def compute(task: Task, rows: dict[str, pa.Table]) -> None:
            written.extend(_compute_task(work, task, rows, durability))

        states = run_chain(work, carriers, compute, row_bytes=len(work.job.schema) * _CELL_BYTES)
        return Answer(tuple(written), states)


def run_chain(
    work: Work,
    carriers: dict[str, Carrier],
    compute: Callable[[Task, dict[str, pa.Table]], None],
    *,
    row_bytes: int,
) -> StateIndex:
    """Give each task of a chain its rows by source, and carry on what the last leaves behind.

    Args:
        carriers: By `Rows.name`, the same from wave to wave; the first makes them.
        row_bytes: What a reader takes: tasks that would take much of the budget run one at a time.

    Returns:
        The states that the chain leaves for later runs.
    """
    with StateWriter(work.shape.ipc, work.states.file) as writer:
        for name, parts in work.parts.items():
            carrier = carriers.setdefault(name, _carrier(work, name))
            carrier.go_on(parts, saver(writer, work.states, name, work.bucket))
        for task in work.chain.tasks:
            heavy = task.rows * row_bytes > work.memory_bytes // 2
            with _HEAVY if heavy else nullcontext():
                compute(task, _rows_for(work, task, carriers))
        for name, carrier in carriers.items():
            _hand_on(work, name, carrier)
        states = writer.finish()
        if work.shape.upload is not None:
            for whole in states.files:
                work.shape.upload.send_file(work.shape.ipc / whole.file)
        return states


def _rows_for(work: Work, task: Task, carriers: Mapping[str, Carrier]) -> dict[str, pa.Table]:
    sources = {name: rows.source.name for name, rows in work.job.rows.items()}
    return {sources[i.source]: carriers[i.source].rows_for(task, i) for i in task.inputs}


def _hand_on(work: Work, name: str, carrier: Carrier) -> None:
    if work.is_last:
        carrier.finish(work.until)
        return
    share = work.memory_bytes // _STATE_SHARE // work.job.buckets
    carrier.hand_on(work.until, work.spill / f"{name}-{work.bucket}.arrows", share)


def _carrier(work: Work, name: str) -> Carrier:
    return Carrier(
        work.job.rows[name],
        programs_of(work.job, name),
        work.schemas[name],
        bucket=work.bucket,
        folder=work.states.folder,
        states=work.states.states.get(name, ()),
    )


def _compute_task(work: Work, task: Task, rows: dict[str, pa.Table], durability: Durability) -> list[Written]:
    orders: dict[int, RowOrder] = {}
    if work.job.view is not None:
        result = _view_rows(work, task, rows)
    else:
        spine, answers, orders = _ordered_spine(work, task)
        result = _joined(work, spine, rows, answers)
        del spine, answers
    rows.clear()
    logical = logical_columns(result, work.job.schema)
    del result
    return _write(work, task, logical, orders, durability)


def _ordered_spine(work: Work, task: Task) -> tuple[pa.Table, pa.Table, dict[int, RowOrder]]:
    """Return the spine in the order in which its rows are stored: what is joined to it needs no sorting.

    Returns:
        Also what other buckets' rows answered to it, in the same order, and the order of each date.
    """
    parts = [concat_parts([work.spine[day, task.bucket]], work.spine_schema) for day in task.days]
    spine = pa.concat_tables(parts).combine_chunks()
    known = [work.answers[day, task.bucket] for day in task.days] if work.answers else []
    answers = concat_parts(known, work.answered)
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
        return spine, answers, orders
    stored = np.concatenate(positions)
    ordered = [take_rows(table, stored, threads=work.threads) for table in (spine, answers)]
    return ordered[0], ordered[1], orders


def _joined(work: Work, spine: pa.Table, rows: Mapping[str, pa.Table], answers: pa.Table) -> pa.Table:
    if work.job.join is None:
        return spine
    cells = {} if work.job.whole is None else work.job.whole.cells()
    found = {cell: answers.column(name) for cell, name in cells.items()}
    return resolve_features(
        work.job.join, spine, rows, found=found, values_only=True, threads=work.threads
    ).table


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
    return filter_rows(rows, event_ns >= first)


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
