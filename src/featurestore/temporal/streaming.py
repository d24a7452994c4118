"""The as-of join on live feeds: the same kernels as the batch join, called on what may still matter."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from featurestore.core.table_rows import filter_rows
from featurestore.core.time import INT64_MIN, Duration, Instant, instant_ns
from featurestore.errors import DefinitionError, LateDataError, StreamError
from featurestore.temporal.retain import retained_indices
from featurestore.temporal.rows import Int32Array
from featurestore.temporal.streaming_answers import (
    NO_CODES,
    NO_TIMES,
    answer_table,
    found_rows,
    right_fields,
    sealed_rows,
)
from featurestore.temporal.streaming_keys import KeyNumbers
from featurestore.temporal.streaming_options import checked_options
from featurestore.temporal.streaming_side import Batch, Clocks, Side, clocks
from featurestore.temporal.streaming_state import FORMAT, check_state, table_of, table_text
from featurestore.temporal.tables import as_table, check_unique
from featurestore.temporal.windows import check_windows

SIDES = ("left", "right")
_COUNTS = ("pushed_left", "pushed_right", "emitted", "late_left", "late_right", "unmatchable_right")
# The right side is thinned out when it has doubled and grown by this much: O(1) per row over time.
_PRUNE_ROWS = 1 << 14
_FORGET_KEYS = 1 << 17


class StreamingJoin:
    """Joins two feeds as `asof_join` joins two tables: what it emits, one after the other, is that answer.

    Left rows come out in the order they were pushed. A row comes out once its answer can no longer change
    and all rows pushed before it are out. With W the watermark less the lateness, no right row with an event
    before W is accepted any more, so a backward answer is final at `event < W`; a forward or nearest one
    when, besides, the reach of its match (or of the tolerance) has passed W.

    Rows with an event before their side's W are late: counted, and never used. What is held is bounded: left
    rows that wait, and right rows that a waiting or a coming left row may still use.

    Attributes:
        stats: counts of rows pushed, emitted, held and late, by side, and the watermarks.
    """

    def __init__(
        self,
        on: str,
        by: str | Sequence[str] | None = None,
        direction: str = "backward",
        tolerance: Duration | None = None,
        lateness: Duration = 0,
        *,
        right_on: str | None = None,
        right_by: str | Sequence[str] | None = None,
        boundary: str = "inclusive",
        created_on: str | None = None,
        columns: Sequence[str] | None = None,
        prefix: str = "",
        matched_timestamp: str | None = None,
        aggregations: Sequence[Any] = (),
        late: str = "drop",
        max_pending_rows: int | None = None,
        threads: int | None = None,
    ) -> None:
        self._options = checked_options(
            on=on, right_on=right_on, by=by, right_by=right_by, direction=direction, tolerance=tolerance,
            boundary=boundary, lateness=lateness, late=late, created_on=created_on, columns=columns,
            prefix=prefix, matched_timestamp=matched_timestamp, aggregations=aggregations,
            max_pending_rows=max_pending_rows,
        )  # fmt: skip
        options = self._options
        kept = None
        if options.columns is not None:
            aggregated = [w.column for w in options.aggregations if w.column != "*"]
            created = [] if created_on is None else [created_on]
            kept = tuple(dict.fromkeys([*options.columns, *aggregated, *created]))
        self._left = Side("left", on, options.by, None, None)
        self._right = Side("right", options.right_on, options.right_by, created_on, kept)
        self._keys = KeyNumbers(options.by)
        self._watermarks: dict[str, int | None] = dict.fromkeys(SIDES)
        self._late_tables: dict[str, list[pa.Table]] = {side: [] for side in SIDES}
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._pruned_rows = 0
        self._closed = False
        self._threads = threads

    # What comes in.

    def push_left(self, table: Any) -> None:
        """Add left rows; all of them will come out, but the late ones.

        Raises:
            StreamError: after `flush`, or over `max_pending_rows`; nothing was taken in.
            SchemaError: columns missing, mistyped, or other than on earlier pushes.
            LateDataError: a late row, with `late="error"`; nothing was taken in.
            TimeOverflowError: a time that int64 nanoseconds cannot hold.
        """
        self._push(self._left, table)

    def push_right(self, table: Any) -> None:
        """Add right rows.

        Raises:
            StreamError: after `flush`, or over `max_pending_rows`; nothing was taken in.
            SchemaError: columns missing, mistyped, or other than on earlier pushes.
            LateDataError: a late row, with `late="error"`; nothing was taken in.
            TimeOverflowError: a time that int64 nanoseconds cannot hold.
        """
        self._push(self._right, table)

    def advance_watermark(self, to: Instant, source: str | None = None) -> None:
        """Promise that no row with an older event will be pushed: on both sides, or on one `source`.

        A watermark never goes back: an older one is ignored.

        Raises:
            StreamError: after `flush`.
            DefinitionError: not a time, or a source other than left and right.
            TimeOverflowError: a time that int64 nanoseconds cannot hold.
        """
        self._check_open()
        if source is not None and source not in SIDES:
            raise DefinitionError(f"source is {source!r}", hint='"left", "right" or None for both')
        now = instant_ns(to, what="watermark")
        for side in SIDES if source is None else (source,):
            before = self._watermarks[side]
            self._watermarks[side] = now if before is None else max(before, now)

    # What comes out.

    def emit(self) -> pa.Table:
        """Return the rows that are final and not yet out, in the order they were pushed.

        Before anything was pushed on the right its columns are not known: rows wait until it was (an empty
        table is enough).

        Raises:
            StreamError: after `flush`.
            ExpressionError: an aggregate that does not fit its type.

        Cost: O(rows held); the batch kernels, no Python per row.
        """
        self._check_open()
        left = self._left.joined()
        if self._right.schema is None or left is None:
            return self._answer(None, None, 0)
        right = self._right.joined()
        found, count = sealed_rows(
            self._options,
            left,
            right,
            bound_ns=self._bound("right"),
            entities=len(self._keys),
            threads=self._threads,
        )
        out = self._answer(left, found, count)
        self._left.hold(left.slice(count, len(left)))
        self._prune()
        return out

    def flush(self) -> pa.Table:
        """End the stream: return everything that waits; nothing more can be pushed.

        Raises:
            StreamError: a second time, or where left rows wait and no right table was ever pushed.
            ExpressionError: an aggregate that does not fit its type.
        """
        self._check_open()
        left = self._left.joined()
        if left is not None and self._right.schema is None:
            raise StreamError(
                f"{len(left)} left rows wait, and nothing was ever pushed on the right: "
                "its columns are not known",
                hint="push an empty table with the right side's columns before flush",
            )
        found = None
        if left is not None:
            right, entities = self._right.joined(), len(self._keys)
            found = found_rows(self._options, left, right, entities=entities, threads=self._threads)
        out = self._answer(left, found, 0 if left is None else len(left))
        self._left.batches, self._right.batches = [], []
        self._closed = True
        return out

    def late_rows(self, side: str) -> pa.Table | None:
        """Hand over the late rows of a side kept since the last call (`late="side_output"`), else `None`.

        Raises:
            DefinitionError: a side other than left and right.
        """
        if side not in SIDES:
            raise DefinitionError(f"side is {side!r}", hint='"left" or "right"')
        tables, self._late_tables[side] = self._late_tables[side], []
        return pa.concat_tables(tables) if tables else None

    @property
    def stats(self) -> dict[str, int | None]:
        """Counts of rows since the start (`pushed_*`, `emitted`, `late_*`), of those held, and watermarks."""
        return {
            **self._counts,
            "pending_left": len(self._left),
            "retained_right": len(self._right),
            "entities": len(self._keys),
            "watermark_left": self._watermarks["left"],
            "watermark_right": self._watermarks["right"],
        }

    # Saving and resuming.

    def state_dict(self) -> dict[str, Any]:
        """Return everything a new stream needs to go on with identical output: JSON values only.

        The rows are base64 text of Arrow IPC streams: their size is that of the rows held.
        """
        self._prune(always=True)
        late = {side: pa.concat_tables(t) if t else None for side, t in self._late_tables.items()}
        sides = {"left": self._left, "right": self._right}
        return {
            "format": FORMAT,
            "options": self._options.spec(),
            "watermarks": dict(self._watermarks),
            "counts": dict(self._counts),
            "closed": self._closed,
            "rows": {name: table_text(_table_of(side)) for name, side in sides.items()},
            "late": {side: table_text(table) for side, table in late.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the stream that was saved; its arguments must be this one's.

        Raises:
            StreamError: the state is of another format or of a stream with other arguments.
            CorruptDataError: its rows cannot be read.
        """
        check_state(state, self._options.spec())
        tables = {side: table_of(state["rows"][side]) for side in SIDES}
        late = {side: table_of(state["late"][side]) for side in SIDES}
        self._keys = KeyNumbers(self._options.by)
        self._closed = False
        for name, side in (("left", self._left), ("right", self._right)):
            side.schema, side.batches = None, []
            table = tables[name]
            if table is not None:
                batch = self._read(side, table, clocks(table, side.on, side.created_on))
                side.schema = table.schema
                side.hold(batch)
        self._watermarks = {side: state["watermarks"][side] for side in SIDES}
        self._late_tables = {side: [] if t is None else [t] for side, t in late.items()}
        self._counts = {name: int(state["counts"][name]) for name in _COUNTS}
        self._closed = bool(state["closed"])
        self._pruned_rows = len(self._right)

    # Inside.

    def _check_open(self) -> None:
        if self._closed:
            raise StreamError("the stream was flushed", hint="begin a new StreamingJoin")

    def _bound(self, side: str) -> int:
        """The watermark less the lateness: nothing older is accepted."""
        watermark = self._watermarks[side]
        return INT64_MIN if watermark is None else max(watermark - self._options.lateness_ns, INT64_MIN)

    def _read(self, side: Side, table: pa.Table, read: Clocks) -> Batch:
        columns = [table.column(name) for name in side.by]
        if columns:
            self._keys.check(columns)
        event, null, known = read
        codes = self._keys.code(columns, len(table))
        if null is not None:
            codes[null] = -1
        return Batch(table, codes, event, known)

    def _push(self, side: Side, data: Any) -> None:
        self._check_open()
        table = side.check(as_table(data, side.what))
        self._check_outputs(side, table.schema)
        read = clocks(table, side.on, side.created_on)
        event, null, _ = read
        late = event < self._bound(side.what)
        if null is not None:
            late &= ~null
        late_count = int(np.count_nonzero(late))
        if late_count and self._options.late == "error":
            first = int(event[np.argmax(late)])
            raise LateDataError(
                f"{late_count} rows of {side.what} are older than {self._bound(side.what)} ns, the watermark "
                f"less the lateness: the first one is of {first} ns",
                hint='allow more lateness, or take late="drop" or "side_output"',
                side=side.what,
                count=late_count,
            )
        kept = table
        if late_count:
            kept = filter_rows(table, ~late)
            read = clocks(kept, side.on, side.created_on)
        batch = self._read(side, kept, read)
        if side is self._right and bool((batch.codes < 0).any()):
            usable = np.flatnonzero(batch.codes >= 0)
            self._counts["unmatchable_right"] += len(batch) - len(usable)
            batch = batch.take(usable)
        self._check_room(len(batch))
        side.schema = table.schema
        if len(batch):
            side.batches.append(batch)
        self._counts[f"pushed_{side.what}"] += len(table)
        self._counts[f"late_{side.what}"] += late_count
        if late_count and self._options.late == "side_output":
            self._late_tables[side.what].append(filter_rows(table, late))

    def _check_room(self, more: int) -> None:
        limit = self._options.max_pending_rows
        if limit is None or len(self._left) + len(self._right) + more <= limit:
            return
        self._prune(always=True)
        held = (len(self._left), len(self._right))
        if sum(held) + more > limit:
            raise StreamError(
                f"{more} more rows beside {held[0]} left rows that wait and {held[1]} right rows still "
                f"needed: max_pending_rows is {limit}",
                hint="advance the watermarks of both sides and emit, set a tolerance, or raise the bound",
            )

    def _check_outputs(self, side: Side, schema: pa.Schema) -> None:
        """Check names and types of what will come out, as soon as both schemas are known."""
        left = schema if side is self._left else self._left.schema
        right = schema if side is self._right else self._right.schema
        if right is not None:
            check_windows(self._options.aggregations, dict.fromkeys(right.names))
        if left is not None and right is not None:
            names = [*left.names, *(f.name for f in right_fields(self._options, right))]
            names += [w.name for w in self._options.aggregations]
            check_unique(names, "two output columns are named", "set a prefix")

    def _answer(self, left: Batch | None, found: Int32Array | None, count: int) -> pa.Table:
        """Return the first `count` left rows with what they take, and count them as emitted."""
        if self._left.schema is None:
            return pa.table({})
        empty = Batch(self._left.schema.empty_table(), NO_CODES, NO_TIMES, None)
        first = empty if left is None else left.slice(0, count)
        if self._right.schema is None:
            return first.table
        right = self._right.joined()
        if right is None:
            right = Batch(self._right.schema.empty_table(), NO_CODES, NO_TIMES, None)
        out = answer_table(
            self._options,
            first,
            NO_CODES if found is None else found,
            right,
            entities=len(self._keys),
            threads=self._threads,
        )
        self._counts["emitted"] += count
        return out

    def _prune(self, *, always: bool = False) -> None:
        """Drop right rows that no waiting or coming left row can use, and keys that nobody holds."""
        if not always and len(self._right) < 2 * self._pruned_rows + _PRUNE_ROWS:
            return
        right, left = self._right.joined(), self._left.joined()
        if right is not None:
            at = self._bound("left")
            if left is not None and (left.codes >= 0).any():
                at = min(at, int(left.event_ns[left.codes >= 0].min()))
            options = self._options
            forward = options.direction == "forward"
            kept = retained_indices(
                right.rows,
                entities=len(self._keys),
                at_ns=at,
                ttl_ns=options.tolerance_ns,
                newest=not forward,
                last_known=[],
                window_ns=max(options.look_back_ns, 1),
            )
            if len(kept) < len(right):
                self._right.hold(right.take(kept))
        self._pruned_rows = len(self._right)
        self._forget_keys()

    def _forget_keys(self) -> None:
        """Number the keys of the rows held anew, once most known keys are those of rows long gone."""
        held = len(self._left) + len(self._right)
        if not self._options.by or len(self._keys) < 2 * held + _FORGET_KEYS:
            return
        self._keys = KeyNumbers(self._options.by)
        for side in (self._left, self._right):
            batch = side.joined()
            if batch is not None:
                side.hold(self._read(side, batch.table, clocks(batch.table, side.on, side.created_on)))


def _table_of(side: Side) -> pa.Table | None:
    """Return everything a side holds, an empty table where only its columns are known."""
    if side.schema is None:
        return None
    batch = side.joined()
    return side.schema.empty_table() if batch is None else batch.table
