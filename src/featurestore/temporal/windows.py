"""Aggregates over trailing windows: exact functions of the rows a reader may see, and of nothing else."""

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.core.names import near
from featurestore.core.time import INT64_MAX, BoolArray, Int64Array
from featurestore.errors import DefinitionError, ExpressionError, SchemaError
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.order import NO_INT64
from featurestore.temporal.rows import Int32Array, Rows, frozen
from featurestore.temporal.threads import run_parallel, thread_count
from featurestore.temporal.windows_columns import (
    FLOAT,
    INT,
    NO_BOOL,
    Column,
    Values,
    array_of,
    array_of_bits,
    column_of,
    lists_of,
    take_rows,
)
from featurestore.temporal.windows_order import Grouped, columns_of, group_rows

_ranges: Any = lazy_module("featurestore.temporal.windows_range_kernels")
_sums: Any = lazy_module("featurestore.temporal.windows_sum_kernels")
_extremes: Any = lazy_module("featurestore.temporal.windows_extreme_kernels")
_picks: Any = lazy_module("featurestore.temporal.windows_pick_kernels")

SUMS: Final = ("count", "sum", "mean", "var", "std")
_SLOTS: Final = (*SUMS, "min", "max")
# Rows and readers of one call into the kernels: their answers should stay in the cache.
_GROUP_ROWS: Final = 1 << 15
FUNCTIONS: Final = (*_SLOTS, "first", "last", "n_distinct", "last_n")


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


