"""The rows of a view that the online store needs: what any later reader could still use, and no more."""

import numpy as np
import pyarrow as pa

from featurestore.catalog.refs import parse_ref
from featurestore.core.table_rows import filter_rows, take_rows
from featurestore.core.time import INT64_MIN
from featurestore.materialize.context import Context
from featurestore.resolve.program import ViewProgram, compile_view
from featurestore.resolve.retain import retained_rows
from featurestore.temporal.times import times_ns

_BATCH_ROWS = 1 << 19


def newest_rows(context: Context, view: str, *, end_ns: int | None = None) -> pa.Table:
    """Return the rows of a view's source that a reader from its newest event on could still use.

    Each entity's newest row is among them, however old: the online store answers "expired" and not "never
    seen" for it, as history does.

    Args:
        end_ns: Rows at or after this event timestamp are left out.

    Returns:
        Source rows, in source order, with the columns that the view reads.

    Raises:
        NotFoundError: no such view, or its source is not there.
        SchemaError: the source lacks a column.

    Cost:
        One pass over the source, in which a row is looked at about twice; memory of twice what is retained,
        plus one batch.
    """
    program = compile_view(context.snapshot, parse_ref(view).whole())
    table = context.open(context.snapshot.source(program.source))
    columns = list(program.source_columns())
    kept = pa.schema([table.schema.field(c) for c in columns]).empty_table()
    waiting: list[pa.RecordBatch] = []
    newest, history_ns = INT64_MIN, context.config.online.history_ns
    for batch in table.scan(columns, batch_rows=_BATCH_ROWS):
        event_ns, null = times_ns(batch.column(program.times.timestamp), program.times.timestamp)
        wanted = np.ones(len(event_ns), np.bool_) if null is None else ~null
        if end_ns is not None:
            wanted &= event_ns < end_ns
        if not wanted.any():
            continue
        newest = max(newest, int(event_ns[wanted].max()))
        waiting.append(batch if wanted.all() else filter_rows(batch, wanted))
        if sum(b.num_rows for b in waiting) >= max(_BATCH_ROWS, kept.num_rows):
            kept, waiting = _retained(program, kept, waiting, newest - history_ns), []
    return _retained(program, kept, waiting, newest - history_ns) if waiting else kept


def _retained(program: ViewProgram, kept: pa.Table, waiting: list[pa.RecordBatch], at_ns: int) -> pa.Table:
    # A reader's time only grows, so what an earlier one did not need no later one will.
    rows = pa.concat_tables([kept, pa.Table.from_batches(waiting)])
    positions = retained_rows(program, rows, at_ns=max(INT64_MIN, at_ns), expired=True)
    return take_rows(rows, positions).combine_chunks()
