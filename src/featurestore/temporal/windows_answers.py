"""Answers of windows as they grow batch by batch, and as Arrow arrays once they are whole."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.core.table_rows import bitmap_of
from featurestore.core.time import BoolArray
from featurestore.temporal.gather import gather
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.memory import allocate
from featurestore.temporal.rows import Int32Array
from featurestore.temporal.windows_batch import Batch, Numbers
from featurestore.temporal.windows_columns import is_fixed

_kernels: Any = lazy_module("featurestore.temporal.windows_order_kernels")

# Arrow asks for as much of a buffer's first byte.
_ALIGNED: Final = 64


class Room:
    """Memory for the numbers of several answers: in one piece, of which the answers are parts.

    Large pages make writes to readers' places cheap, and memory that the pool hands out again is there
    already; but each piece of its own ends with part of a large page.

    Args:
        readers: how many there are.
        kinds: of the numbers.
    """

    def __init__(self, readers: int, kinds: Iterable[np.dtype[Any]]) -> None:
        self._readers, self._used = readers, 0
        self._buffer, self._bytes = allocate(sum(map(self._size, kinds)), np.dtype(np.uint8))

    def _size(self, kind: np.dtype[Any]) -> int:
        return -(-self._readers * kind.itemsize // _ALIGNED) * _ALIGNED

    def take(self, kind: np.dtype[Any]) -> tuple[pa.Buffer, npt.NDArray[Any]]:
        """Return the next part, a number per reader that nobody has written."""
        first, size = self._used, self._readers * kind.itemsize
        self._used += self._size(kind)
        return self._buffer.slice(first, size), self._bytes[first : first + size].view(kind)


class Seen:
    """How many values each reader saw in one window of one column: none, one, or two and more.

    Args:
        readers: how many there are.
        counted: the answer of a window that counts them anyway; `None`: they are counted here.
    """

    def __init__(self, readers: int, counted: "Answer | None") -> None:
        self._is_own = counted is None
        self.counts = np.zeros(readers, np.uint8) if counted is None else counted.values
        self._bitmaps: dict[int, pa.Buffer | None] = {}

    def put(self, places: Int32Array, rows: npt.NDArray[np.int64], slot: int) -> None:
        """Take in the counts of a batch's readers."""
        if self._is_own:
            _kernels.scatter_seen(rows, slot, places, self.counts)

    def bitmap(self, least: int) -> pa.Buffer | None:
        """Return who saw so many values at least (1 or 2), once all are counted; `None`: everyone did."""
        if least not in self._bitmaps:
            self._bitmaps[least] = bitmap_of(self.counts >= least)
        return self._bitmaps[least]


@dataclass(frozen=True, slots=True)
class Answer:
    """What one window says to every reader.

    Attributes:
        function: of the window.
        values: `(n,)` numbers of the answer's width; or `(n, k)` source positions, -1 where there is none.
            What no batch has put there yet is arbitrary.
        buffer: the memory of numbers; `None` of positions.
    """

    function: str
    values: npt.NDArray[Any]
    buffer: pa.Buffer | None

    @staticmethod
    def of(function: str, kind: "np.dtype[Any] | None", room: Room, readers: int, width: int) -> "Answer":
        """Return an answer of no reader yet.

        Args:
            kind: its `number_kind`.
            width: the k of last_n, else 1.
        """
        if kind is None:
            return Answer(function, allocate(readers * width, np.dtype(np.int32))[1].reshape(-1, width), None)
        buffer, values = room.take(kind)
        return Answer(function, values, buffer)

    def put_none(self, first: int, answered: BoolArray) -> None:
        """Take in that of some readers, who begin at place `first`, those not marked get nothing."""
        self.values[first : first + len(answered)][~answered] = -1 if self.buffer is None else 0

    def put(self, places: Int32Array, values: npt.NDArray[Any]) -> None:
        """Take in what a batch's readers get."""
        self.values[places] = values

    def put_numbers(self, batch: Batch, numbers: Numbers, slot: int) -> None:
        """Take in one column of numbers."""
        bits = numbers.rows[:, slot]
        if numbers.firsts is not None and self.buffer is None:
            found = numbers.rows[:, numbers.count_slot(slot)] > 0
            rows = np.full(len(found), -1, np.int32)
            rows[found] = batch.positions[numbers.firsts[bits[found]]]
            self.values[batch.places, 0] = rows
        elif self.values.dtype.itemsize == 8:
            _kernels.scatter(numbers.rows, slot, batch.places, self.values.view(np.int64))
        elif self.values.dtype.kind == "f":
            self.values[batch.places] = bits.view(np.float64)
        else:
            self.values[batch.places] = bits

    def finished(self, column: pa.Array, seen: Seen | None) -> pa.Array:
        """Return the answer as Arrow; `seen` decides about null, `None`: no number is."""
        if self.function == "last_n":
            empty = pa.array((self.values < 0).all(axis=1))
            child = gather(column, self.values.reshape(-1))
            return pa.FixedSizeListArray.from_arrays(child, self.values.shape[1], mask=empty)
        if self.buffer is None:
            return gather(column, self.values.reshape(-1))
        kind = column.type if self.function in {"min", "max"} else pa.from_numpy_dtype(self.values.dtype)
        bitmap = None if seen is None else seen.bitmap(2 if self.function in {"var", "std"} else 1)
        buffer = self.buffer
        if pa.types.is_boolean(kind):
            buffer = pa.array(self.values.view(np.bool_)).buffers()[1]
        return pa.Array.from_buffers(kind, len(self.values), [bitmap, buffer])


def number_kind(function: str, kind: pa.DataType) -> "np.dtype[Any] | None":
    """Return what an answer's numbers are for a column of type `kind`; `None`: it is rows, not numbers."""
    if function in {"count", "n_distinct"}:
        return np.dtype(np.int64)
    if function in {"min", "max"} and is_fixed(kind):
        return _physical(kind)
    if function in {"first", "last", "last_n", "min", "max"}:
        return None
    return np.dtype(np.int64 if function == "sum" and not pa.types.is_floating(kind) else np.float64)


def _physical(kind: pa.DataType) -> np.dtype[Any]:
    """Return how NumPy sees the memory of a fixed-width type; a byte for a boolean."""
    if pa.types.is_boolean(kind):
        return np.dtype(np.uint8)
    if pa.types.is_floating(kind):
        return np.dtype(f"f{kind.bit_width // 8}")
    return np.dtype(f"{'u' if pa.types.is_unsigned_integer(kind) else 'i'}{kind.bit_width // 8}")
