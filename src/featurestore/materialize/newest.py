"""The rows of a view that the online store needs: what any later reader could still use, and no more."""

import numpy as np
import pyarrow as pa

from featurestore.catalog.refs import parse_ref
from featurestore.core.time import INT64_MIN
from featurestore.materialize.context import Context
from featurestore.resolve.program import compile_view
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
        One pass over the source; memory of what is retained plus one batch.
    """
    program = compile_view(context.snapshot, parse_ref(view).whole())
    table = context.open(context.snapshot.source(program.source))
    columns = list(program.source_columns())
    kept = pa.schema([table.schema.field(c) for c in columns]).empty_table()
    newest = INT64_MIN
    for batch in table.scan(columns, batch_rows=_BATCH_ROWS):
        event_ns, null = times_ns(batch.column(program.times.timestamp), program.times.timestamp)
        wanted = np.ones(len(event_ns), np.bool_) if null is None else ~null
        if end_ns is not None:
            wanted &= event_ns < end_ns
        if not wanted.any():
            continue
        newest = max(newest, int(event_ns[wanted].max()))
        rows = pa.concat_tables([kept, pa.Table.from_batches([batch]).filter(pa.array(wanted))])
        # A reader's time only grows, so what an earlier one did not need no later one will.
        at_ns = max(INT64_MIN, newest - context.config.online.history_ns)
        kept = rows.take(pa.array(retained_rows(program, rows, at_ns=at_ns, expired=True)))
    return kept.combine_chunks()
