"""Aggregates over trailing windows: exact functions of the rows a reader may see, and of nothing else."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Final

import pyarrow as pa

from featurestore.core.names import near
from featurestore.core.time import INT64_MAX, Int64Array
from featurestore.errors import DefinitionError, ExpressionError, SchemaError
from featurestore.temporal.gather import gather
from featurestore.temporal.order import check_codes
from featurestore.temporal.rows import Rows, check_rows
from featurestore.temporal.threads import run_in_turn, thread_count
from featurestore.temporal.windows_answers import Answer, Room, Seen, number_kind
from featurestore.temporal.windows_batch import (
    SLOTS,
    Batch,
    count_and_sum,
    count_distinct,
    pick_rows,
    plan_batch,
)
from featurestore.temporal.windows_columns import Column, column_of
from featurestore.temporal.windows_order import Grouped, batches, group_rows, periods

FUNCTIONS: Final = (*SLOTS, "first", "last", "n_distinct", "last_n")


@dataclass(frozen=True, slots=True)
class Window:
    """One aggregate: a function of a column over `(t - window, t]` at the reader's own t.

    Attributes:
        column: Its name; `"*"` with `count` counts rows, otherwise non-null values.
        function: count, sum, mean, min, max, std, var, first, last, n_distinct or last_n.
        window_ns: Positive.
        tile_ns: Rounds the window's start down to a multiple of this; 0: none.
        n: The k of `last_n`, else `None`.
        name: Of the output column.
    """

    column: str
    function: str
    window_ns: int
    tile_ns: int = 0
    n: int | None = None
    name: str = ""


def window_aggregate(
    spine: Rows,
    rows: Rows,
    columns: Mapping[str, pa.ChunkedArray | pa.Array],
    windows: Sequence[Window],
    *,
    entities: int,
    threads: int | None = None,
) -> dict[str, pa.Array]:
    """Aggregate, for every spine row, the rows of its entity that it may see in each window.

    A row counts iff `t - window < event <= t` and `known <= spine.known` (PIT-1); with a tile the window
    starts after `floor((t - window) / tile) * tile`. Nulls are skipped; NaN is a value. Sums are the exact
    sum, rounded once: no answer depends on rows outside its window, on their order of arrival, or on threads.

    Args:
        spine: `(n,)` readers, any order.
        rows: `(m,)` events, any order.
        columns: By name, one value per row of `rows`.
        windows: Any number over any of the columns; equal windows share their ranges.
        entities: How many codes there are.

    Returns:
        By `Window.name`, `(n,)`: count and n_distinct int64; sum int64 of integers and float64 of floats;
        mean, std, var float64 (std and var: sample, null below two values); min, max, first, last of the
        column's type; last_n a fixed-size list, oldest first, padded on the left with nulls. An empty window
        has count and n_distinct 0 and everything else null.

    Raises:
        DefinitionError: an unknown function, a window or tile that is not positive, repeated names.
        SchemaError: a column is missing, has another length, or a type the function cannot take.
        ExpressionError: a sum of integers does not fit int64.

    Cost: sorting both sides, then O(n * windows + m) per column. Where both are in time order and windows
    are short, periods are answered one after the other, whose rows stay in the cache, by each thread.
    Memory beyond inputs and answers: 4 bytes per reader and per row of the periods under way for their order,
    32 per entity, a byte per reader and different window and column whose values are not counted anyway, 4
    per picked value; the rest is held for one batch of readers per thread. Numbers of all answers share one
    buffer: it stays as long as one of them.
    """
    check_windows(windows, columns)
    for side, what in ((spine, "spine"), (rows, "rows")):
        check_rows(side, what)
        check_codes(side, entities, what)
    arrays = {
        name: pa.nulls(0) if name == "*" else column_of(name, columns[name], len(rows))
        for name in dict.fromkeys(w.column for w in windows)
    }
    for name, array in arrays.items():
        Column(name, array.slice(0, 0), 0).check(w.function for w in windows if w.column == name)
    work = _Work(arrays, windows, len(spine), entities)
    work.run(Rows(spine.codes, spine.event_ns, spine.known_ns), rows, threads)
    return {w.name: work.finished(w) for w in windows}


def check_windows(windows: Sequence[Window], columns: Mapping[str, object]) -> None:
    """Check what can be checked before any work.

    Raises:
        DefinitionError: an unknown function, a window or tile that is not positive, repeated names.
        SchemaError: a column that is not there.
    """
    names = [w.name for w in windows]
    for w in windows:
        if w.function not in FUNCTIONS or (w.function == "last_n") != (w.n is not None) or w.n == 0:
            raise DefinitionError(
                f"window {w.name!r} has function {w.function!r} and n {w.n!r}",
                hint=f"one of {', '.join(FUNCTIONS)}; last_n alone takes a positive n",
            )
        if w.window_ns <= 0 or w.tile_ns < 0 or w.window_ns > INT64_MAX or w.tile_ns > w.window_ns:
            raise DefinitionError(
                f"window {w.name!r} has length {w.window_ns} ns and tile {w.tile_ns} ns",
                hint="the window is positive, and the tile no longer than the window (0: none)",
            )
        if names.count(w.name) > 1:
            raise DefinitionError(f"two windows are named {w.name!r}", hint="give each its own name")
        if w.column == "*" and w.function != "count":
            raise DefinitionError(f'"*" cannot be aggregated by {w.function}', hint='only count takes "*"')
        if w.column != "*" and w.column not in columns:
            raise SchemaError(
                f"window {w.name!r} aggregates column {w.column!r}, which is not there",
                hint=near(w.column, columns),
                column=w.column,
            )


class _Work:
    """One call of `window_aggregate`: the answers that batches of readers fill."""

    def __init__(
        self, arrays: Mapping[str, pa.Array], windows: Sequence[Window], readers: int, entities: int
    ) -> None:
        self.arrays, self.windows, self.entities = arrays, windows, entities
        self.spans = sorted({(w.window_ns, w.tile_ns) for w in windows})
        kinds = {w.name: number_kind(w.function, arrays[w.column].type) for w in windows}
        room = Room(readers, [kind for kind in kinds.values() if kind is not None])
        self.answers = {
            w.name: Answer.of(w.function, kinds[w.name], room, readers, w.n or 1) for w in windows
        }
        counted = {self.key_of(w): self.answers[w.name] for w in windows if w.function == "count"}
        with_nulls = [w for w in windows if w.function in SLOTS[1:] and kinds[w.name] is not None]
        self.seen = {key: Seen(readers, counted.get(key)) for key in {self.key_of(w) for w in with_nulls}}

    def key_of(self, window: Window) -> tuple[str, int]:
        return window.column, self.span_of(window)

    def span_of(self, window: Window) -> int:
        return self.spans.index((window.window_ns, window.tile_ns))

    def run(self, spine: Rows, rows: Rows, threads: int | None) -> None:
        """Answer period after period, each thread taking the next; who finds none helps with the others'.

        Raises:
            ExpressionError: a sum of integers does not fit int64.
        """
        reach = max((window + tile for window, tile in self.spans), default=1)
        parts = thread_count(threads, len(spine) + len(rows))

        def answer(reader: int, reader_end: int, row: int, row_end: int) -> None:
            readers = group_rows(
                spine[reader:reader_end], begin=reader, entities=self.entities, threads=parts
            )
            seen = group_rows(rows[row:row_end], begin=row, entities=self.entities, threads=parts)
            if readers.count < reader_end - reader:
                has_key = spine.codes[reader:reader_end] >= 0
                for mine in self.answers.values():
                    mine.put_none(reader, has_key)
            cuts = batches(readers, seen, reach, parts)
            run_in_turn([partial(self.answer, cut, readers, seen) for cut in cuts], parts)

        cuts = periods(spine, rows, reach, entities=self.entities, threads=threads)
        run_in_turn([partial(answer, *cut) for cut in cuts.tolist()], parts)

    def finished(self, window: Window) -> pa.Array:
        """Return a window's answer as Arrow."""
        seen = self.seen.get(self.key_of(window)) if window.function in SLOTS[1:] else None
        return self.answers[window.name].finished(self.arrays[window.column], seen)

    def answer(self, cut: Int64Array, spine: Grouped, rows: Grouped) -> None:
        """Answer every window for the readers of one batch.

        Raises:
            ExpressionError: a sum of integers does not fit int64.
        """
        batch = plan_batch(cut, spine, rows, self.spans)
        for name, array in self.arrays.items():
            wanted = [w for w in self.windows if w.column == name]
            column = Column(name, _taken(array, rows, batch, cut), len(batch.positions))
            self.numbers(batch, column, [w for w in wanted if w.function in SLOTS])
            for w in wanted:
                span, answer = self.span_of(w), self.answers[w.name]
                if w.function == "n_distinct":
                    answer.put(batch.places, count_distinct(batch, column, span))
                elif w.function not in SLOTS:
                    count = 0 if w.function == "first" else w.n or 1
                    answer.put(batch.places, pick_rows(batch, column, span, count))

    def numbers(self, batch: Batch, column: Column, wanted: Sequence[Window]) -> None:
        """Answer the counts, sums and extremes of one column.

        Raises:
            ExpressionError: a sum of integers does not fit int64.
        """
        if not wanted:
            return
        asked = list(dict.fromkeys((self.span_of(w), w.function) for w in wanted))
        found = count_and_sum(batch, column, asked)
        if found.overflow:
            row = int(batch.places[found.overflow - 1])
            raise ExpressionError(
                f"a sum of {column.name!r} does not fit int64 (spine row {row})",
                hint="cast the column to double in the view, or shorten the window",
                column=column.name,
                row=row,
            )
        for span in {span for span, _ in asked}:
            if (column.name, span) in self.seen:
                self.seen[column.name, span].put(batch.places, found.rows, int(found.slots[span, 0]))
        for w in wanted:
            slot = int(found.slots[self.span_of(w), SLOTS.index(w.function)])
            self.answers[w.name].put_numbers(batch, found, slot)


def _taken(array: pa.Array, rows: Grouped, batch: Batch, cut: Int64Array) -> pa.Array:
    """Return a column's values in the batch's order."""
    if len(array) == 0:
        return array
    if rows.order is None:
        return array.slice(rows.begin + int(cut[4]), int(cut[5] - cut[4]))
    return gather(array, batch.positions, threads=1)
