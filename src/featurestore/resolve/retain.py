"""Which rows a later reader may still need: the carried state of every path."""

import numpy as np
import pyarrow as pa

from featurestore.core.time import Int64Array
from featurestore.resolve.events import column_of, columns_of, source_events, validity
from featurestore.resolve.program import ViewProgram
from featurestore.resolve.views import view_events
from featurestore.temporal.keys import code_keys
from featurestore.temporal.retain import retained_indices
from featurestore.temporal.rows import Rows


def retained_rows(program: ViewProgram, rows: pa.Table, *, at_ns: int, expired: bool = False) -> Int64Array:
    """Point at the source rows that any reader at or after `at_ns` could still use.

    Keeping just these and adding newer ones answers every later reader exactly as all rows would: the
    rule behind larger-than-memory and incremental materialization and behind the online store.

    Args:
        rows: Rows of the program's base source, in source order.
        expired: Also keep each entity's newest row, however old: it tells expired from never seen.

    Returns:
        Positions in `rows`, ascending.
    """
    upstream = program.upstream
    if upstream is not None and not upstream.is_row_by_row:
        return _retained_for_upstream(program, upstream, rows, at_ns=at_ns, expired=expired)
    # An upstream row that depends on one source row stands and falls with it.
    table = rows if upstream is None else view_events(upstream, rows, threads=None)
    events = source_events(table, program.times)
    codes = code_keys([columns_of(table, program.join_keys)], program.join_keys)
    coded = events.rows(codes.codes[0])
    return retained_coded(program, coded, table, entities=codes.entities, at_ns=at_ns, expired=expired)


def retained_coded(
    program: ViewProgram,
    rows: Rows,
    columns: pa.Table,
    *,
    entities: int,
    at_ns: int,
    expired: bool = False,
) -> Int64Array:
    """Point at the rows to keep where entities are numbered already; `columns` holds the inputs."""
    known = program.nulls == "last_known"
    return retained_indices(
        rows,
        entities=entities,
        at_ns=at_ns,
        ttl_ns=None if expired else program.ttl_ns,
        newest=expired or bool(program.features),
        last_known=[validity(column_of(columns, n)) for n in program.inputs()] if known else [],
        window_ns=program.window_ns(),
    )


def _retained_for_upstream(
    program: ViewProgram, upstream: ViewProgram, rows: pa.Table, *, at_ns: int, expired: bool
) -> Int64Array:
    """A view over a view needs its own rows, and what its upstream needs to compute those again."""
    behind = program.look_back_ns()
    if behind is None:
        return np.arange(rows.num_rows, dtype=np.int64)
    return retained_rows(upstream, rows, at_ns=at_ns - behind, expired=expired)