@dataclass(frozen=True, slots=True)
class _Plan:
    """Rows and readers in entity order, ranges and tasks: everything the columns share."""

    spine_rows: int
    places: Int32Array
    rows: Grouped
    cutoffs: Int64Array
    late: BoolArray
    low: npt.NDArray[np.int32]
    high: npt.NDArray[np.int32]
    ordered: Int64Array
    disordered: Int64Array
    parts: int

    @property
    def shared(self) -> tuple[Any, ...]:
        return self.low, self.high, self.rows.known, self.cutoffs

    @property
    def every_task(self) -> list[Int64Array]:
        """All tasks, one share per thread."""
        tasks = np.concatenate([self.ordered, self.disordered])
        weights = tasks[:, 1] - tasks[:, 0] + tasks[:, 3] - tasks[:, 2]
        return [tasks[a:b] for a, b in _edges(weights, self.parts) if b > a]


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

    Cost: sorting both sides, then O(n * windows + m) per column. Memory: 4 bytes per spine row and different
    window, 12 to 20 per row, and up to 76 per row of the longest window.
    """
    check_windows(windows, columns)
    spans = sorted({(w.window_ns, w.tile_ns) for w in windows})
    plan = _plan(spine, rows, spans, entities, threads)
    out: dict[str, pa.Array] = {}
    for name in dict.fromkeys(w.column for w in windows):
        wanted = [w for w in windows if w.column == name]
        data = pa.nulls(len(rows)) if name == "*" else columns[name]
        column = column_of(name, data, len(rows), plan.rows)
        out |= _aggregate_column(column, wanted, spans, plan)
    return {w.name: out[w.name] for w in windows}


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


def _plan(spine: Rows, rows: Rows, spans: list[tuple[int, int]], entities: int, threads: int | None) -> _Plan:
    of_rows = group_rows(rows, entities=entities, threads=threads)
    readers = group_rows(
        Rows(spine.codes, spine.event_ns, spine.known_ns), entities=entities, threads=threads
    )
    late = np.zeros(entities, np.bool_)
    if len(of_rows.known):
        _ranges.find_late(of_rows.known, of_rows.starts, of_rows.ends, late)
    has_cutoffs = len(readers.known) > 0 or len(of_rows.known) > 0
    # INT64_MAX is "never" for a row and "everything that is ever known" for a reader.
    cutoffs = readers.known if len(readers.known) else readers.event
    cutoffs = frozen(np.minimum(cutoffs, INT64_MAX - 1)) if len(of_rows.known) else cutoffs
    low = np.zeros((len(spans), len(readers.event)), np.int32)
    high = np.zeros(len(readers.event), np.int32)
    window, tile = np.array(spans, np.int64).reshape(-1, 2).T.copy()
    spine_bounds = (readers.starts, readers.ends)
    weights = readers.ends - readers.starts + of_rows.ends - of_rows.starts
    parts = thread_count(threads, len(spine) + len(rows))
    run_parallel(
        [
            partial(
                _ranges.fill_ranges, edges, of_rows.event, of_rows.known, (of_rows.starts, of_rows.ends),
                late, readers.event, cutoffs if has_cutoffs else NO_INT64, spine_bounds, window, tile,
                low, high,
            )
            for edges in _edges(weights, parts)
        ]
    )  # fmt: skip
    tasks = _tasks(spine_bounds, low, high)
    is_late = late[tasks[:, 4]]
    return _Plan(
        spine_rows=len(spine),
        places=readers.places,
        rows=of_rows,
        cutoffs=cutoffs,
        late=late,
        low=low,
        high=high,
        ordered=tasks[~is_late],
        disordered=tasks[is_late],
        parts=parts,
    )


def _tasks(
    bounds: tuple[Int64Array, Int64Array], low: npt.NDArray[np.int32], high: npt.NDArray[np.int32]
) -> Int64Array:
    out = np.empty((len(bounds[0]) + 1024, 5), np.int64)
    count = _ranges.cut_tasks(bounds, low, high, out)
    if count > len(out):
        out = np.empty((count, 5), np.int64)
        count = _ranges.cut_tasks(bounds, low, high, out)
    return out[:count]


def _edges(weights: Int64Array, parts: int) -> list[tuple[int, int]]:
    """Cut `range(len(weights))` into ranges of nearly equal weight."""
    total = np.cumsum(weights)
    full = int(total[-1]) if len(total) else 0
    cuts = [int(np.searchsorted(total, full * part // parts)) for part in range(1, parts)]
    edges = [0, *cuts, len(weights)]
    return list(pairwise(edges))


def _groups(tasks: Int64Array) -> list[Int64Array]:
    """Cut tasks into neighbours of about `_GROUP_ROWS` rows and readers together."""
    weights = tasks[:, 1] - tasks[:, 0] + tasks[:, 3] - tasks[:, 2]
    parts = int(weights.sum()) // _GROUP_ROWS + 1
    return [tasks[a:b] for a, b in _edges(weights, parts) if b > a]


def _aggregate_column(
    column: Column, wanted: Sequence[Window], spans: list[tuple[int, int]], plan: _Plan
) -> dict[str, pa.Array]:
    numeric = [w for w in wanted if w.function in {*SUMS, "min", "max"}]
    out = _numbers(column, numeric, spans, plan) if numeric else {}
    for w in wanted:
        span = spans.index((w.window_ns, w.tile_ns))
        if w.function == "n_distinct":
            out[w.name] = _distinct(column, span, plan)
        elif w.function in {"first", "last", "last_n"}:
            out[w.name] = _pick(column, w, span, plan)
    return out


def _numbers(
    column: Column, wanted: Sequence[Window], spans: list[tuple[int, int]], plan: _Plan
) -> dict[str, pa.Array]:
    """Answer counts, sums and extremes: written reader by reader, then turned into columns."""
    used = sorted({spans.index((w.window_ns, w.tile_ns)) for w in wanted})
    row = {spans[span]: k for k, span in enumerate(used)}
    slots = np.full((len(used), len(_SLOTS)), -1, np.int64)
    slots[:, 0] = np.arange(len(used))
    width = len(used)
    for w in wanted:
        at = (row[w.window_ns, w.tile_ns], _SLOTS.index(w.function))
        if slots[at] < 0:
            slots[at] = width
            width += 1
    spine_rows = plan.spine_rows
    rows = np.zeros((spine_rows, width), np.int64)
    windows = np.array(used, np.int64)
    values, ranked = _values(column, wanted)
    _answer_numbers(column.name, _Numbers(values, windows, slots, rows, plan))
    columns = columns_of(rows, threads=plan.rows.threads)
    answers: dict[str, pa.Array] = {}
    for w in wanted:
        k = row[w.window_ns, w.tile_ns]
        bits, count = columns[slots[k, _SLOTS.index(w.function)]], columns[k]
        answers[w.name] = _answer(w.function, bits, count, values[2], ranked, column.array.type)
    return answers


def _values(column: Column, wanted: Sequence[Window]) -> tuple[Values, "pa.Array | None"]:
    """Return what the kernels read, and the values that ranks stand for where they read ranks."""
    functions = {w.function for w in wanted}
    if functions & {"sum", "mean", "var", "std"}:
        return column.numbers(), None
    if functions & {"min", "max"}:
        return column.keys()
    valid = NO_BOOL if column.name == "*" else column.valid()
    return (frozen(np.zeros(len(column.order.event), np.int64)), valid, INT), None


def _answer(
    function: str, bits: Int64Array, count: Int64Array, kind: int, ranked: "pa.Array | None", to: pa.DataType
) -> pa.Array:
    if function == "count":
        return pa.array(bits)
    if function in {"min", "max"}:
        if ranked is None:
            return array_of_bits(bits, count == 0, to)
        return take_rows(ranked, np.where(count == 0, -1, bits).astype(np.int32)).cast(to)
    if function == "sum" and kind != FLOAT:
        return array_of(bits, count == 0)
    return array_of(bits.view(np.float64), count < (2 if function in {"var", "std"} else 1))


@dataclass(frozen=True, slots=True)
class _Numbers:
    """What one column's counts, sums and extremes are computed from and written to."""

    values: Values
    windows: Int64Array
    slots: Int64Array
    rows: Int64Array
    plan: _Plan

    def answer(self, tasks: Int64Array, *, late: bool) -> int:
        """Answer a group of tasks; return the place + 1 of a reader whose integer sum overflows, else 0."""
        plan = self.plan
        sums = np.ascontiguousarray(self.slots[:, : len(SUMS)])
        answers = (self.windows, sums, plan.places, self.rows, self.rows.view(np.float64))
        wide, bad = np.full(len(tasks), late), 0
        if not late:
            bad = _sums.sum_by_prefix(tasks, self.values, plan.low, plan.high, *answers, wide)
        if wide.any():
            rest = (tasks[wide], self.values, *plan.shared, plan.late, *answers)
            bad = max(bad, _sums.sum_by_moves(*rest))
        for function in ("min", "max"):
            slots = self.slots[:, _SLOTS.index(function)]
            has = slots >= 0
            if not has.any():
                continue
            to = (self.windows[has], slots[has], plan.places, self.rows)
            greatest = function == "max"
            if late:
                _extremes.extremes_by_moves(tasks, self.values, greatest, *plan.shared, *to)
            else:
                _extremes.extremes_by_blocks(tasks, self.values, greatest, plan.low, plan.high, *to)
        return int(bad)


