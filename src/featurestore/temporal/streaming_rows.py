"""Codes and times of the rows that a stream holds of one side, in arrays that stay from push to push."""

from typing import Any, Final, TypeVar

import numpy as np
import numpy.typing as npt

from featurestore.core.time import INT64_MIN, BoolArray, Int64Array
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.rows import Int32Array, Rows, frozen

_kernels: Any = lazy_module("featurestore.temporal.streaming_kernels")

Kind = TypeVar("Kind", bound=np.generic)
_LEAST_ROOM: Final = 1 << 10


def fitting(size: int, wanted: int) -> int:
    """Return how long an array of `size` should be to hold `wanted` rows.

    It grows by doubling, and is given back where a burst has left it nearly empty.
    """
    return size if wanted <= size <= 64 * max(wanted, _LEAST_ROOM) else max(2 * wanted, _LEAST_ROOM)


def resized(array: npt.NDArray[Kind], first: int, held: int, size: int) -> npt.NDArray[Kind]:
    """Return an array of `size` that begins with `array[first : first + held]`."""
    out = np.empty(size, array.dtype)
    out[:held] = array[first : first + held]
    return out


class HeldRows:
    """Rows in the order they were pushed: added at the end, taken from the front or thinned out.

    Attributes:
        codes, event_ns: of the rows held, from `first` up to `end`; what lies behind them is room.
        known_ns: when they could have been known; `None` where the side does not say.
        readable: `codes` and `event_ns` as kernels read them.
        fall: no row from this place up to `end` is older than the one before it, but this one.
    """

    __slots__ = ("_known", "codes", "end", "event_ns", "fall", "first", "known_ns", "readable")

    def __init__(self, *, with_known: bool) -> None:
        self.codes: Int32Array = np.empty(0, np.int32)
        self.event_ns: Int64Array = np.empty(0, np.int64)
        self.known_ns: Int64Array | None = np.empty(0, np.int64) if with_known else None
        self.clear()
        self._resize(0)

    def clear(self) -> None:
        """Hold nothing."""
        self.first = self.end = self.fall = 0

    def __len__(self) -> int:
        return self.end - self.first

    def put_times(self, event_ns: Int64Array, bound_ns: int) -> tuple[int, int]:
        """Write times into the room; return how many are older than the bound, and where they go back last.

        Returns:
            The second one is a place among them, -1 where they go on from the rows held without going back.
        """
        end = self.end + len(event_ns)
        if end > len(self.codes):
            # Half of it free, so that moving the rows to the front is paid by as many that were added.
            self._resize(fitting(len(self.codes), 2 * (end - self.first)))
            end = self.end + len(event_ns)
        before = int(self.event_ns[self.end - 1]) if self.end > self.first else INT64_MIN
        found: tuple[int, int] = _kernels.take_times(
            frozen(event_ns), bound_ns, before, self.event_ns[self.end : end]
        )
        return found

    def thin_room(self, usable: BoolArray, fall: int) -> int:
        """Leave out rows of the room; return a place at or behind which their times go back last."""
        count, last = int(np.count_nonzero(usable)), self.end + len(usable)
        for array in (self.codes, self.event_ns, self.known_ns):
            if array is not None:
                array[self.end : self.end + count] = array[self.end : last][usable]
        return min(fall, count - 1)

    def add(self, count: int, fall: int) -> None:
        """Hold the first `count` rows of the room; `fall` as `put_times` returned it, or a later place."""
        if fall >= 0:
            self.fall = self.end + fall
        self.end += count

    def view(self, first: int, last: int) -> Rows:
        """Return the rows held from the one at `first` up to that at `last`, without a copy."""
        first, last = self.first + first, self.first + last
        (codes, event), known = self.readable, self._known
        return Rows(
            codes[first:last],
            event[first:last],
            None if known is None else known[first:last],
            in_order=self.fall <= first,
        )

    def sealed(self, bound_ns: int) -> int:
        """Return how many rows come before the first that has a key and is not older than the bound."""
        codes, event = self.readable
        count: int = _kernels.sealed_rows(
            codes[self.first : self.end], event[self.first : self.end], bound_ns
        )
        return count

    def drop(self, count: int) -> None:
        """Let go of the first `count` rows."""
        self.first += count
        # Rows that come next then go where those before them went, which is still in the cache.
        if 8 * (self.end - self.first) <= self.first:
            self._to_front()

    def keep(self, places: Int64Array) -> None:
        """Hold the rows at these ascending places alone, counted from the first one held."""
        count, had_falls, places = len(places), self.fall > self.first, places + self.first
        for array in (self.codes, self.event_ns, self.known_ns):
            if array is not None:
                array[:count] = array[places]
        self.first, self.end, self.fall = 0, count, 0
        if had_falls:
            self.fall = max(int(_kernels.last_fall(self.readable[1][:count])), 0)
        size = fitting(len(self.codes), count)
        if size != len(self.codes):
            self._resize(size)

    def _to_front(self) -> None:
        first, held = self.first, self.end - self.first
        for array in (self.codes, self.event_ns, self.known_ns):
            if array is not None:
                array[:held] = array[first : self.end]
        self.first, self.end, self.fall = 0, held, max(self.fall - first, 0)

    def _resize(self, size: int) -> None:
        """Begin arrays of this size with the rows held; the same ones where they have it."""
        if size == len(self.codes):
            self._to_front()
        else:
            first, held = self.first, self.end - self.first
            self.codes = resized(self.codes, first, held, size)
            self.event_ns = resized(self.event_ns, first, held, size)
            if self.known_ns is not None:
                self.known_ns = resized(self.known_ns, first, held, size)
            self.first, self.end, self.fall = 0, held, max(self.fall - first, 0)
        self.readable = frozen(self.codes), frozen(self.event_ns)
        self._known = None if self.known_ns is None else frozen(self.known_ns)
