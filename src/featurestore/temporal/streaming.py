"""The as-of join on live feeds: the same kernels as the batch join, called on what may still matter."""

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from featurestore.core.table_rows import filter_rows
from featurestore.core.time import INT64_MIN, BoolArray, Duration, Instant, Int64Array, instant_ns
from featurestore.errors import CorruptDataError, DefinitionError, LateDataError, SchemaError, StreamError
from featurestore.temporal.rows import Int32Array, frozen
from featurestore.temporal.streaming_answers import Answers, right_fields
from featurestore.temporal.streaming_keys import KeyNumbers
from featurestore.temporal.streaming_options import checked_options
from featurestore.temporal.streaming_side import LeftSide, RightSide, Side
from featurestore.temporal.streaming_state import FORMAT, SIDES, check_state, table_of, table_text
from featurestore.temporal.tables import check_unique
from featurestore.temporal.threads import check_count
from featurestore.temporal.windows import check_windows

NOTHING: Final[Int32Array] = frozen(np.empty(0, np.int32))
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
        if threads is not None:
            check_count(threads, "threads")
        self._kept, self._threads = kept, threads
        self._begin()

    def _begin(self) -> None:
        """Have seen nothing."""
        options = self._options
        self._left = LeftSide(options.on, options.by)
        self._right = RightSide(options.right_on, options.right_by, options.created_on, self._kept)
        self._keys = KeyNumbers(options.by)
        self._answers = Answers(options, self._left, self._right, self._keys, self._threads)
        self._watermarks: dict[str, int | None] = dict.fromkeys(SIDES)
        self._late_tables: dict[str, list[pa.Table]] = {side: [] for side in SIDES}
        self._counts = dict.fromkeys(_COUNTS, 0)
        self._pruned_rows = 0
        self._closed = False

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

        Cost: O(rows that come out + right rows since the last time) where both feeds are in time order, and
        the batch join of what is held where they are not; no Python per row.
        """
        self._check_open()
        if not self._right.is_known:
            return self._emitted(NOTHING)
        out = self._emitted(self._answers.sealed(self._bound("right")))
        self._prune()
        return out

    def flush(self) -> pa.Table:
        """End the stream: return everything that waits; nothing more can be pushed.

        Raises:
            StreamError: a second time, or where left rows wait and no right table was ever pushed.
            ExpressionError: an aggregate that does not fit its type.
        """
        self._check_open()
        waiting = len(self._left.rows)
        if waiting and not self._right.is_known:
            raise StreamError(
                f"{waiting} left rows wait, and nothing was ever pushed on the right: "
                "its columns are not known",
                hint="push an empty table with the right side's columns before flush",
            )
        out = self._emitted(self._answers.found(waiting))
        self._left.clear()
        self._right.clear()
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
            "pending_left": len(self._left.rows),
            "retained_right": len(self._right.rows),
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
        sides: dict[str, LeftSide | RightSide] = {"left": self._left, "right": self._right}
        tables = {name: side.table() if side.is_known else None for name, side in sides.items()}
        return {
            "format": FORMAT,
            "options": self._options.spec(),
            "watermarks": dict(self._watermarks),
            "counts": dict(self._counts),
            "closed": self._closed,
            "rows": {name: table_text(table) for name, table in tables.items()},
            "late": {side: table_text(table) for side, table in late.items()},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Become the stream that was saved; its arguments must be this one's. An error leaves it as it was.

        Raises:
            StreamError: the state is of another format, damaged, or of a stream with other arguments.
            CorruptDataError: its rows cannot be read.
        """
        check_state(state, self._options.spec(), _COUNTS)
        new = object.__new__(type(self))
        new._options, new._kept, new._threads = self._options, self._kept, self._threads
        new._begin()
        try:
            for name, side in (("left", new._left), ("right", new._right)):
                new._restore(side, table_of(state["rows"][name]), table_of(state["late"][name]))
        except SchemaError as error:
            raise CorruptDataError(f"a saved stream holds rows that are not its own: {error}") from error
        new._watermarks = {side: state["watermarks"][side] for side in SIDES}
        new._counts = {name: state["counts"][name] for name in _COUNTS}
        new._closed = state["closed"]
        new._pruned_rows = len(new._right.rows)
        self.__dict__.update(new.__dict__)

    def _restore(self, side: LeftSide | RightSide, table: pa.Table | None, late: pa.Table | None) -> None:
        """Hold the rows of a saved stream.

        Raises:
            SchemaError: they are not such rows.
        """
        if late is not None:
            self._late_tables[side.what].append(late)
        if table is None:
            return
        table = side.read(table)
        self._check_first(side, table.schema)
        event, null = side.times(table)
        _, fall = side.rows.put_times(event, INT64_MIN)
        self._put_keys(side, table, null, side.rows.end)
        side.hold(table, fall)
        side.learn(table.schema)

    # Inside.

    def _check_open(self) -> None:
        if self._closed:
            raise StreamError("the stream was flushed", hint="begin a new StreamingJoin")

    def _bound(self, side: str) -> int:
        """The watermark less the lateness: nothing older is accepted."""
        watermark = self._watermarks[side]
        return INT64_MIN if watermark is None else max(watermark - self._options.lateness_ns, INT64_MIN)

    def _push(self, side: LeftSide | RightSide, data: Any) -> None:
        self._check_open()
        table = side.read(data)
        if not side.is_known:
            self._check_first(side, table.schema)
        if self._options.max_pending_rows is not None:
            self._make_room(len(table), self._options.max_pending_rows)
        event, null = side.times(table)
        late_count, fall = side.rows.put_times(event, self._bound(side.what))
        kept, late = table, None
        if late_count:
            kept, late = self._split(side, table, event, null)
        if late is not None:
            event, null = side.times(kept)
            _, fall = side.rows.put_times(event, INT64_MIN)
        with_nulls, unmatchable = self._put_keys(side, kept, null, side.rows.end), 0
        if with_nulls and side is self._right:
            matchable, fall = self._right.matchable(kept, fall)
            kept, unmatchable = matchable, len(kept) - len(matchable)
        if self._options.max_pending_rows is not None:
            self._check_room(len(kept), self._options.max_pending_rows)
        side.hold(kept, fall)
        side.learn(table.schema)
        self._counts[f"pushed_{side.what}"] += len(table)
        self._counts["unmatchable_right"] += unmatchable
        if late is not None:
            self._counts[f"late_{side.what}"] += len(late)
            if self._options.late == "side_output":
                self._late_tables[side.what].append(late)

    def _split(
        self, side: Side, table: pa.Table, event: Int64Array, null: BoolArray | None
    ) -> tuple[pa.Table, pa.Table | None]:
        """Return the rows that are on time and those that are late, `None` where none is.

        Raises:
            LateDataError: a late row, with `late="error"`.
        """
        bound = self._bound(side.what)
        late = event < bound
        if null is not None:
            late &= ~null
        count = int(np.count_nonzero(late))
        if count == 0:
            return table, None
        if self._options.late == "error":
            raise LateDataError(
                f"{count} rows of {side.what} are older than {bound} ns, the watermark less the lateness: "
                f"the first one is of {int(event[np.argmax(late)])} ns",
                hint='allow more lateness, or take late="drop" or "side_output"',
                side=side.what,
                count=count,
            )
        return filter_rows(table, ~late), filter_rows(table, late)

    def _put_keys(self, side: Side, table: pa.Table, null: BoolArray | None, at: int) -> bool:
        """Write the codes of a table, and when its rows could be known, from place `at` on.

        Returns:
            Whether a code can be -1.
        """
        codes = side.rows.codes[at : at + len(table)]
        with_nulls = self._keys.code([table.column(name) for name in side.by], codes)
        if null is not None:
            codes[null], with_nulls = -1, True
        side.put_known(table, at)
        return with_nulls

    def _make_room(self, more: int, limit: int) -> None:
        """Thin out what is held where so many more rows would not fit beside it."""
        if len(self._left.rows) + len(self._right.rows) + more > limit:
            self._prune(always=True)

    def _check_room(self, more: int, limit: int) -> None:
        held = (len(self._left.rows), len(self._right.rows))
        if sum(held) + more > limit:
            raise StreamError(
                f"{more} more rows beside {held[0]} left rows that wait and {held[1]} right rows still "
                f"needed: max_pending_rows is {limit}",
                hint="advance the watermarks of both sides and emit, set a tolerance, or raise the bound",
            )

    def _check_first(self, side: Side, schema: pa.Schema) -> None:
        """Check key types, and what will come out as soon as both schemas are known."""
        self._keys.check([schema.field(name).type for name in side.by])
        left, right = (schema if s is side else s.schema for s in (self._left, self._right))
        if side is self._right or self._right.is_known:
            check_windows(self._options.aggregations, dict.fromkeys(right.names))
        if (self._right if side is self._left else self._left).is_known:
            names = [*left.names, *(f.name for f in right_fields(self._options, right))]
            names += [w.name for w in self._options.aggregations]
            check_unique(names, "two output columns are named", "set a prefix")

    def _emitted(self, found: Int32Array) -> pa.Table:
        """Return the first left rows with what they take, and let go of them."""
        if not (self._left.is_known and self._right.is_known):
            return self._left.first(0)
        out = self._answers.table(found)
        self._left.drop(len(found))
        self._counts["emitted"] += len(found)
        return out

    def _prune(self, *, always: bool = False) -> None:
        """Drop right rows that no waiting or coming left row can use, and keys that nobody holds."""
        held = len(self._right.rows)
        if not always and held < 2 * self._pruned_rows + _PRUNE_ROWS:
            return
        if held:
            kept = self._answers.retained(self._oldest_reader())
            if len(kept) < held:
                self._answers.keep(kept, held)
                self._right.keep(kept)
        self._pruned_rows = len(self._right.rows)
        self._forget_keys()

    def _oldest_reader(self) -> int:
        """Return the earliest time of a left row that waits or may still come."""
        waiting, bound = self._left.rows.view(0, len(self._left.rows)), self._bound("left")
        if len(waiting) and waiting.in_order and waiting.codes[0] >= 0:
            return min(bound, int(waiting.event_ns[0]))
        with_key = waiting.event_ns[waiting.codes >= 0]
        return min(bound, int(with_key.min())) if len(with_key) else bound

    def _forget_keys(self) -> None:
        """Number the keys of the rows held anew, once most known keys are those of rows long gone."""
        held = len(self._left.rows) + len(self._right.rows)
        if not self._options.by or len(self._keys) < 2 * held + _FORGET_KEYS:
            return
        self._keys.forget()
        self._answers.forget()
        for side in (self._left, self._right):
            if side.is_known:
                table = side.table()
                self._put_keys(side, table, side.times(table)[1], side.rows.first)
