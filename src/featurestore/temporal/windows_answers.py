"""Answers of windows as they grow batch by batch, and as Arrow arrays once they are whole."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.temporal.gather import gather
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.rows import Int32Array
from featurestore.temporal.windows_batch import Batch, Numbers
from featurestore.temporal.windows_columns import is_fixed

_kernels: Any = lazy_module("featurestore.temporal.windows_order_kernels")


class Seen:
    """How many values each reader saw in one window of one column: none, one, or two and more."""

    def __init__(self, readers: int) -> None:
        self.counts = np.zeros(readers, np.uint8)

    def put(self, places: Int32Array, rows: npt.NDArray[np.int64], slot: int) -> None:
        """Take in the counts of a batch's readers."""
        _kernels.scatter_seen(rows, slot, places, self.counts)


@dataclass(frozen=True, slots=True)
class Answer:
    """What one window says to every reader.

    Attributes:
        function: of the window.
        values: `(n,)` numbers of the answer's width, 0 where nothing is written; or `(n, k)` source
            positions, -1 where there is none.
        is_rows: whether `values` are positions.
        seen: what decides about null; `None`: nothing is null.
    """

    function: str
    values: npt.NDArray[Any]
    is_rows: bool
    seen: Seen | None

    @staticmethod
    def of(function: str, kind: pa.DataType, readers: int, width: int, seen: Seen | None) -> "Answer":
        """Return an answer of no reader yet, for a column of type `kind`; `width` is the k of last_n."""
        if function in {"count", "n_distinct"}:
            return Answer(function, np.zeros(readers, np.int64), False, None)
        if function in {"min", "max"} and is_fixed(kind):
            return Answer(function, np.zeros(readers, _physical(kind)), False, seen)
        if function in {"first", "last", "last_n", "min", "max"}:
            return Answer(function, np.full((readers, width), -1, np.int32), True, None)
        whole = function == "sum" and not pa.types.is_floating(kind)
        return Answer(function, np.zeros(readers, np.int64 if whole else np.float64), False, seen)

    def put(self, places: Int32Array, values: npt.NDArray[Any]) -> None:
        """Take in what a batch's readers get."""
        self.values[places] = values

    def put_numbers(self, batch: Batch, numbers: Numbers, slot: int) -> None:
        """Take in one column of numbers."""
        bits = numbers.rows[:, slot]
        if self.is_rows and numbers.firsts is not None:
            count = numbers.rows[:, numbers.count_slot(slot)]
            rows = batch.positions[numbers.firsts[np.where(count == 0, 0, bits)]]
            self.values[batch.places, 0] = np.where(count == 0, np.int32(-1), rows)
        elif self.values.dtype.itemsize == 8:
            _kernels.scatter(numbers.rows, slot, batch.places, self.values.view(np.int64))
        elif self.values.dtype.kind == "f":
            self.values[batch.places] = bits.view(np.float64)
        else:
            self.values[batch.places] = bits

    def finished(self, column: pa.Array) -> pa.Array:
        """Return the answer as Arrow."""
        if self.function == "last_n":
            empty = pa.array((self.values < 0).all(axis=1))
            child = gather(column, self.values.reshape(-1))
            return pa.FixedSizeListArray.from_arrays(child, self.values.shape[1], mask=empty)
        if self.is_rows:
            return gather(column, self.values.reshape(-1))
        kind = column.type if self.function in {"min", "max"} else None
        if kind is not None and pa.types.is_boolean(kind):
            return pa.array(self.values.view(np.bool_), mask=self._is_null())
        kind = kind or pa.from_numpy_dtype(self.values.dtype)
        null = self._is_null()
        bitmap = None if null is None else pa.array(~null).buffers()[1]
        return pa.Array.from_buffers(kind, len(self.values), [bitmap, pa.py_buffer(self.values)])

    def _is_null(self) -> "npt.NDArray[np.bool_] | None":
        if self.seen is None:
            return None
        null = self.seen.counts < (2 if self.function in {"var", "std"} else 1)
        return null if null.any() else None


def _physical(kind: pa.DataType) -> np.dtype[Any]:
    """Return how NumPy sees the memory of a fixed-width type; a byte for a boolean."""
    if pa.types.is_boolean(kind):
        return np.dtype(np.uint8)
    if pa.types.is_floating(kind):
        return np.dtype(f"f{kind.bit_width // 8}")
    return np.dtype(f"{'u' if pa.types.is_unsigned_integer(kind) else 'i'}{kind.bit_width // 8}")
