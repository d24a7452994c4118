"""The backward join of two feeds in time order, each emission going on where the last one ended."""

from typing import Any, Final

import numpy as np

from featurestore.core.time import INT64_MAX, INT64_MIN, Int64Array
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.rows import Int32Array, Rows, scratch
from featurestore.temporal.streaming_rows import HeldRows
from featurestore.temporal.threads import thread_count

_kernels: Any = lazy_module("featurestore.temporal.merge_kernels")

_INT32: Final = np.dtype(np.int32)


class CarriedMerge:
    """Per key the newest right row that the readers so far could see: what a merge of all rows would know.

    So an emission costs its own rows and the right rows that came since, not what is held. It holds while
    readers do not go back behind those before them; others are answered from all rows that are held.
    """

    def __init__(self, tolerance_ns: int | None, boundary: str, threads: int | None) -> None:
        self._tolerance = -1 if tolerance_ns is None else tolerance_ns
        self._slack = int(boundary == "inclusive")
        self._threads = threads
        self.forget()

    def forget(self) -> None:
        """Begin anew: keys or rows are not those they were."""
        self._states: Int32Array = np.full((2, 2), -1, np.int32)
        self._row, self._time_ns = 0, INT64_MIN

    def answers(self, left: Rows, right: HeldRows, entities: int) -> Int32Array | None:
        """Return the right row that each reader takes, -1 for none; `None` where it cannot be told from here.

        Args:
            left: not empty.
        """
        time, event, row = left.event_ns, right.event_ns, self._row
        first, last = int(time[0]), int(time[-1])
        if not left.in_order or first < self._time_ns or 0 < right.fall >= row:
            return None
        low, high = first, last
        if row < right.end:
            low, high = min(low, int(event[row])), max(high, int(event[right.end - 1]))
        # Differences of times must not wrap in the branchless steps; many rows are worth several threads.
        if high - low >= INT64_MAX or thread_count(self._threads, len(time) + right.end) > 1:
            return None
        if entities + 2 > self._states.shape[1]:
            self._widen(entities)
        codes, event = right.readable
        out = scratch(len(time), _INT32)
        self._row = _kernels.merge_on(
            time, left.codes, event[: right.end], codes[: right.end], self._slack, self._tolerance,
            row, self._states, out,
        )  # fmt: skip
        self._time_ns = last
        return out

    def retained(self, right: HeldRows, at_ns: int) -> Int64Array | None:
        """Return the places of right rows that readers from `at_ns` on may use, all others being older.

        `None` where that cannot be told from here, or would leave most of them.
        """
        if at_ns < self._time_ns or 2 * self._row < right.end:
            return None
        newest = self._states[0, 2:]
        newest = np.sort(newest[newest >= 0])
        if self._tolerance >= 0:
            newest = newest[right.event_ns[newest] >= max(at_ns - self._tolerance, INT64_MIN)]
        return np.concatenate([newest, np.arange(self._row, right.end, dtype=np.int64)])

    def keep(self, places: Int64Array, held: int) -> None:
        """Follow the right rows that stay, at these ascending places of those `held`."""
        self._states[0, 0] = -1  # what is nobody's
        moved = np.full(held + 1, -1, np.int32)
        moved[places] = np.arange(len(places), dtype=np.int32)
        self._states[0] = moved[self._states[0]]
        self._row = int(np.searchsorted(places, self._row))

    def _widen(self, entities: int) -> None:
        wider: Int32Array = np.full((2, 2 * entities + 2), -1, np.int32)
        wider[0, : self._states.shape[1]] = self._states[0]
        self._states = wider
