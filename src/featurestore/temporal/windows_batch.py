"""Windows of a piece of both sides: the rows each reader may count, and what the functions make of them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from featurestore.core.time import INT64_MAX, BoolArray, Int64Array
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.order import NO_INT64
from featurestore.temporal.rows import Int32Array, frozen
from featurestore.temporal.windows_columns import INT, NO_BOOL, Column, Values
from featurestore.temporal.windows_order import Grouped

_ranges: Any = lazy_module("featurestore.temporal.windows_range_kernels")
_sums: Any = lazy_module("featurestore.temporal.windows_sum_kernels")
_extremes: Any = lazy_module("featurestore.temporal.windows_extreme_kernels")
_trees: Any = lazy_module("featurestore.temporal.windows_tree_kernels")
_picks: Any = lazy_module("featurestore.temporal.windows_pick_kernels")
_distinct: Any = lazy_module("featurestore.temporal.windows_distinct_kernels")

# What the kernels of numbers write per window, in this order; all but the last two in one pass.
SLOTS = ("count", "sum", "mean", "var", "std", "min", "max")
_SUMS = 5
# Rows and readers of one call into the kernels of numbers: their answers should stay in the cache.
_GROUP_ROWS = 1 << 15
# Room for so many tasks more than entities is made before they are counted.
_SPARE_TASKS = 1 << 10


@dataclass(frozen=True, slots=True)
class Batch:
    """Readers and rows of some entities, in entity order, and which rows each reader may count.

    Attributes:
        places: `(q,)` the spine row of each reader.
        positions: `(r,)` the source position of each row.
        known: `(r,)` when each row could be known; empty: at its event time.
        cutoffs: `(q,)` what each reader may know.
        late: per entity: rows became known in another order than they happened.
        low: `(spans, q)` first row of each window.
        high: `(q,)` one past the last row of every window.
        ordered: `(k, 5)` tasks of entities that are not late, whose readers do not step back
            (`find_steps_back`).
        returning: `(k, 5)` tasks of such entities whose readers do.
        disordered: `(k, 5)` tasks of late entities, whose readers do not.
        stepping: `(k, 5)` tasks of late entities whose readers do.
    """

    places: Int32Array
    positions: Int32Array
    known: Int64Array
    cutoffs: Int64Array
    late: BoolArray
    low: npt.NDArray[np.int32]
    high: npt.NDArray[np.int32]
    ordered: Int64Array
    returning: Int64Array
    disordered: Int64Array
    stepping: Int64Array

    @property
    def ranges(self) -> tuple[Any, ...]:
        """What most kernels take between the values and the windows."""
        return self.low, self.high, self.known, self.cutoffs, self.late

    @property
    def tasks(self) -> Int64Array:
        """All tasks."""
        return np.concatenate([self.ordered, self.returning, self.disordered, self.stepping])

    def groups(self, tasks: Int64Array) -> list[Int64Array]:
        """Cut tasks into runs of about so many rows that their answers stay in the cache."""
        weights = np.cumsum(tasks[:, 1] - tasks[:, 0] + tasks[:, 3] - tasks[:, 2])
        cuts = np.searchsorted(weights, np.arange(_GROUP_ROWS, weights[-1:].sum(), _GROUP_ROWS))
        return [tasks[a:b] for a, b in pairwise([0, *cuts.tolist(), len(tasks)]) if b > a]


def plan_batch(cut: Int64Array, spine: Grouped, rows: Grouped, spans: Sequence[tuple[int, int]]) -> Batch:
    """Find the rows that each reader of a batch may count in each window.

    Args:
        cut: one row of `batches`.
        spans: length and tile of each different window.
    """
    first, last, reader, reader_end, row, row_end = map(int, cut)
    row_bounds = rows.bounds((first, last), row, row_end)
    spine_bounds = spine.bounds((first, last), reader, reader_end)
    event = rows.taken(rows.rows.event_ns, row, row_end)
    known = rows.taken(rows.rows.known_ns, row, row_end)
    time = spine.taken(spine.rows.event_ns, reader, reader_end)
    cutoffs = spine.taken(spine.rows.known_ns, reader, reader_end)
    late = np.zeros(last - first, np.bool_)
    has_cutoffs = spine.rows.known_ns is not None or rows.rows.known_ns is not None
    cutoffs = time if spine.rows.known_ns is None else cutoffs
    if rows.rows.known_ns is not None:
        _ranges.find_late(known, *row_bounds, late)
        # INT64_MAX is "never" for a row and "everything that is ever known" for a reader.
        cutoffs = frozen(np.minimum(cutoffs, INT64_MAX - 1))
    low = np.zeros((len(spans), len(time)), np.int32)
    high = np.zeros(len(time), np.int32)
    window, tile = np.array(spans, np.int64).reshape(-1, 2).T.copy()
    _ranges.fill_ranges(
        (0, last - first), event, known, row_bounds, late, time,
        cutoffs if has_cutoffs else NO_INT64, spine_bounds, window, tile, low, high,
    )  # fmt: skip
    tasks = _tasks(spine_bounds, low, high)
    is_late = late[tasks[:, 4]]
    steps_back = np.zeros(len(tasks), np.bool_)
    if spine.rows.known_ns is not None:
        _ranges.find_steps_back(tasks, high, cutoffs, late, steps_back)
    return Batch(
        places=spine.positions(reader, reader_end),
        positions=rows.positions(row, row_end),
        known=known,
        cutoffs=cutoffs,
        late=late,
        low=low,
        high=high,
        ordered=tasks[~is_late & ~steps_back],
        returning=tasks[~is_late & steps_back],
        disordered=tasks[is_late & ~steps_back],
        stepping=tasks[is_late & steps_back],
    )


def _tasks(
    bounds: tuple[Int64Array, Int64Array], low: npt.NDArray[np.int32], high: npt.NDArray[np.int32]
) -> Int64Array:
    out = np.empty((len(bounds[0]) + _SPARE_TASKS, 5), np.int64)
    count = _ranges.cut_tasks(bounds, low, high, out)
    if count > len(out):
        out = np.empty((count, 5), np.int64)
        count = _ranges.cut_tasks(bounds, low, high, out)
    return out[:count]


@dataclass(frozen=True, slots=True)
class Numbers:
    """Counts, sums and extremes of one column, reader by reader.

    Attributes:
        values: what the kernels read.
        firsts: where min and max read ranks: the row of the batch that holds each rank's value.
        rows: `(q, width)` answers as int64 or the bits of doubles.
        slots: `(spans, 7)` the column of `rows` for each of `SLOTS`, -1 where it is not asked for.
        overflow: the reader + 1 whose integer sum does not fit int64, else 0.
    """

    values: Values
    firsts: Int32Array | None
    rows: Int64Array
    slots: Int64Array
    overflow: int

    def count_slot(self, slot: int) -> int:
        """Return the column of counts of the window that column `slot` is of."""
        return int(self.slots[(self.slots == slot).any(axis=1), 0][0])


def count_and_sum(batch: Batch, column: Column, asked: Sequence[tuple[int, str]]) -> Numbers:
    """Answer counts, sums and extremes; the count of every span with any of them is always there.

    Args:
        asked: span and function, each once.
    """
    used = sorted({span for span, _ in asked})
    slots = np.full((int(batch.low.shape[0]), len(SLOTS)), -1, np.int64)
    slots[used, 0] = np.arange(len(used))
    width = len(used)
    for span, function in asked:
        if slots[span, SLOTS.index(function)] < 0:
            slots[span, SLOTS.index(function)] = width
            width += 1
    values, firsts = _values(column, {function for _, function in asked})
    rows = np.zeros((len(batch.places), width), np.int64)
    windows = np.array(used, np.int64)
    overflow = 0
    answers = (values, windows, slots[used], rows)
    for answer, tasks, back in (
        (_answer_ordered, batch.ordered, False),
        (_answer_ordered, batch.returning, True),
        (_answer_late, batch.disordered, False),
        (_answer_late, batch.stepping, True),
    ):
        for group in batch.groups(tasks):
            overflow = max(overflow, answer(batch, group, back, *answers))
    return Numbers(values, firsts, rows, slots, overflow)


def _values(column: Column, functions: set[str]) -> tuple[Values, Int32Array | None]:
    if functions & {"sum", "mean", "var", "std"}:
        return column.numbers(), None
    if functions & {"min", "max"}:
        return column.keys()
    valid = NO_BOOL if column.name == "*" else column.valid()
    return (frozen(np.zeros(column.rows, np.int64)), valid, INT), None


def _answer_ordered(
    batch: Batch,
    tasks: Int64Array,
    back: bool,
    values: Values,
    windows: Int64Array,
    slots: Int64Array,
    rows: Int64Array,
) -> int:
    """Answer a group of tasks; return the reader + 1 whose integer sum overflows, else 0."""
    answers = (windows, *_sum_slots(slots, rows))
    wide = np.zeros(len(tasks), np.bool_)
    bad = int(_sums.sum_by_prefix(tasks, values, batch.low, batch.high, *answers, wide))
    if wide.any():
        add = _trees.sum_by_tree if back else _sums.sum_by_moves
        bad = max(bad, int(add(tasks[wide], values, *batch.ranges, *answers)))
    for greatest, *to in _extreme_slots(windows, slots):
        _extremes.extremes_by_blocks(tasks, values, greatest, batch.low, batch.high, *to, rows)
    return bad


def _answer_late(
    batch: Batch,
    tasks: Int64Array,
    back: bool,
    values: Values,
    windows: Int64Array,
    slots: Int64Array,
    rows: Int64Array,
) -> int:
    add = _trees.sum_by_tree if back else _sums.sum_by_moves
    compare = _trees.extremes_by_tree if back else _extremes.extremes_by_moves
    bad = int(add(tasks, values, *batch.ranges, windows, *_sum_slots(slots, rows)))
    for greatest, *to in _extreme_slots(windows, slots):
        compare(tasks, values, greatest, *batch.ranges[:4], *to, rows)
    return bad


def _sum_slots(slots: Int64Array, rows: Int64Array) -> tuple[Int64Array, Int64Array, npt.NDArray[np.float64]]:
    return np.ascontiguousarray(slots[:, :_SUMS]), rows, rows.view(np.float64)


def _extreme_slots(windows: Int64Array, slots: Int64Array) -> Iterator[tuple[bool, Int64Array, Int64Array]]:
    """Give, for min and max where they are asked for: whether it is max, of which windows, where to."""
    for greatest in (False, True):
        wanted = slots[:, SLOTS.index("max" if greatest else "min")]
        if (wanted >= 0).any():
            yield greatest, windows[wanted >= 0], wanted[wanted >= 0]


def count_distinct(batch: Batch, column: Column, span: int) -> Int64Array:
    """Return how many different values each reader of the batch sees in one window."""
    codes, distinct = column.codes()
    out: Int64Array = np.zeros(len(batch.places), np.int64)
    forward = np.concatenate([batch.ordered, batch.disordered])
    back = np.concatenate([batch.returning, batch.stepping])
    for count, tasks in ((_distinct.distinct_by_moves, forward), (_distinct.distinct_by_pairs, back)):
        if len(tasks):
            count(tasks, codes, distinct, *batch.ranges, span, out)
    return out


def pick_rows(batch: Batch, column: Column, span: int, count: int) -> npt.NDArray[np.int32]:
    """Return, per reader, the source positions of the first value (count 0) or of the last ones.

    Returns:
        `(q, max(count, 1))`, oldest first, -1 on the left where there are fewer.
    """
    width = max(count, 1)
    out = np.full((1, len(batch.places) * width), -1, np.int32)
    used, counts = np.array([span], np.int64), np.array([count], np.int64)
    tasks, positions = batch.tasks, batch.positions
    _picks.pick_rows(tasks, column.valid(), *batch.ranges, used, counts, positions, out, width)
    return out.reshape(-1, width)
