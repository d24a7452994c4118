"""Which rows a later reader may still need: the carried state of every path."""

import numpy as np
import pyarrow as pa

from featurestore.core.time import Int64Array
from featurestore.resolve.events import column_of, columns_of, source_events, validity
from featurestore.resolve.program import ViewProgram
from featurestore.resolve.views import Numbered, view_events
from featurestore.temporal.keys import code_keys
from featurestore.temporal.retain import earliest_used, retained_indices
from featurestore.temporal.rows import Int32Array


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
    if not program.is_bounded:
        return _retained_by_reach(program, rows, at_ns=at_ns, expired=expired)
    # Rows that depend on one source row each stand and fall with it.
    upstream = program.chain[-1].upstream
    table = rows if upstream is None else view_events(upstream, rows, threads=None)
    codes, entities = _numbered(program, table, expired=expired)
    numbered = Numbered(program, source_events(table, program.times), codes, entities)
    return retained_numbered(numbered, at_ns=at_ns, expired=expired)


def _numbered(program: ViewProgram, table: pa.Table, *, expired: bool) -> tuple[Int32Array, int]:
    if program.features or expired or len(program.chain) > 1:
        coded = code_keys([columns_of(table, program.join_keys)], program.join_keys)
        return coded.codes[0], coded.entities
    # Windows begin at one instant for all: whose row it is does not matter, as long as it has a key.
    codes = np.zeros(table.num_rows, np.int32)
    for column in columns_of(table, program.join_keys):
        there = validity(column)
        if there is not None:
            codes[~there] = -1
    return codes, 1


def retained_numbered(rows: Numbered, *, at_ns: int, expired: bool = False) -> Int64Array:
    """Point at the rows to keep where the entities are numbered already.

    Of a view over a view, that is the rows that its own readers use, and of the view below what is used by
    readers at those rows, and so on down: each view's readers begin where the rows used above begin.

    Args:
        rows: Rows of the last program of the chain, of a program that is bounded.
    """
    program = rows.program
    *above, base = program.chain
    at: int | Int64Array = at_ns
    kept = []
    for view in above:
        kept.append(_used(view, rows, at, expired=expired))
        at = _reach(view, rows, at)
    kept.append(_used(base, rows, at, expired=expired))
    return kept[0] if len(kept) == 1 else np.unique(np.concatenate(kept))


def _used(view: ViewProgram, rows: Numbered, at: int | Int64Array, *, expired: bool) -> Int64Array:
    """Point at the rows that readers of a view of the chain use from `at` on: one instant, or by entity."""
    codes, whole = rows.by_keys_of(view)
    expired = expired and view is rows.program
    is_base = view is rows.program.chain[-1]
    known = is_base and view.features and view.nulls == "last_known"
    return retained_indices(
        rows.events.rows(codes),
        entities=rows.entities if whole is None else whole.size,
        at_ns=at if whole is None or isinstance(at, int) else at[whole],
        ttl_ns=None if expired else view.ttl_ns,
        newest=expired or bool(view.features),
        last_known=[validity(column_of(rows.events.table, n)) for n in view.inputs()] if known else [],
        window_ns=view.window_ns() if is_base else _window_ns(view),
    )


def _reach(view: ViewProgram, rows: Numbered, at: int | Int64Array) -> Int64Array:
    """Return, by entity, where the rows begin that readers of a view use from `at` on."""
    return earliest_used(
        rows.events.rows(rows.codes),
        entities=rows.entities,
        at_ns=np.full(rows.entities, at, np.int64),
        ttl_ns=view.ttl_ns,
        # Readers of a view below the first are rows: what each sees newest is no older than itself.
        newest=view is rows.program and bool(view.features) and view.nulls == "keep",
        window_ns=_window_ns(view),
    )


def _window_ns(view: ViewProgram) -> int:
    """Return how far back all rows may be used, and not the newest alone.

    Which values below are null is not known for good, so any row within the ttl may hold a last known one.
    """
    known = view.features and view.nulls == "last_known" and view.ttl_ns is not None
    return max(view.window_ns(), view.ttl_ns + 1 if known and view.ttl_ns is not None else 0)


def _retained_by_reach(program: ViewProgram, rows: pa.Table, *, at_ns: int, expired: bool) -> Int64Array:
    """Keep whatever a view without a bounded state could read: every row within its reach, or all of them."""
    behind = program.look_back_ns()
    if behind is None or program.upstream is None:
        return np.arange(rows.num_rows, dtype=np.int64)
    return retained_rows(program.upstream, rows, at_ns=at_ns - behind, expired=expired)
