"""Aggregates over trailing windows: exact functions of the rows a reader may see, and of nothing else."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.core.names import near
from featurestore.core.time import INT64_MAX, BoolArray, Int64Array
from featurestore.errors import DefinitionError, ExpressionError, SchemaError
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.order import NO_INT32, NO_INT64, Partition, partition_rows
from featurestore.temporal.rows import Int32Array, Rows
from featurestore.temporal.threads import run_parallel, thread_count
from featurestore.temporal.windows_columns import (
    FLOAT,
    Column,
    array_of,
    array_of_keys,
    column_of,
    lists_of,
    take_rows,
)

_ranges: Any = lazy_module("featurestore.temporal.windows_range_kernels")
_sums: Any = lazy_module("featurestore.temporal.windows_sum_kernels")
_extremes: Any = lazy_module("featurestore.temporal.windows_extreme_kernels")
_picks: Any = lazy_module("featurestore.temporal.windows_pick_kernels")

SUM_NEEDS: Final = {"count": 0, "sum": 4, "mean": 8, "var": 16, "std": 32}
FUNCTIONS: Final = (*SUM_NEEDS, "min", "max", "first", "last", "n_distinct", "last_n")
_NO_FLOAT: npt.NDArray[np.float64] = np.zeros((0, 0), np.float64)
_NO_BOOL: BoolArray = np.zeros(0, np.bool_)


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
    """Sorted rows and readers, ranges and tasks: everything the columns share."""

    spine_rows: int
    places: Int32Array
    partition: Partition
    known: Int64Array
    cutoffs: Int64Array
    late: BoolArray
    low: npt.NDArray[np.int32]
    high: npt.NDArray[np.int32]
    ordered: list[Int64Array]
    disordered: list[Int64Array]

    @property
    def order(self) -> Int32Array:
        return NO_INT32 if self.partition.order is None else self.partition.order

    @property
    def shared(self) -> tuple[Any, ...]:
        return self.low, self.high, self.known, self.cutoffs

    @property
    def every_task(self) -> list[Int64Array]:
        return self.ordered + self.disordered


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
        column = column_of(name, data, len(rows), plan.partition)
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
    of_rows = partition_rows(rows, entities=entities, threads=threads)
    of_spine = partition_rows(
        Rows(spine.codes, spine.event_ns, spine.known_ns), entities=entities, threads=threads
    )
    event = of_rows.take(np.ascontiguousarray(rows.event_ns), threads=threads)
    known, late = NO_INT64, np.zeros(entities, np.bool_)
    if rows.known_ns is not None:
        known = of_rows.take(np.ascontiguousarray(rows.known_ns), threads=threads)
        _ranges.find_late(known, of_rows.starts, of_rows.ends, late)
    times = of_spine.take(np.ascontiguousarray(spine.event_ns), threads=threads)
    cutoffs = times
    if spine.known_ns is not None:
        cutoffs = of_spine.take(np.ascontiguousarray(spine.known_ns), threads=threads)
    # INT64_MAX is "never" for a row and "everything that is ever known" for a reader.
    cutoffs = np.minimum(cutoffs, INT64_MAX - 1) if len(known) or spine.known_ns is not None else cutoffs
    low = np.zeros((len(spans), len(times)), np.int32)
    high = np.zeros(len(times), np.int32)
    window, tile = np.array(spans, np.int64).reshape(-1, 2).T.copy()
    spine_bounds, row_bounds = (of_spine.starts, of_spine.ends), (of_rows.starts, of_rows.ends)
    weights = of_spine.ends - of_spine.starts + of_rows.ends - of_rows.starts
    run_parallel(
        [
            partial(
                _ranges.fill_ranges,
                edges,
                event,
                known,
                row_bounds,
                late,
                times,
                cutoffs if spine.known_ns is not None or len(known) else NO_INT64,
                spine_bounds,
                window,
                tile,
                low,
                high,
            )
            for edges in _edges(weights, thread_count(threads, len(times) + len(event)))
        ]
    )
    tasks = _tasks(spine_bounds, low, high)
    is_late = late[tasks[:, 4]]
    parts = thread_count(threads, len(times) + len(event))
    return _Plan(
        spine_rows=len(spine),
        places=NO_INT32 if of_spine.order is None else of_spine.order,
        partition=of_rows,
        known=known,
        cutoffs=cutoffs,
        late=late,
        low=low,
        high=high,
        ordered=_parts(tasks[~is_late], parts),
        disordered=_parts(tasks[is_late], parts),
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
    return list(zip(edges[:-1], edges[1:], strict=True))


def _parts(tasks: Int64Array, parts: int) -> list[Int64Array]:
    weights = tasks[:, 1] - tasks[:, 0] + tasks[:, 3] - tasks[:, 2]
    return [tasks[a:b] for a, b in _edges(weights, parts) if b > a]


def _aggregate_column(
    column: Column, wanted: Sequence[Window], spans: list[tuple[int, int]], plan: _Plan
) -> dict[str, pa.Array]:
    out: dict[str, pa.Array] = {}
    span_of = {span: k for k, span in enumerate(spans)}
    numeric = [w for w in wanted if w.function in {*SUM_NEEDS, "min", "max"}]
    used = sorted({span_of[w.window_ns, w.tile_ns] for w in numeric})
    row_of = {span: k for k, span in enumerate(used)}

    def row(window: Window) -> int:
        return row_of[span_of[window.window_ns, window.tile_ns]]

    needs = np.zeros(len(used), np.int64)
    for w in numeric:
        needs[row(w)] |= SUM_NEEDS.get(w.function, 0)
    used_spans = np.array(used, np.int64)
    if numeric:
        sums = _sum_column(column, used_spans, needs, plan)
        counts = sums["count"]
        for w in numeric:
            if w.function in SUM_NEEDS:
                least = {"count": 0, "std": 2, "var": 2}.get(w.function, 1)
                empty = None if least == 0 else counts[row(w)] < least
                out[w.name] = array_of(sums[w.function][row(w)], empty)
        for function in ("min", "max"):
            of_function = [w for w in numeric if w.function == function]
            out |= _extremes_of(column, of_function, function == "max", span_of, counts, row, plan)
    for w in wanted:
        if w.function == "n_distinct":
            out[w.name] = _distinct(column, span_of[w.window_ns, w.tile_ns], plan)
        elif w.function in {"first", "last", "last_n"}:
            out[w.name] = _pick(column, w, span_of[w.window_ns, w.tile_ns], plan)
    return out


def _sum_column(
    column: Column, used: Int64Array, needs: Int64Array, plan: _Plan
) -> dict[str, npt.NDArray[Any]]:
    every = int(np.bitwise_or.reduce(needs)) if len(needs) else 0
    if every:
        values = column.numbers()
    else:
        valid = _NO_BOOL if column.name == "*" else column.valid()
        values = (np.zeros(len(column.array) if len(valid) == 0 else len(valid), np.int64), valid, 1)
    shape = (len(used), plan.spine_rows)
    is_float = values[2] == FLOAT
    whole = np.zeros(shape if every & 4 and not is_float else (0, 0), np.int64)
    wants = (4 if is_float else 0, 8, 16, 32)
    floats = [np.zeros(shape) if every & bit else _NO_FLOAT for bit in wants]
    count = np.zeros(shape, np.int64)
    outs = (count, whole, *floats)
    overflow = _run_sums(values, used, needs, outs, plan)
    if overflow:
        raise ExpressionError(
            f"a sum of {column.name!r} does not fit int64 (spine row {overflow - 1})",
            hint="cast the column to double in the view, or shorten the window",
            column=column.name,
            row=overflow - 1,
        )
    named = dict(zip(("sum", "mean", "var", "std"), floats, strict=True))
    return {**named, "count": count, **({} if is_float else {"sum": whole})}


def _run_sums(
    values: tuple[Any, ...], used: Int64Array, needs: Int64Array, outs: tuple[Any, ...], plan: _Plan
) -> int:
    bad: list[int] = []
    wide = [np.zeros(len(tasks), np.bool_) for tasks in plan.ordered]

    def by_prefix(tasks: Int64Array, marks: BoolArray) -> None:
        bad.append(
            _sums.sum_by_prefix(tasks, values, plan.low, plan.high, used, needs, plan.places, outs, marks)
        )

    def by_moves(tasks: Int64Array) -> None:
        bad.append(_sums.sum_by_moves(tasks, values, *plan.shared, plan.late, used, needs, plan.places, outs))

    run_parallel([partial(by_prefix, t, m) for t, m in zip(plan.ordered, wide, strict=True)])
    rest = [t[m] for t, m in zip(plan.ordered, wide, strict=True) if m.any()] + plan.disordered
    run_parallel([partial(by_moves, t) for t in rest])
    return max(bad, default=0)


def _extremes_of(
    column: Column,
    wanted: Sequence[Window],
    greatest: bool,
    span_of: Mapping[tuple[int, int], int],
    counts: Int64Array,
    row: Callable[[Window], int],
    plan: _Plan,
) -> dict[str, pa.Array]:
    if not wanted:
        return {}
    values, ranked = column.keys()
    used = np.array([span_of[w.window_ns, w.tile_ns] for w in wanted], np.int64)
    out = np.zeros((len(used), plan.spine_rows), np.int64)
    run_parallel(
        [
            partial(
                _extremes.extremes_by_blocks,
                tasks,
                values,
                greatest,
                plan.low,
                plan.high,
                used,
                plan.places,
                out,
            )
            for tasks in plan.ordered
        ]
    )
    run_parallel(
        [
            partial(
                _extremes.extremes_by_moves, tasks, values, greatest, *plan.shared, used, plan.places, out
            )
            for tasks in plan.disordered
        ]
    )
    answers: dict[str, pa.Array] = {}
    for k, w in enumerate(wanted):
        empty = counts[row(w)] == 0
        if ranked is None:
            answers[w.name] = array_of_keys(out[k], empty, values[2], greatest, column.array.type)
        else:
            ranks = np.where(empty, -1, ~out[k] if greatest else out[k]).astype(np.int32)
            answers[w.name] = take_rows(ranked, ranks).cast(column.array.type)
    return answers


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
                plan.order,
                out,
                width,
            )
            for tasks in plan.every_task
        ]
    )
    if window.function == "last_n":
        return lists_of(out[0], width, column.array)
    return take_rows(column.array, out[0])
