"""Values that are found part by part, written to where they belong: the counterpart of `gather`."""

from threading import Lock
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.core.table_rows import bitmap_of
from featurestore.core.time import Int64Array
from featurestore.temporal.gather import WORDS, gather, joined_chunks, words_of
from featurestore.temporal.gather_types import is_word
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.memory import allocate
from featurestore.temporal.rows import Int32Array, frozen, scratch

_kernels: Any = lazy_module("featurestore.temporal.scatter_kernels")

_NO_ABSENT: Final = np.empty(0, np.uint8)


class Scattered:
    """A column of `n` values whose parts come one by one, from any number of threads.

    Values of fixed width are written once, where they belong. Others are kept as they come and put in order
    at the end.
    """

    def __init__(self, kind: pa.DataType, count: int, *, name: str = "") -> None:
        self._kind = kind
        self._count = count
        self._name = name
        self._absent: npt.NDArray[np.uint8] | None = None
        self._pieces: list[tuple[Int32Array, pa.Array]] = []
        self._lock = Lock()
        self._words: tuple[pa.Buffer, npt.NDArray[Any]] | None = None
        if is_word(kind):
            self._words = allocate(count, WORDS[kind.bit_width])

    def put(self, column: pa.ChunkedArray | pa.Array, rows: Int64Array, places: Int32Array) -> None:
        """Write `column[rows]` to places that nobody else writes to.

        Args:
            column: `(m,)` of the column's type.
            rows: `(k,)` positions in `[0, m)`.
            places: `(k,)` different places in `[0, n)`.

        Raises:
            SchemaError: a type whose values Arrow cannot take.

        Cost: one read and one write per value of fixed width; others are taken by Arrow.
        """
        if self._words is None:
            self._pieces.append((places, gather(column, rows, threads=1, name=self._name)))
            return
        array = joined_chunks(column, self._name)
        values, valid = words_of(array)
        absent = self._absences() if len(valid) else _NO_ABSENT
        out = self._words[1]
        _kernels.scatter_fixed(values, valid, array.offset, frozen(rows), frozen(places), out, absent)

    def finish(self, missing: Int64Array) -> pa.Array:
        """Return the column, null where nobody wrote; nothing may be put any more.

        Args:
            missing: The places that nobody wrote to.
        """
        if self._words is None:
            return self._in_order()
        buffer, out = self._words
        out[missing] = 0
        if missing.size:
            self._absences()[missing] = 1
        valid = None if self._absent is None else bitmap_of(self._absent == 0)
        return pa.Array.from_buffers(self._kind, self._count, [valid, buffer])

    def _absences(self) -> npt.NDArray[np.uint8]:
        with self._lock:
            if self._absent is None:
                self._absent = scratch(self._count, _NO_ABSENT.dtype)
                self._absent.fill(0)
            return self._absent

    def _in_order(self) -> pa.Array:
        order = np.full(self._count, -1, np.int32)
        start = 0
        for places, piece in self._pieces:
            order[places] = np.arange(start, start + len(piece), dtype=np.int32)
            start += len(piece)
        pieces = pa.chunked_array([piece for _, piece in self._pieces], self._kind)
        return gather(pieces, order, name=self._name)