def _answer_numbers(name: str, numbers: _Numbers) -> None:
    """Answer all tasks, in groups whose rows and answers stay in the cache; a free thread takes the next.

    Raises:
        ExpressionError: a sum of integers does not fit int64.
    """
    plan = numbers.plan
    bad: list[int] = []
    work = deque(
        partial(numbers.answer, group, late=late)
        for tasks, late in ((plan.ordered, False), (plan.disordered, True))
        for group in _groups(tasks)
    )

    def run() -> None:
        while work:
            try:
                task = work.popleft()
            except IndexError:  # another thread took the last one
                return
            bad.append(task())

    run_parallel([run] * plan.parts)
    overflow = max(bad, default=0)
    if overflow:
        raise ExpressionError(
            f"a sum of {name!r} does not fit int64 (spine row {overflow - 1})",
            hint="cast the column to double in the view, or shorten the window",
            column=name,
            row=overflow - 1,
        )


def _distinct(column: Column, span: int, plan: _Plan) -> pa.Array:
    codes, distinct = column.codes()
    out = np.zeros((1, plan.spine_rows), np.int64)
    used = np.array([span], np.int64)
    run_parallel(
        [
            partial(
                _picks.count_distinct,
                tasks,
                codes,
                distinct,
                *plan.shared,
                plan.late,
                used,
                plan.places,
                out,
            )
            for tasks in plan.every_task
        ]
    )
    return pa.array(out[0])


def _pick(column: Column, window: Window, span: int, plan: _Plan) -> pa.Array:
    count = 0 if window.function == "first" else window.n or 1
    width = max(count, 1)
    out = np.full((1, plan.spine_rows * width), -1, np.int32)
    used, counts = np.array([span], np.int64), np.array([count], np.int64)
    valid = column.valid()
    run_parallel(
        [
            partial(
                _picks.pick_rows,
                tasks,
                valid,
                *plan.shared,
                plan.late,
                used,
                counts,
                plan.places,
                plan.rows.places,
                out,
                width,
            )
            for tasks in plan.every_task
        ]
    )
    if window.function == "last_n":
        return lists_of(out[0], width, column.array)
    return take_rows(column.array, out[0])
