"""The columns of the right rows that a stream holds."""

from collections.abc import Sequence
from typing import Any, Final, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from featurestore.core.table_rows import plain_type, take_rows
from featurestore.core.time import Int64Array
from featurestore.temporal.gather import NO_BITMAP, WORDS, gather, gather_words, joined_chunks
from featurestore.temporal.gather_types import is_word
from featurestore.temporal.jit import lazy_module
from featurestore.temporal.rows import Int32Array, frozen
from featurestore.temporal.streaming_rows import fitting, resized
from featurestore.temporal.times import one_array

_kernels: Any = lazy_module("featurestore.temporal.streaming_kernels")

_ALL: Final = np.uint8(255)


class _Column(Protocol):
    def append(self, column: pa.ChunkedArray) -> None: ...

    def keep(self, places: Int64Array) -> None: ...

    def array(self) -> pa.Array: ...

    def gather(self, found: Int32Array, threads: int | None) -> pa.Array: ...


class _Words:
    """Values of 1, 2, 4 or 8 bytes, in an array that stays from push to push."""

    def __init__(self, kind: pa.DataType) -> None:
        self.kind, self.count = kind, 0
        self.values: npt.NDArray[Any] = np.empty(0, WORDS[kind.bit_width])
        self.valid: npt.NDArray[np.uint8] | None = None  # a bitmap, once a value was null
        self._readable = frozen(self.values)

    def append(self, column: pa.ChunkedArray) -> None:
        array = one_array(column)
        more, count = len(array), self.count
        if more == 0:
            return
        end = count + more
        if end > len(self.values):
            self._resize(fitting(len(self.values), end))
        (bitmap, data), values = array.buffers(), self.values
        values[count:end] = np.frombuffer(data, values.dtype, more, array.offset * values.itemsize)
        if array.null_count and self.valid is None:
            self.valid = np.full((len(values) + 7) >> 3, _ALL)
        if self.valid is not None:
            bits = frozen(np.frombuffer(bitmap, np.uint8)) if array.null_count else NO_BITMAP
            _kernels.put_bits(bits, array.offset, self.valid, count, more)
        self.count = end

    def keep(self, places: Int64Array) -> None:
        self.count = len(places)
        self.values[: self.count] = self.values[places]
        if self.valid is not None:
            _kernels.keep_bits(self.valid, frozen(places))
        size = fitting(len(self.values), self.count)
        if size != len(self.values):
            self._resize(size)

    def _resize(self, size: int) -> None:
        self.values = resized(self.values, 0, self.count, size)
        if self.valid is not None:
            self.valid = resized(self.valid, 0, (self.count + 7) >> 3, (size + 7) >> 3)
        self._readable = frozen(self.values)

    def array(self) -> pa.Array:
        """Return the values held; they are shared, so it is good until the next change."""
        valid = None if self.valid is None else pa.py_buffer(self.valid[: (self.count + 7) >> 3])
        return pa.Array.from_buffers(self.kind, self.count, [valid, pa.py_buffer(self.values[: self.count])])

    def gather(self, found: Int32Array, threads: int | None) -> pa.Array:
        if self.count == 0:
            return pa.nulls(len(found), self.kind)
        valid = NO_BITMAP if self.valid is None else frozen(self.valid)
        return gather_words(self.kind, self._readable[: self.count], valid, 0, found, threads)


class _Chunks:
    """Values of any type, as Arrow has them."""

    def __init__(self, field: pa.Field) -> None:
        self.name, self.kind = field.name, field.type
        self._is_plain = plain_type(field.type) == field.type
        self.chunks: list[pa.Array] = []

    def append(self, column: pa.ChunkedArray) -> None:
        self.chunks += column.chunks

    def keep(self, places: Int64Array) -> None:
        if self._is_plain:
            self.chunks = self.array().take(pa.array(places)).chunks
        else:
            self.chunks = take_rows(pa.table([self.array()], names=[self.name]), places).column(0).chunks

    def array(self) -> pa.ChunkedArray:
        return pa.chunked_array(self.chunks, self.kind)

    def gather(self, found: Int32Array, threads: int | None) -> pa.Array:
        if len(self.chunks) > 1:
            self.chunks = [joined_chunks(self.array(), self.name)]
        return gather(self.array(), found, threads=threads, name=self.name)


class HeldColumns:
    """The columns of a side's rows, which are added at the end and thinned out."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema = schema
        self._columns: dict[str, _Column] = {
            field.name: _Words(field.type) if is_word(field.type) else _Chunks(field) for field in schema
        }

    def append(self, table: pa.Table) -> None:
        """Add the rows of a table."""
        for column, values in zip(self._columns.values(), table.itercolumns(), strict=True):
            column.append(values)

    def keep(self, places: Int64Array) -> None:
        """Hold the rows at these ascending places alone."""
        for column in self._columns.values():
            column.keep(places)

    def gather(self, name: str, found: Int32Array, threads: int | None) -> pa.Array:
        """Return a column's values at positions, null at -1.

        Raises:
            SchemaError: chunks that cannot be joined.
        """
        return self._columns[name].gather(found, threads)

    def arrays(self, names: Sequence[str]) -> dict[str, pa.ChunkedArray | pa.Array]:
        """Return columns by name; they share their values with this and are good until it changes."""
        return {name: self._columns[name].array() for name in names}

    def table(self) -> pa.Table:
        """Return everything held, as good as `arrays`."""
        return pa.table([column.array() for column in self._columns.values()], schema=self._schema)
