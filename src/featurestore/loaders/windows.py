"""Look-back windows: each sample is a row with the rows of the same entity before it.

A window is an index, never a stored copy: rows of an entity lie one after another in each shard, and the
shards of one bucket follow one another in time, so a window is one run of rows, or a few where it crosses a
date.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from featurestore.core.arguments import whole
from featurestore.core.time import Duration, Int64Array, duration_ns
from featurestore.errors import DefinitionError
from featurestore.loaders import gather as rows_gather
from featurestore.loaders.entities import EntityIndex
from featurestore.loaders.gather import AnyArray, StoredColumn, bits, castable
from featurestore.loaders.selection import Selection
from featurestore.loaders.source import DatasetRows

BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Window:
    """Rows that each sample carries: itself and up to `lookback - 1` rows of its entity before it.

    Attributes:
        lookback: `L`, rows per window, the sample's own row included and last.
        stride: Every `stride`-th row of an entity is a sample, counted from its first.
        by: The entity's key columns; None or exactly the dataset's own.
        min_history: Samples with fewer rows than this in reach are none.
        pad: `"left"`: short windows begin with padding (zeros, mask 0); None: only full windows.
        max_gap: A window reaches over no longer gap in time between two rows.
        across_split: Let windows reach back before the subset's own period. Off, the rows there count as
            absent, which keeps a test window apart from training labels without a wider embargo.

    Raises:
        DefinitionError: a number that is not positive, or `min_history` above `lookback`.
    """

    lookback: int
    stride: int = 1
    by: str | tuple[str, ...] | None = None
    min_history: int = 1
    pad: Literal["left"] | None = "left"
    max_gap: Duration | None = None
    across_split: bool = False

    def __post_init__(self) -> None:
        for name in ("lookback", "stride", "min_history"):
            whole("a window", name, getattr(self, name), least=1)  # the sample's own row is in it
        if self.min_history > self.lookback:
            raise DefinitionError(
                f"min_history {self.min_history} is more than lookback {self.lookback}",
                hint="no window could have so many rows",
            )
        if self.pad not in {"left", None}:
            raise DefinitionError(f"pad is {self.pad!r}", hint='"left" or None')

    @property
    def least_rows(self) -> int:
        """Rows that a sample must have in reach."""
        return self.lookback if self.pad is None else self.min_history


@dataclass(frozen=True, slots=True)
class Runs:
    """The windows of some rows as runs of consecutive rows.

    Attributes:
        rows: `(N,)` rows whose windows these are.
        first: First row of each run; `count` its rows; `place` where it goes among the `N · L` of the output.
    """

    rows: Int64Array
    first: Int64Array
    count: Int64Array
    place: Int64Array


class WindowIndex:
    """Where the windows of a dataset's rows lie.

    Attributes:
        history: `(rows of the version,)` rows in reach of each row, itself included, at most `lookback`; 0
            where the entity is null.

    Memory: 2 bytes per row (4 where `lookback` ≥ 65,536) and 40 bytes per entity and shard. Cost: one pass
    over the entities; with `max_gap`, or inside a time split, one pass over the event times.
    """

    def __init__(
        self, source: DatasetRows, window: Window, entities: EntityIndex, selection: Selection
    ) -> None:
        keys = source.manifest.entity_keys
        by = (window.by,) if isinstance(window.by, str) else window.by
        if by is not None and tuple(by) != tuple(keys):
            raise DefinitionError(
                f"windows by {', '.join(by)}, but the dataset is stored by {', '.join(keys) or 'no entity'}",
                hint="leave `by` out, or build a training set with these entities",
            )
        self.source = source
        self.window = window
        lengths = [np.diff(first) for first in entities.first_rows]
        self._start = _concat([first[:-1] for first in entities.first_rows])
        self._length = _concat(lengths)
        codes = _concat([c.astype(np.int64) for c in entities.codes])
        order = np.lexsort((self._start, codes))
        self._previous = np.full(codes.size, -1, np.int64)
        same = codes[order[1:]] == codes[order[:-1]]
        self._previous[order[1:][same]] = order[:-1][same]
        self._order = order
        first_of_entity = np.concatenate([[True], ~same]) if codes.size else np.zeros(0, np.bool_)
        self._set_history(first_of_entity, selection)

    def anchors(self, selection: Selection) -> Selection:
        """Keep the samples that have enough history and stand on the stride."""
        rows = np.arange(self.source.rows) if selection.rows is None else selection.rows
        good = (self.history[rows] >= self.window.least_rows) & self._on_stride[rows]
        counts = replace(
            selection.counts,
            short_history=int(np.count_nonzero(self.history[rows] < self.window.least_rows)),
            kept=int(np.count_nonzero(good)),
        )
        if good.all() and selection.rows is None:
            return replace(selection, counts=counts)
        kept = rows[good].astype(np.int32 if self.source.rows < 2**31 else np.int64)
        return Selection(kept, int(kept.size), selection.plan, counts)

    def mask(self, rows: Int64Array) -> BoolArray:
        """Return `(N, L)`: True where the window holds a row, False on padding."""
        length = self.window.lookback
        kernels = rows_gather.compiled()
        mask: BoolArray
        if kernels is None:
            mask = np.arange(length) >= length - self.history[rows].astype(np.int64)[:, None]
        else:
            mask = np.empty((rows.size, length), np.bool_)
            kernels.window_mask(self.history, rows, mask)
        return mask

    def rows_of(self, rows: Int64Array) -> Int64Array:
        """Return `(N, L)` row numbers, oldest first; padding repeats the window's oldest row.

        Cost: a binary search over the segments per row and crossing.
        """
        length = self.window.lookback
        back = np.minimum(np.arange(length - 1, -1, -1), self.history[rows].astype(np.int64)[:, None] - 1)
        segment = np.broadcast_to(self._segment_of(rows)[:, None], back.shape).copy()
        offset = rows[:, None] - self._start[segment] - back
        while (short := offset < 0).any():
            segment[short] = self._previous[segment[short]]
            offset[short] += self._length[segment[short]]
        found: Int64Array = self._start[segment] + offset
        return found

    def oldest(self, rows: Int64Array) -> Int64Array:
        """Return the row number of the oldest row of each window."""
        back = self.history[rows].astype(np.int64) - 1
        segment = self._segment_of(rows)
        offset = rows - self._start[segment] - back
        while (short := offset < 0).any():
            segment[short] = self._previous[segment[short]]
            offset[short] += self._length[segment[short]]
        found: Int64Array = self._start[segment] + offset
        return found

    def touch(self, rows: Int64Array) -> None:
        """Open and verify every shard that the windows of `rows` reach into; cheap once all are open."""
        if self.source.all_ready:
            return
        self.source.touch(rows)
        segment = self._segment_of(rows)
        left = self.history[rows] - 1 - (rows - self._start[segment])
        while (more := left > 0).any():
            segment, left = self._previous[segment[more]], left[more]
            self.source.touch(self._start[segment])
            left = left - self._length[segment]

    def runs(self, rows: Int64Array) -> Runs | None:
        """Cut the windows of `rows` into runs, once for all columns; None without compiled loops."""
        kernels = rows_gather.compiled()
        if kernels is None:
            return None
        found = kernels.window_runs(
            rows, self.history, self.window.lookback, self._start, self._length, self._previous
        )
        return Runs(rows, *found)

    def gather(
        self,
        column: StoredColumn,
        rows: Int64Array,
        columns: Int64Array,
        out: AnyArray,
        at: int,
        fills: Any,
        *,
        runs: Runs | None = None,
    ) -> None:
        """Write the windows of `rows` into `out[:, :, at:at + len(columns)]`, padding as zeros.

        Args:
            out: `(N, L, F)`, C-contiguous.
            runs: Of `rows`, where they are known.

        Cost: whole rows in long runs, at about the speed of a plain copy.
        """
        kernels = rows_gather.compiled()
        whole = column.is_whole(columns) and out.shape[2] == column.width
        if (
            kernels is None
            or not whole
            or (fills is not None and column.has_nulls)
            or not castable(column.dtype, out.dtype)
        ):
            flat = out.reshape(-1, out.shape[2])
            column.gather(self.rows_of(rows).reshape(-1), columns, flat, at, fills)
            out[:, :, at : at + columns.size][~self.mask(rows)] = 0
            return
        found = runs or self.runs(rows)
        assert found is not None  # noqa: S101 - kernels are there
        sources = column.addresses(found.first)
        if out.dtype == column.dtype:
            row_bytes = column.width * column.dtype.itemsize
            kernels.copy_run_bytes(sources, found.count, found.place, row_bytes, out.ctypes.data)
        else:
            like = np.empty(0, column.dtype)
            kernels.copy_runs(like, sources, found.count, found.place, column.width, out.reshape(-1))
        kernels.zero_padding(self.history, rows, out.view(bits(out.dtype)))

    def ages(self, times: StoredColumn, rows: Int64Array, out: Int64Array, *, runs: Runs | None) -> None:
        """Write `(N, L)` ages of window rows at their anchor's time, ns; 0 on padding."""
        self.gather(times, rows, times.whole, out[:, :, None], 0, None, runs=runs)
        kernels = rows_gather.compiled()
        if kernels is not None:
            kernels.ages_in_place(self.history, rows, out)
        else:
            # The window's last row is the anchor itself.
            out[:] = np.where(self.mask(rows), out[:, -1:] - out, 0)

    def _segment_of(self, rows: Int64Array) -> Int64Array:
        found: Int64Array = np.searchsorted(self._start, rows, side="right").astype(np.int64) - 1
        return found

    def _set_history(self, first_of_entity: BoolArray, selection: Selection) -> None:
        """Count for every row the rows in reach, walking entities one after another in time."""
        window, total = self.window, self.source.rows
        lengths = self._length[self._order]
        begins = np.cumsum(lengths) - lengths
        keyed = int(lengths.sum())
        walk = np.repeat(self._start[self._order] - begins, lengths) + np.arange(keyed)  # row at each place
        breaks = np.zeros(keyed, np.bool_)
        breaks[begins[first_of_entity & (lengths > 0)]] = True
        places = np.arange(keyed)
        in_entity = places - np.maximum.accumulate(np.where(breaks, places, 0))
        plan = selection.plan
        inside = plan is not None and not window.across_split
        if window.max_gap is not None or inside:
            times = _concat([self.source.times(p) for p in range(len(self.source.manifest.shards))])[walk]
            if window.max_gap is not None:
                longest = duration_ns(window.max_gap, what="max_gap")
                breaks[1:] |= np.diff(times) > longest
            if inside and plan is not None:
                start, end = plan.span()
                mine = (times >= start) & (times < end)
                breaks[1:] |= mine[1:] & ~mine[:-1]
        reach = np.minimum(places - np.maximum.accumulate(np.where(breaks, places, 0)) + 1, window.lookback)
        kind = np.uint16 if window.lookback < 2**16 else np.uint32
        self.history: npt.NDArray[Any] = np.zeros(total, kind)
        self.history[walk] = reach
        self._on_stride = np.zeros(total, np.bool_)
        self._on_stride[walk] = in_entity % window.stride == 0


def _concat(arrays: list[Int64Array]) -> Int64Array:
    return np.concatenate(arrays).astype(np.int64) if arrays else np.zeros(0, np.int64)
